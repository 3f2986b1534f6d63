"""The base of our pages: Flower's look and login, and buttons with a token."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import tornado.web
from flower.views import BaseHandler

from messaging.errors import MessagingError, describe
from messaging.operator.pausing import active, shown
from messaging.operator.stats import Statistics
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime

T = TypeVar("T")

logger = logging.getLogger(__name__)

LAST_PAGE = 1000
#: Digits of a page's number that are read.
DIGITS = 9


class Page(BaseHandler):
    """A page behind Flower's login."""

    def set_default_headers(self) -> None:
        """Keep pages out of caches."""
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Check the token always; Flower does so only behind OAuth."""
        super().check_xsrf_cookie()
        tornado.web.RequestHandler.check_xsrf_cookie(self)

    @property
    def runtime(self) -> Runtime:
        """Return the project's engines and stores."""
        runtime: Runtime = self.capp.runtime
        return runtime

    @property
    def read_only(self) -> bool:
        """Return whether this login may only look, or Flower was started with --read-only."""
        return bool(self.application.options.read_only) or not self.application.may_act(self.request)

    @property
    def actor(self) -> str:
        """Return the user's name for the history of a delivery."""
        user = self.current_user
        if isinstance(user, str):
            return f"{user} in Flower"
        header = self.request.headers.get("Authorization", "")
        if header.startswith("Basic "):  # the login has checked it already
            return f"{b64decode(header[6:]).decode(errors='replace').partition(':')[0]} in Flower"
        return "Flower"

    def require_writable(self) -> None:
        """Refuse an action in read-only mode."""
        if self.read_only:
            raise tornado.web.HTTPError(403, "Read only mode is enabled")

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run a blocking function on a thread, so that Flower keeps responding."""
        found: T = await self.application.blocking_runner.run(
            "deliveries", function.__qualname__, _expected, function, *args
        )
        if isinstance(found, MessagingError):
            raise found
        if isinstance(found, DATABASE_ERRORS):
            logger.warning("%s failed: %s", function.__qualname__, describe(found))
            raise tornado.web.HTTPError(503, "The database does not answer, or rejected the request")
        return found

    async def show(self, template: str, **values: Any) -> None:
        """Render one of our pages, with the summary and with what is stopped."""
        summary = await self.work(Statistics.of(self.runtime).summary)
        stopped = await self.pauses()
        self.render(
            template, summary=summary, pauses=stopped, said=self.said(), read_only=self.read_only, **values
        )

    async def pauses(self) -> list[str]:
        """Return what is stopped, to be shown on every page of deliveries."""
        stopped = await self.work(self.runtime.breakers.stopped)
        paused = await self.work(active, self.runtime)
        return [
            *(f"Paused: {shown(one)}" for one in paused),
            *(f"Breaker: {one}" for one in stopped.values()),
        ]

    def field(self, name: str) -> str:
        """Return the text of a form field; templates escape it."""
        return str(self.get_argument(name, "", escape=False) or "").strip()

    def number(self) -> int:
        """Return the number of the list's page, from 1."""
        given = self.field("page")
        return min(max(1, int(given[:DIGITS])), LAST_PAGE) if given.isascii() and given.isdigit() else 1

    def page_of(self, filters: Mapping[str, str]) -> Callable[[int], str]:
        """Return a function that gives the query string of each page of a list."""
        return lambda number: urlencode({**filters, "page": number})

    def say(self, text: str) -> None:
        """Store a text to show on the next page."""
        self.set_secure_cookie("said", text.encode(), expires_days=None)

    def said(self) -> str:
        """Return the text of the last action, and remove it."""
        text = self.get_secure_cookie("said")
        if text:
            self.clear_cookie("said")
        return text.decode() if text else ""

    def back_to(self, page: str, filters: Mapping[str, str]) -> None:
        """Redirect to a page after an action, so that a reload does not repeat the action."""
        query = urlencode({name: value for name, value in filters.items() if value})
        self.redirect(self.reverse_url(page) + (f"?{query}" if query else ""), status=303)


def _expected(function: Callable[..., T], *args: Any) -> T | Exception:
    """Return our own errors and the database's as values: Flower's runner answers 500 to both."""
    try:
        return function(*args)
    except (MessagingError, *DATABASE_ERRORS) as error:
        return error
