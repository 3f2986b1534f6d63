"""One child process: a session of its own, its output in a log file, and never outliving its parent."""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from local import ROOT
from local.waiting import eventually

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: what runs between fork and exec must not import or open anything.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ChildFailedError(RuntimeError):
    """A program ended before it was ready; the text ends with the last lines of its log."""


def die_with_parent(parent: int, death_signal: int) -> None:
    """Ask the kernel to send `death_signal` to this process when `parent` dies, however it dies (Linux)."""
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the kernel was asked


@dataclass
class Child:
    """A named program; `start` runs it, `stop` asks it to end and then makes sure, `kill` is SIGKILL.

    The thread that calls `start` must outlive the child: the kernel treats its end as the parent's death.
    """

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path = ROOT
    #: The account to run as; None means the caller's.
    user: pwd.struct_passwd | None = None
    #: Sent in turn by `stop`, each given `stop_timeout` to take effect; SIGKILL follows.
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    #: What the kernel sends when this process dies without stopping the child.
    death_signal: signal.Signals = signal.SIGKILL
    stop_timeout: float = 10.0  # seconds, per signal
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    def start(self) -> None:
        """Run the command; its output is appended to the log."""
        parent, death_signal = os.getpid(), int(self.death_signal)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self.env is None else dict(self.env),
                cwd=self.cwd,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent, death_signal),
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            )

    @property
    def running(self) -> bool:
        """Tell whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Return the process id of the last start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return how the last run ended: None while it runs, negative for a signal."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """Send the stop signals in turn, then kill what is left of the process tree."""
        if not self.running:
            return
        family = self._family()
        for number in self.stop_signals:
            self._send(number)
            with suppress(subprocess.TimeoutExpired):
                self._wait(self.stop_timeout)
                break
        self._kill_all(family)

    def kill(self) -> None:
        """SIGKILL the program and everything that it started, as a power cut would."""
        if self.running:
            self._kill_all(self._family())

    def ended_early(self) -> ChildFailedError:
        """Return the error for a program that ended on its own, with the end of its log."""
        return ChildFailedError(f"{self.name} ended with status {self.exit_code}:\n{self.log_tail()}")

    def log_text(self) -> str:
        """Return what was logged since the last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that were logged since the last start."""
        return "\n".join(self.log_text().splitlines()[-lines:]) or "(nothing was logged)"

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _wait(self, timeout: float) -> None:
        if self._process is not None:
            self._process.wait(timeout)

    def _family(self) -> list[psutil.Process]:
        """List the descendants now: once their parent is gone, nothing tells them from other processes."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def _kill_all(self, family: list[psutil.Process]) -> None:
        """SIGKILL the process, its group and its former descendants, and wait until they are gone."""
        if self.running:
            family = [*family, *self._family()]
            self._send(signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self._wait(self.stop_timeout)
        eventually(
            lambda: not any(map(_alive, family)), self.stop_timeout, f"the end of {self.name}'s children"
        )


def _alive(process: psutil.Process) -> bool:
    """Tell whether it runs; an orphan that nobody reaps stays as a zombie, which does not count."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
