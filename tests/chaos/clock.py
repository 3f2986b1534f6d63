"""A wall clock for a single program, which jumps on demand (`clock.c`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def can_be_built() -> bool:
    """Return whether this machine has a C compiler and can preload libraries (Linux)."""
    return sys.platform == "linux" and shutil.which("cc") is not None


@dataclass(frozen=True)
class Clock:
    """A clock's files in a folder. Monotonic time, which timeouts use, stays real."""

    folder: Path

    def jump_to(self, ahead_s: int) -> None:
        """Set the clock this many seconds ahead of real time, or behind if negative."""
        self._file.write_text(f"{ahead_s}\n")

    def environment(self) -> dict[str, str]:
        """Return the environment with which a program uses this clock."""
        library = self.folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", "-o", library, SOURCE]
        subprocess.run(command, check=True)
        return {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}

    @property
    def _file(self) -> Path:
        return self.folder / "clock"
