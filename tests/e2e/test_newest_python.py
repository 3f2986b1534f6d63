"""The fast tests on the newest Python of this machine, if the whole suite runs on an older one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import ROOT
from tests.e2e import pythons

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_fast_tests_pass_on_the_newest_python(tmp_path: Path):
    """Modules of Python change as well: in 3.13 `logging` uses its locks in another way."""
    newest, program = list(pythons.found().items())[-1]
    if newest == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("the suite runs on it")
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for command in (
        (program, "-m", "venv", environment),
        (python, "-m", "pip", "install", "--quiet", "-r", "requirements-dev.txt"),
        (python, "-m", "pytest", "tests/unit", "-q", "--numprocesses=0", "-p", "no:cacheprovider"),
    ):
        done = subprocess.run(
            command, cwd=ROOT, env=variables, check=False, text=True, capture_output=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
