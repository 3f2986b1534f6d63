"""A TCP connection's way to a server that can be cut or stalled, in both directions or in one."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from local.ports import LOOPBACK, free_port

LOOK_EVERY_S = 0.05
CHUNK = 65_536


class Link:
    """Forwards `port` to `target`; `to_server` and `to_client` say which directions flow."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self.up = True
        self.to_server = self.to_client = True
        self._ended = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((LOOPBACK, self.port))
        self._listener.settimeout(LOOK_EVERY_S)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def cut(self) -> None:
        """Close all connections and accept no others, as a firewall that rejects."""
        self.up = False
        self._close_all()

    def stall(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Hold what is sent in these directions, as a network that drops everything."""
        self.to_server, self.to_client = not to_server, not to_client

    def mend(self) -> None:
        """Let everything through again; what was held arrives, as TCP sends it again."""
        self.up = self.to_server = self.to_client = True

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._acceptor.join()
        self._listener.close()
        self._close_all()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                if not self.up:
                    client.close()
                    continue
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((LOOPBACK, self.target), timeout=2)
        except OSError:
            client.close()
            return
        pair = {client, server}
        with self._lock:
            self._sockets |= pair
        try:
            while self.up and not self._ended.is_set():
                flowing = [
                    one for one, flows in ((client, self.to_server), (server, self.to_client)) if flows
                ]
                readable, _, _ = select.select(flowing, [], [], LOOK_EVERY_S)
                for one in readable:
                    data = one.recv(CHUNK)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._sockets -= pair
            for one in pair:
                one.close()

    def _close_all(self) -> None:
        with self._lock:
            for one in self._sockets:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
