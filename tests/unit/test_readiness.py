"""What is asked whether a program of `make up` is ready."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from local.ports import LOOPBACK
from local.processes.readiness import flower_answers


def test_flower_is_asked_directly_where_a_proxy_is_set(monkeypatch: pytest.MonkeyPatch):
    """As for `pip`, without exceptions; a proxy does not reach our loopback."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthcheck" else 404)
            self.end_headers()

    with HTTPServer((LOOPBACK, 0), Healthy) as flower, ThreadPoolExecutor() as pool:
        flower.timeout = 5  # seconds
        pool.submit(flower.handle_request)

        assert flower_answers(flower.server_port)
