"""Freeze a program with all its processes: it answers nothing, and its connections stay open."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil


def freeze(pid: int) -> None:
    """Stop a program and its descendants."""
    _send(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let them continue."""
    _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(pid).children(recursive=True)]
        for each in (pid, *(one.pid for one in family)):
            with suppress(ProcessLookupError):
                os.kill(each, number)
