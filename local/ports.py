"""TCP ports on loopback: finding a free one, telling whether one is taken."""

import errno
import random
import socket

LOOPBACK = "127.0.0.1"
# Below the range that the kernel uses for outgoing connections, so that a free port stays free.
_CANDIDATES = range(20_000, 32_000)


class PortInUseError(OSError):
    """Another program listens on the port of one of our servers."""

    def __init__(self, port: int) -> None:
        super().__init__(errno.EADDRINUSE, f"port {port} is already in use")
        self.port = port


def is_free(port: int) -> bool:
    """Tell whether a server could listen on `port` now; connections that are still closing do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def free_port() -> int:
    """Return a port that nothing listens on; another program may still take it before the caller does."""
    for port in random.SystemRandom().sample(_CANDIDATES, 200):
        if is_free(port):
            return port
    raise OSError(errno.EADDRINUSE, "no free port was found")
