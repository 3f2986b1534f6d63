"""Everything that one order caused, as a page: what `trace` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import tornado.web
from tornado.web import url

from messaging.flower.base import Page
from messaging.operator.cli.trace import since
from messaging.operator.order import Step, story_of


class OrderPage(Page):
    """The tree of one order, a line for each step."""

    @tornado.web.authenticated
    async def get(self, correlation_id: str) -> None:
        """Show it."""
        order = await self.work(story_of, self.runtime, correlation_id)
        if order is None:
            raise tornado.web.HTTPError(404, f"Nothing is stored about '{correlation_id}'")
        self.render("order.html", order=order, lines=list(_lines(order.steps, order.began)))


def _lines(steps: Sequence[Step], began: datetime | None, depth: int = 0) -> Iterator[tuple[int, Step, str]]:
    for step in steps:
        yield depth, step, since(step.at, began)
        yield from _lines(step.steps, began, depth + 1)


PAGES = [url(r"/orders/(.+)", OrderPage, name="order")]
