"""Programs that some tests need and a machine may lack.

Their tests are skipped, and the run ends with one line for each such program. In CI (`CI=true`) nothing may
be missing: the run fails.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import NoReturn

import pytest

_WITHOUT = "Skipped: NOT RUN WITHOUT "


def missing(program: str, what_to_do: str) -> NoReturn:
    """Skip the test because the program is missing."""
    pytest.skip(f"{_WITHOUT.removeprefix('Skipped: ')}{program} ({what_to_do})")


class MissingPrograms:
    """A plugin that reports all tests without the same program in one line."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Make pytest group these skips by program, not by test: it groups them by place and reason."""
        report = yield
        if isinstance(report.longrepr, tuple) and report.longrepr[2].startswith(_WITHOUT):
            report.longrepr = ("tests/programs.py", 1, report.longrepr[2])
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the missing program."""
        if isinstance(report.longrepr, tuple) and report.longrepr[2].startswith(_WITHOUT):
            self._lines.add(report.longrepr[2].removeprefix(_WITHOUT))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail in CI."""
        if self._fails and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say in CI why the run failed."""
        if self._fails:
            terminalreporter.section("programs that CI must have", red=True)
            for line in sorted(self._lines):
                terminalreporter.line(f"FAILED: not run without {line}", red=True)

    @property
    def _fails(self) -> bool:
        return bool(self._lines) and os.environ.get("CI") == "true"
