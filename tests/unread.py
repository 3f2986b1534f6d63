"""What this process has been sent and has not read."""

from __future__ import annotations

import array
import fcntl
import os
import stat
import termios
from contextlib import suppress


def unread() -> int:
    """Return how many bytes wait in all sockets of this process."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile; or it listens
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                count = array.array("i", [0])
                fcntl.ioctl(int(name), termios.FIONREAD, count)
                found += count[0]
    return found
