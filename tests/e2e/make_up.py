"""`make up` as a user runs it, for tests that need everything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local import ROOT
from local.ports import free_port

PORTS = ("REDIS", "POSTGRES", "FLOWER", "SMTP")
COMMAND = [sys.executable, "-m", "local"]


def new_environment(server_folder: Path) -> dict[str, str]:
    """Return free ports and the test's own data folder, without addresses."""
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("ALLOCATION_", "MAKE"))
    }
    folder = tempfile.mkdtemp(prefix="make up ", dir=server_folder)
    ports = {f"ALLOCATION_{name}_PORT": str(free_port()) for name in PORTS}
    return {**plain, **ports, "ALLOCATION_DATA_DIR": folder, "ALLOCATION_WORKER_CONCURRENCY": "1"}


@contextmanager
def run(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`python -m local`; if it still runs at the end, it is killed with its children."""
    process = subprocess.Popen(
        COMMAND, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # its children die with it


def read_until_ready(up: subprocess.Popen[str]) -> str:
    """Return its output up to the line `ready`."""
    said = ""
    assert up.stdout is not None
    for line in up.stdout:
        said += line
        if line == "ready\n":
            return said
    raise AssertionError(f"it ended before it was ready:\n{said}")


def printed_login(said: str) -> str:
    """Return `user:password` from the printed address of Flower."""
    [login] = re.findall(r"^Flower: http://(\S+)@", said, re.MULTILINE)
    return str(login)
