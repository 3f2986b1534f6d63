"""A TLS proxy in front of a server without TLS, like stunnel or a provider's load balancer."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.e2e.certificates import Pair

HANDSHAKE = b"\x16"  # the first byte of a TLS connection
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # a PostgreSQL client's request for TLS


class TlsFront:
    """Listens on `port`, removes TLS and forwards to the server of `url`."""

    def __init__(self, url: str, pair: Pair, *, or_plain: bool = False) -> None:
        """Plan the proxy; with `or_plain` it also forwards what is not encrypted."""
        address = urlsplit(url)
        self._or_plain = or_plain
        self._server = (str(address.hostname), int(address.port or 0))
        self._postgres = address.scheme.startswith("postgresql")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.served = 0  # connections that reached the server

    def __enter__(self) -> Self:
        """Start accepting connections."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop accepting connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self._postgres:
                if client.recv(len(SSL_REQUEST)) != SSL_REQUEST:
                    return
                client.sendall(b"S")
            if self._or_plain and client.recv(1, socket.MSG_PEEK) != HANDSHAKE:
                with socket.create_connection(self._server) as server:
                    threading.Thread(target=_pump, args=(server, client), daemon=True).start()
                    _pump(client, server)
                return
            # A client that does not trust us ends the handshake here.
            with (
                self._context.wrap_socket(client, server_side=True) as inside,
                socket.create_connection(self._server) as server,
            ):
                self.served += 1
                threading.Thread(target=_pump, args=(server, inside), daemon=True).start()
                _pump(inside, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Forward until the end of the stream, then end the other direction too."""
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
