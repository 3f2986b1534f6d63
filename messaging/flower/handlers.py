"""Event handlers as a page of Flower: what each one has to do, what is paused, and buttons."""

from __future__ import annotations

from dataclasses import dataclass

import tornado.web

from messaging.delivery import Status
from messaging.errors import MessagingError
from messaging.flower.base import Page
from messaging.operator.pausing import Pausing, active
from messaging.operator.stats import Counts, Statistics
from messaging.postgres.breakers import Stopped, stop_of
from messaging.postgres.pauses import Pause, Scope
from messaging.texts import storable

#: The states that are counted on the page.
COUNTED = (Status.PENDING, Status.WAITING, Status.FAILED)

SHOWN_LANES = 20


@dataclass(frozen=True)
class Line:
    """A handler, an event or everything."""

    scope: Scope
    name: str
    counts: tuple[int, ...] = ()  # of each state in `COUNTED`
    pause: Pause | None = None
    stopped: Stopped | None = None  # by its breaker


class HandlersPage(Page):
    """All handlers and events, with buttons to pause and resume them."""

    @tornado.web.authenticated
    async def get(self) -> None:
        """Show the list."""
        counts = (await self.work(Statistics.of(self.runtime).open)).deliveries
        await self.show(
            "handlers.html",
            lines=self._lines(
                counts,
                await self.work(active, self.runtime),
                await self.work(self.runtime.breakers.stopped),
            ),
            blocked=await self.work(self.runtime.lanes.blocked, SHOWN_LANES),
            counted=COUNTED,
        )  # fmt: skip

    @tornado.web.authenticated
    async def post(self) -> None:
        """Pause or resume one, or close its breaker."""
        self.require_writable()
        try:
            self.say(await self.act(self.field("do"), storable(self.field("reason"))))
        except (ValueError, MessagingError) as error:
            self.say(str(error))
        self.back_to("handlers", {})

    async def act(self, action: str, reason: str) -> str:
        """Carry out an action and return the text to show."""
        pausing = Pausing(self.capp.dispatcher)
        if action == "pause-group":
            return await self.work(pausing.pause_group, self.field("group"), self.actor, reason or None)
        scope, name = Scope(self.field("scope")), self.field("name")
        if action == "close":
            return await self.work(pausing.close, name, self.actor, reason or None)
        if action == "resume":
            return await self.work(pausing.resume, scope, name, self.actor, reason or None)
        if action == "pause":
            if not reason:
                return "Nothing was paused: enter a reason in the field beside the button."
            return await self.work(pausing.pause, scope, name, self.actor, reason)
        raise tornado.web.HTTPError(400, "Unknown action")

    def _lines(self, counts: Counts, pauses: list[Pause], stopped: dict[str, Stopped]) -> list[Line]:
        project = self.runtime.project
        paused = {(one.scope, one.name): one for one in pauses}
        handlers = {name: project.all_names(name) for name in sorted(project.bus.event_handlers)}
        for name in sorted(
            {one.name for one in pauses if one.scope is Scope.HANDLER}
            | {
                name
                for name in (*(name for _, name in counts), *stopped)
                if name not in project.renamed_handlers
            }
        ):
            handlers.setdefault(name, (name,))
        lines = [
            Line(
                Scope.HANDLER,
                name,
                tuple(sum(counts.get((status, one), 0) for one in names) for status in COUNTED),
                paused.get((Scope.HANDLER, name)),
                stop_of(stopped, names),
            )
            for name, names in handlers.items()
        ]
        events = [
            Line(Scope.EVENT, name, pause=paused.get((Scope.EVENT, name)))
            for name in sorted({*project.bus.event_types, *(n for s, n in paused if s is Scope.EVENT)})
        ]
        return [*lines, *events, Line(Scope.ALL, "", pause=paused.get((Scope.ALL, "")))]
