"""The data folder: locking it while servers run, and removing it."""

import fcntl
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import IO

#: Only a folder that contains this file is ever removed.
MARKER = ".allocation-data"


class FolderInUseError(RuntimeError):
    """A backend runs over this data folder."""

    def __init__(self, folder: Path, pid: str) -> None:
        super().__init__(folder, pid)
        self.folder, self.pid = folder, pid

    def __str__(self) -> str:
        """Name the folder and the process."""
        return f"{self.folder} is in use by process {self.pid}: stop it first, or set ALLOCATION_DATA_DIR"


class NotOurFolderError(RuntimeError):
    """The folder contains something else, so it is neither used nor removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        """Name the folder and what to do."""
        return f"{self.folder} is not empty and not a data folder of this project: see ALLOCATION_DATA_DIR"


def hold(folder: Path) -> IO[str]:
    """Lock the data folder, created if missing, until the returned file is closed or this process ends."""
    marker = folder / MARKER
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise NotOurFolderError(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = marker.open("a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.seek(0)
        pid = held.read().strip()
        held.close()
        raise FolderInUseError(folder, pid) from None
    held.truncate(0)
    held.write(f"{os.getpid()}\n")
    held.flush()
    return held


def is_in_use(folder: Path) -> bool:
    """Tell whether a backend runs over this data folder."""
    if not (folder / MARKER).exists():
        return False
    try:
        hold(folder).close()
    except FolderInUseError:
        return True
    return False


def remove(folder: Path) -> bool:
    """Remove the data folder unless it, or one inside it, is in use; False if it did not exist."""
    if not folder.exists():
        return False
    with ExitStack() as held:
        held.enter_context(hold(folder))
        inner = [marker.parent for marker in folder.rglob(MARKER) if marker.parent != folder]
        for one in inner:
            held.enter_context(hold(one))
        for one in (*sorted(inner, reverse=True), folder):  # a folder after those inside it
            _delete(one)
    return True


def _delete(folder: Path) -> None:
    """Delete a data folder, its marker last: what an interruption leaves can still be removed."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != MARKER:
            child.unlink()
    shutil.rmtree(folder)
