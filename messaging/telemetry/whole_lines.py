"""Keep lines of the log whole: in a pipe that is full, those of a worker's processes would mix."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import threading
import time
from functools import cache
from typing import IO, Any

#: Longest wait for another process, in seconds: one that is frozen must not stop the others.
PATIENCE_S = 1.0


class ProcessLock:
    """A lock of a log handler that also excludes the other processes of a worker; a killed one frees it."""

    def __init__(self) -> None:
        self._threads = threading.RLock()
        self._depth = 0
        self._file, path = tempfile.mkstemp()  # open while the process runs
        os.unlink(path)  # noqa: PTH108  as mkstemp names it

    def acquire(self) -> None:
        """Wait for the other threads, and a while for the other processes."""
        self._threads.acquire()
        self._depth += 1
        until = time.monotonic() + PATIENCE_S
        while self._depth == 1 and not self._lock() and time.monotonic() < until:
            time.sleep(0.001)

    def release(self) -> None:
        """Let others write."""
        self._depth -= 1
        if not self._depth:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        self._threads.release()

    #: Since Python 3.13 `logging` enters the lock.
    def __enter__(self) -> None:
        """Acquire it."""
        self.acquire()

    def __exit__(self, *_error: object) -> None:
        """Release it."""
        self.release()

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _at_fork_reinit(self) -> None:
        """Begin anew in a child; the file stays the same."""
        self._threads, self._depth = threading.RLock(), 0


@cache
def process_lock() -> ProcessLock:
    """Return the lock of all handlers of a worker: they write to one stream."""
    return ProcessLock()


def is_pipe(stream: IO[Any]) -> bool:
    """Tell whether what several processes write there can mix."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
