"""This machine's Pythons that the package supports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OLDEST = (3, 11)
_PROBE = "import sys, ensurepip, venv; print(sys.version_info[0], sys.version_info[1])"


@cache
def found() -> dict[str, str]:
    """Return their programs by version, oldest first; in CI only the oldest and the newest."""
    versions: dict[tuple[int, ...], str] = {}
    for program in _candidates():
        version = _version(program)
        if version is not None and version >= OLDEST:
            versions.setdefault(version, program)
    chosen = sorted(versions)
    if os.environ.get("CI") == "true":
        chosen = sorted({chosen[0], chosen[-1]})
    return {".".join(map(str, version)): versions[version] for version in chosen}


def _candidates() -> Iterator[str]:
    """Yield our own Python, those on the PATH, and pyenv's."""
    yield sys.executable
    for name in ("python3", *(f"python3.{minor}" for minor in range(OLDEST[1], 20))):
        if program := shutil.which(name):
            yield program
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob("versions/*/bin/python")))


def _version(program: str) -> tuple[int, ...] | None:
    """Return its version; None if it does not start (a pyenv shim) or cannot create environments."""
    result = subprocess.run([program, "-c", _PROBE], check=False, capture_output=True, text=True)
    return tuple(map(int, result.stdout.split())) if result.returncode == 0 else None
