"""A wall clock that one program alone sees, and that jumps when told to (`clock.c`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def can_be_built() -> bool:
    """Tell whether this machine has a C compiler, and preloads libraries as Linux does."""
    return sys.platform == "linux" and shutil.which("cc") is not None


@dataclass(frozen=True)
class Clock:
    """Files of a clock in this folder. Time that is only measured, for timeouts, stays the real one."""

    folder: Path

    def jump_to(self, ahead_s: int) -> None:
        """Be so many seconds ahead of the real time; below zero is behind."""
        self._file.write_text(f"{ahead_s}\n")

    def environment(self) -> dict[str, str]:
        """Return what has a program use this clock."""
        library = self.folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", "-o", library, SOURCE]
        subprocess.run(command, check=True)
        return {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}

    @property
    def _file(self) -> Path:
        return self.folder / "clock"
