"""Checks on every request before a page sees it: its host name is known, and no other web site made it.

A login is not enough: a browser also sends it with requests made by other sites, and a site whose name points
here (DNS rebinding) counts as Flower's own.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import tornado.web
from flower.app import Flower
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import decode_signed_value

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Methods of requests that change nothing.
LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
#: Values of `Sec-Fetch-Site` in requests that no other site made.
OWN = frozenset({"same-origin", "none"})


class GuardedFlower(Flower):
    """Flower behind a login, for requests to its own names and from its own pages."""

    def __init__(self, **options: Any) -> None:
        """Accept Flower's options; exit the program if there is no login."""
        super().__init__(**options)
        require_login(self.options.basic_auth, self.options.auth)
        project = self.capp.runtime.project
        self._variable = f"{project.name}_FLOWER_HOSTS".upper()
        self._hosts = LOOPBACK | host_names(self.capp.runtime.settings.flower_hosts)
        self._operators_variable = f"{project.name}_FLOWER_OPERATORS".upper()
        self._operators = names_in(self.capp.runtime.settings.flower_operators)
        self.transforms.append(SafeHeaders)

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """Return the handler of a request, or one that refuses it."""
        reason = self._refusal(request)
        if reason is None:
            return super().find_handler(request, **options)
        return self.get_handler_delegate(request, Refused, {"reason": reason})

    def _refusal(self, request: HTTPServerRequest) -> str | None:
        host = request.host_name.strip("[]")
        if host not in self._hosts and host != own_address(request):
            return f"{host} is not a name of this Flower: add it to {self._variable}"
        if is_cross_site(request):
            return "Refused: another web site made this request"
        if request.method not in LOOKING and not self.may_act(request):
            return f"Refused: this login may only look; {self._operators_variable} names those that may act"
        return None

    def may_act(self, request: HTTPServerRequest) -> bool:
        """Return whether the request's login may act, not only look.

        Its password is not checked here: Flower itself does that afterwards.
        """
        if not self._operators:
            return True
        if self.options.auth:
            return oauth_user(request, self.settings["cookie_secret"]) in self._operators
        return basic_user(request) in self._operators


class Refused(tornado.web.RequestHandler):
    """Answers a refused request."""

    def initialize(self, reason: str) -> None:
        """Store the reason to show."""
        self._text = reason

    def check_xsrf_cookie(self) -> None:
        """Check nothing: the request is refused in any case."""

    def prepare(self) -> None:
        """Answer with the reason, as text."""
        self.set_status(HTTPStatus.FORBIDDEN)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(self._text)


class SafeHeaders(tornado.web.OutputTransform):
    """Adds security headers to every answer."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Forbid framing; ask browsers for the login, which Flower's API does not do."""
        headers["X-Frame-Options"] = "DENY"
        if status_code == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Basic realm="flower"'
        return super().transform_first_chunk(status_code, headers, chunk, finishing)


def require_login(basic_auth: Iterable[str] | None, oauth: str | None) -> None:
    """Exit the program unless Flower asks for a login, and each login has a user and a password."""
    logins = [login.partition(":") for login in basic_auth or ()]
    if not (logins or oauth) or not all(user and password for user, _, password in logins):
        raise SystemExit(
            "Flower needs a login: set FLOWER_BASIC_AUTH=user:password (without commas), or --auth for OAuth"
        )


def host_names(names: str | None) -> frozenset[str]:
    """Return the names in a comma-separated setting."""
    return frozenset(name.strip().lower() for name in (names or "").split(",")) - {""}


def names_in(names: str | None) -> frozenset[str]:
    """Return the names in a comma-separated setting, as they are written."""
    return frozenset(name.strip() for name in (names or "").split(",")) - {""}


def basic_user(request: HTTPServerRequest) -> str | None:
    """Return the name of a login with a password; None if the request has none."""
    header = request.headers.get("Authorization", "")
    if not header.startswith("Basic "):
        return None
    try:
        return b64decode(header[6:]).decode().partition(":")[0]
    except ValueError:
        return None


def oauth_user(request: HTTPServerRequest, secret: str) -> str | None:
    """Return who has logged in through OAuth; None if that is nobody.

    Flower then checks no password, so the name of one proves nothing.
    """
    cookie = request.cookies.get("user")
    user = decode_signed_value(secret, "user", cookie.value) if cookie else None
    return user.decode(errors="replace") if user else None


def own_address(request: HTTPServerRequest) -> str | None:
    """Return the IP address at which a request arrived: probes and scrapers use it instead of a name.

    Other sites cannot use it: a request to an address reaches Flower itself, whatever DNS says.
    """
    stream = getattr(request.connection, "stream", None)
    address = stream.socket.getsockname() if stream is not None and stream.socket is not None else None
    return str(address[0]) if isinstance(address, tuple) else None


def is_cross_site(request: HTTPServerRequest) -> bool:
    """Return whether, by its headers, another site made the request; following a link to a page is fine."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        return True
    return request.headers.get("Sec-Fetch-Site", "none") not in OWN and not is_link(request)


def is_link(request: HTTPServerRequest) -> bool:
    """Return whether a request opens a page as a top-level document."""
    mode, what = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    return request.method == "GET" and mode == "navigate" and what == "document"
