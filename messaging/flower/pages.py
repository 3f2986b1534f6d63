"""Failed deliveries and dead letters as pages of Flower."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlencode
from uuid import UUID

import tornado.web
from tornado.web import url

from messaging.delivery import Delivery, Status
from messaging.errors import MessagingError
from messaging.flower.base import Page
from messaging.flower.handlers import HandlersPage
from messaging.operator import replaying
from messaging.operator.deliveries import DeliveryQueries, FailureGroup, UnknownName
from messaging.operator.filters import parse_age, parse_moment
from messaging.operator.reruns import begin, listed, outcome, standing
from messaging.operator.waits import Waits
from messaging.postgres.dead_letters import STATES, DeadLetters
from messaging.postgres.filters import DeliveryFilter
from messaging.texts import storable
from messaging.worker.dispatcher import shown_event
from messaging.worker.rerunning import take_step

SHOWN = 100  # rows per page
SHOWN_GROUPS = 20
SHOWN_RERUNS = 5
#: Deliveries that one click discards; the operator's tool discards more.
AT_ONCE = 1000
#: Discarding is final, so it takes what was on the page as it was there.
NOT_AS_SEEN = "Nothing was discarded: none has failed, or they failed only after this page was shown."
#: Digits of a number that nobody means.
DIGITS = 16

DELIVERY_FIELDS = (
    "status",
    "handler",
    "event",
    "group",
    "error",
    "since",
    "until",
    "older_than",
    "correlation",
)
LETTER_FIELDS = ("state", "reason_has", "task")
#: A UUID; tornado cannot reverse a pattern with nested groups.
ID = r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"


class DeliveriesPage(Page):
    """Deliveries by filter, failed ones by default, with buttons."""

    @tornado.web.authenticated
    async def get(self) -> None:
        """Show the list."""
        filters, problem, rows, matching, groups = self.filters(), "", [], {}, []
        seen_at = await self.work(self.runtime.outbox.clock)
        try:
            chosen = await self.chosen(filters, seen_at)
            statuses = [Status(filters["status"])] if filters["status"] else list(Status)
            rows = await self.work(self.deliveries.find, chosen, statuses, SHOWN, SHOWN * (self.number() - 1))
            matching = await self.work(self.deliveries.count_failed, chosen)
            groups = await self.work(self.deliveries.groups, chosen, SHOWN_GROUPS)
        except (ValueError, UnknownName) as error:
            problem = str(error)
        waits = await self.work(Waits, self.runtime, rows)
        await self.show(
            "deliveries.html",
            rows=rows, matching=matching, groups=groups, only=only, filters=filters, statuses=list(Status),
            problem=problem, shown=SHOWN, at_once=AT_ONCE, event_of=self.event_of, waits_of=waits.of,
            number=self.number(), page_of=self.page_of(filters), seen_at=seen_at,
            reruns=await self.work(listed, self.runtime, SHOWN_RERUNS),
        )  # fmt: skip

    @tornado.web.authenticated
    async def post(self) -> None:
        """Act on one delivery, or on all failed ones that match."""
        self.require_writable()
        filters, one, action = self.filters(), self.field("id"), self.field("do")
        try:
            if action == "stop":  # also on a page whose filter was refused
                self.say(await self.stop())
            else:
                chosen = _one(one) if one else await self.chosen(filters, self.seen_at())
                self.say(await self.act(action, chosen))
        except (ValueError, MessagingError) as error:
            self.say(str(error))
        self.back_to("deliveries", filters)

    @property
    def deliveries(self) -> DeliveryQueries:
        """Return the queries of deliveries."""
        return DeliveryQueries(self.runtime.engine)

    def event_of(self, row: Delivery) -> str:
        """Return a delivery's event as text."""
        return shown_event(self.runtime.project, row)

    def filters(self) -> dict[str, str]:
        """Return the filter fields; the default state is `failed`."""
        filters = {name: self.field(name) for name in DELIVERY_FIELDS}
        if "status" not in self.request.arguments:
            filters["status"] = Status.FAILED
        return filters

    def seen_at(self) -> datetime | None:
        """Return when the page was made whose button was pressed: what failed later was not on it."""
        given = self.field("seen_at")
        return parse_moment(given) if given else None

    async def chosen(self, filters: dict[str, str], now: datetime | None) -> DeliveryFilter:
        """Return the filter from the fields; a blank field does not filter, an age counts from `now`.

        Raises:
            ValueError: with how to write a field.
            UnknownName: with the names that exist.
        """
        project, handler = self.runtime.project, filters["handler"]
        chosen = DeliveryFilter(
            handlers=project.handler_names(handler) if handler else (),
            event=filters["event"] or None,
            group=filters["group"] or None,
            error=filters["error"] or None,
            since=parse_moment(filters["since"], now) if filters["since"] else None,
            until=parse_moment(filters["until"], now) if filters["until"] else None,
            older_than_s=parse_age(filters["older_than"]) if filters["older_than"] else None,
            correlation=filters["correlation"] or None,
        )
        await self.work(self.deliveries.require_known, project.bus, chosen)
        return chosen

    async def act(self, action: str, chosen: DeliveryFilter) -> str:
        """Carry out an action and return the text to show."""
        if action == "dry-run":
            counts = await self.work(self.deliveries.count_failed, chosen)
            parts = [f"{n:,} {event} for {handler}" for (event, handler), n in counts.items()]
            return f"Dry run: {sum(counts.values()):,} would be re-run. {'; '.join(parts)}"
        if action == "rerun":
            return await self.work(self._rerun, chosen)
        if action == "rerun-matching":
            return await self.work(self._begin, chosen, self._count("first"), self.seen_at())
        if action == "discard":
            reason, seen_at = self.field("reason"), self.seen_at()
            if not reason:
                return "Nothing was discarded: enter a reason in the field beside the button."
            if seen_at is None:
                return "Nothing was discarded: an earlier release has made this page. Press the button again."
            count = await self.work(self._discard, chosen, reason, seen_at)
            return f"{count:,} discarded." if count else NOT_AS_SEEN
        raise tornado.web.HTTPError(400, "Unknown action")

    async def stop(self) -> str:
        """Stop a re-run of many and return the text to show."""
        number = self._count("number")
        return standing(await self.work(self.runtime.bulk_reruns.stop, number, self.actor))

    def _rerun(self, chosen: DeliveryFilter) -> str:
        turns = list(self.capp.dispatcher.rerun(chosen, self.actor, AT_ONCE))
        return outcome(turns) if turns else "None of these deliveries has failed; nothing was re-run."

    def _begin(self, chosen: DeliveryFilter, first: int, before: datetime | None) -> str:
        """Begin a re-run of all that match, and take its first step."""
        begun = begin(self.capp.dispatcher, chosen, self.actor, canary=first, before=before)
        return standing(take_step(self.capp.dispatcher, begun.id))

    def _count(self, name: str) -> int:
        given = self.field(name) or "0"
        if not (given.isascii() and given.isdigit() and len(given) < DIGITS):
            raise ValueError(f"{given!r} is not a number of deliveries")
        return int(given)

    def _discard(self, chosen: DeliveryFilter, reason: str, before: datetime) -> int:
        return len(self.runtime.outbox.discard(chosen, self.actor, AT_ONCE, storable(reason), before))


