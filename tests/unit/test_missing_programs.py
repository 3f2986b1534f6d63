"""A test suite reports a missing program once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import ROOT

CONFTEST = """
from tests.programs import MissingPrograms

def pytest_configure(config):
    config.pluginmanager.register(MissingPrograms())
"""
TESTS = """
import pytest
from tests.programs import missing

@pytest.fixture(scope="session")
def elevator():
    missing("elevator", "Debian's package of that name")

@pytest.mark.parametrize("number", range(30))
def test_{name}(elevator, number):
    pass

def test_{name}_stairs():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Sixty tests in two files, and two that run anywhere."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -ra --numprocesses=2 --dist=loadfile\n")
    for name in ("up", "down"):
        (tmp_path / f"test_{name}.py").write_text(TESTS.format(name=name))
    return tmp_path


def run(suite: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the suite as a user does."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CI": "", **environment}
    command = [sys.executable, "-m", "pytest", "-p", "no:valkey"]
    return subprocess.run(command, cwd=suite, env=env, check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_a_missing_program_is_one_line_at_the_end(suite: Path):
    result = run(suite)

    assert result.returncode == 0, result.stdout
    [line] = [line for line in result.stdout.splitlines() if "elevator" in line]
    assert line.startswith("SKIPPED [60]")
    assert line.endswith("NOT RUN WITHOUT elevator (Debian's package of that name)")
    assert "2 passed, 60 skipped" in result.stdout


@pytest.mark.slow
def test_a_program_missing_in_ci_fails_the_run_and_is_named_once(suite: Path):
    result = run(suite, CI="true")

    assert result.returncode == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert failures == ["FAILED: not run without elevator (Debian's package of that name)"]
