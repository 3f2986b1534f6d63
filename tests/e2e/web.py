"""Requests of a browser, a script or an attacker, and the responses."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple


class Answer(NamedTuple):
    """A server's response; errors are responses too."""

    status: int
    text: str
    headers: Mapping[str, str]


def request(
    url: str,
    login: str | None = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
) -> Answer:
    """Ask; `login` is `user:password`."""
    sent = dict(headers or {})
    if login:
        sent["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    wanted = urllib.request.Request(url, data, sent, method=method)  # noqa: S310  # http, on loopback
    try:
        with urllib.request.urlopen(wanted, timeout=20) as answer:  # noqa: S310  # as above
            return Answer(answer.status, answer.read().decode(errors="replace"), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(errors="replace"), error.headers)