class DeliveryPage(DeliveriesPage):
    """Everything known about one delivery."""

    @tornado.web.authenticated
    async def get(self, delivery_id: str) -> None:
        """Show it."""
        seen_at = await self.work(self.runtime.outbox.clock)
        story = await self.work(self.deliveries.story, delivery_id)
        if story is None:
            raise tornado.web.HTTPError(404, f"Unknown delivery '{delivery_id}'")
        waits = await self.work(Waits, self.runtime, [story.delivery])
        await self.show(
            "delivery.html", story=story, row=story.delivery, event_of=self.event_of, waits_of=waits.of,
            seen_at=seen_at,
        )  # fmt: skip

    @tornado.web.authenticated
    async def post(self, delivery_id: str) -> None:
        """Act on the delivery."""
        self.require_writable()
        try:
            self.say(await self.act(self.field("do"), _one(delivery_id)))
        except (ValueError, MessagingError) as error:
            self.say(str(error))
        self.redirect(self.reverse_url("delivery", delivery_id), status=303)


class DeadLettersPage(Page):
    """Messages that no task could read, with buttons."""

    @tornado.web.authenticated
    async def get(self) -> None:
        """Show the list."""
        filters = self.filters()
        parts = filters["reason_has"] or None, filters["task"] or None
        skip = SHOWN * (self.number() - 1)
        letters = await self.work(self.letters.find, filters["state"], *parts, SHOWN, skip)
        await self.show(
            "dead_letters.html", letters=letters, filters=filters, states=list(STATES), rows=letters,
            shown=SHOWN, number=self.number(), page_of=self.page_of(filters),
        )  # fmt: skip

    @tornado.web.authenticated
    async def post(self) -> None:
        """Act on one letter."""
        self.require_writable()
        try:
            letter_id = str(UUID(self.field("id")))
            self.say(await self.act(self.field("do"), letter_id, self.field("reason")))
        except (ValueError, MessagingError) as error:
            self.say(str(error))
        self.back_to("dead_letters", self.filters())

    @property
    def letters(self) -> DeadLetters:
        """Return the store."""
        return DeadLetters(self.runtime.engine)

    def filters(self) -> dict[str, str]:
        """Return the filter fields."""
        filters = {name: self.field(name) for name in LETTER_FIELDS}
        if filters["state"] not in STATES:
            filters["state"] = "open"
        return filters

    async def act(self, action: str, letter_id: str, reason: str) -> str:
        """Carry out an action and return the text to show."""
        if action == "replay":
            letter = await self.work(
                replaying.replay, self.capp.dispatcher, self.letters, letter_id, self.actor
            )
            return f"Sent to {letter.queue} again: {letter.task}."
        if action == "discard":
            if not reason:
                return "Nothing was discarded: enter a reason in the field beside the button."
            await self.work(self.letters.discard, letter_id, reason, self.actor)
            return "Discarded."
        raise tornado.web.HTTPError(400, "Unknown action")


def only(group: FailureGroup, filters: dict[str, str]) -> str:
    """Return the query string of the page that shows only this group."""
    return urlencode(filters | {"status": Status.FAILED.value, "group": group.id})


def _one(delivery_id: str) -> DeliveryFilter:
    """Return the filter of one delivery; ValueError if the text is not an id."""
    return DeliveryFilter(ids=(str(UUID(delivery_id)),))


PAGES = [
    url(r"/handlers", HandlersPage, name="handlers"),
    url(r"/deliveries", DeliveriesPage, name="deliveries"),
    url(rf"/deliveries/{ID}", DeliveryPage, name="delivery"),
    url(r"/dead-letters", DeadLettersPage, name="dead_letters"),
]
