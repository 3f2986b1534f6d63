"""The data folder is removed completely or later, and never under servers that run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from local import ROOT
from local.data_folder import MARKER, FolderInUseError, NotOurFolderError, hold, is_in_use, remove

#: Removes a data folder, but dies before one of its deletions.
DYING = """
import os, sys
from pathlib import Path
from local.data_folder import remove

left = int(sys.argv[2])

def count(event, _arguments):
    global left
    if event in ("os.remove", "os.rmdir"):
        left -= 1
        if left < 0:
            os._exit(1)

sys.addaudithook(count)
remove(Path(sys.argv[1]))
"""


def fill(folder: Path) -> Path:
    """Return a data folder with a server's data, and that of `make demo-vip` inside it."""
    for one in (folder, folder / "vip"):
        (one / "postgres").mkdir(parents=True)
        (one / "postgres" / "PG_VERSION").write_text("18")
        for name in ("beat.log", "flower-password", "worker-11.log", "worker-16.log", MARKER):
            (one / name).touch()
    return folder


def test_a_data_folder_is_removed_with_the_one_inside_it(tmp_path: Path):
    folder = fill(tmp_path / "data")

    assert remove(folder)

    assert not folder.exists()
    assert not remove(folder)


@pytest.mark.parametrize("used", ["", "vip"])
def test_a_folder_is_not_removed_while_it_or_the_one_inside_it_is_in_use(tmp_path: Path, used: str):
    folder = fill(tmp_path / "data")

    with hold(folder / used), pytest.raises(FolderInUseError):
        remove(folder)

    assert len(list(folder.rglob("PG_VERSION"))) == 2
    assert not is_in_use(folder)


def test_a_removal_that_dies_can_be_repeated(tmp_path: Path):
    """Before whichever deletion it dies."""
    folder = tmp_path / "data"
    for deletions in itertools.count():
        command = [sys.executable, "-c", DYING, str(fill(folder)), str(deletions)]
        died = subprocess.run(command, cwd=ROOT, check=False).returncode != 0
        if not died:
            break
        for one in (folder, folder / "vip"):
            hold(one).close()
        assert remove(folder)

    assert deletions > 12


def test_a_folder_of_somebody_else_is_not_removed(tmp_path: Path):
    (tmp_path / "letter").write_text("mine")

    with pytest.raises(NotOurFolderError):
        remove(tmp_path)

    assert (tmp_path / "letter").exists()
