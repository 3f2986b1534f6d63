"""Everything that one message caused, as a tree: commands, events, deliveries, attempts, mails."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from messaging.delivery import Delivery, Status
from messaging.operator.deliveries import MAX_CHAIN, is_id
from messaging.project import Project
from messaging.project.runtime import Runtime
from messaging.texts import storable
from messaging.worker.dispatcher import shown_event

#: The commands of one message with many have its id, and their place after a dot.
COMMANDS = text("""
SELECT task_id, command, result, error, effects, at FROM inbox WHERE task_id = ANY(:ids) ORDER BY at, task_id
""")

DELIVERIES = text("""
SELECT id::text, event_id::text, event_type, payload, handler, status, attempts, reruns, created_at,
       finished_at, due_at, worker, last_error, correlation_id, causation_id, edited_from::text, reason,
       traceparent, effects
FROM deliveries WHERE correlation_id = :id ORDER BY created_at, id LIMIT :limit
""")

ATTEMPTS = text("""
SELECT delivery_id::text AS delivery_id, at, run, number, worker, error FROM attempts
WHERE delivery_id = ANY(CAST(:ids AS uuid[])) ORDER BY at
""")

ACTIONS = text("""
SELECT delivery_id::text AS delivery_id, at, action, actor, reason FROM actions
WHERE delivery_id = ANY(CAST(:ids AS uuid[])) ORDER BY at
""")

WAITING = text("""
SELECT event_id::text, event_type, causation_id, at FROM announcements WHERE correlation_id = :id
""")

LETTERS = text("SELECT id::text, task, reason, error, at FROM dead_letters WHERE task_id = :id ORDER BY at")

#: The correlation id of a delivery, for those who have only its own id.
OF_DELIVERY = text("SELECT correlation_id FROM deliveries WHERE id = CAST(:id AS uuid)")

#: The id of a command in a message with many.
PART = re.compile(r"(.+)\.\d+", re.DOTALL)

#: Deliveries of one order that are shown.
LIMIT = 1000


@dataclass
class Step:
    """Something that happened, and what it led to."""

    what: str
    at: datetime | None = None  # None if only the order of events is known
    state: str = ""
    why: str = ""  # an error, a reason
    delivery_id: str | None = None
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    """The whole story that began with one message."""

    correlation_id: str
    trace_id: str | None
    steps: Sequence[Step]

    @property
    def began(self) -> datetime | None:
        """Return the time of the first step that has one."""
        return min((at for at in _times(self.steps)), default=None)


def _times(steps: Iterable[Step]) -> Iterable[datetime]:
    for step in steps:
        if step.at is not None:
            yield step.at
        yield from _times(step.steps)


def story_of(runtime: Runtime, correlation_id: str) -> Order | None:
    """Return all that is stored about a message; None if nothing.

    It is given by its id, that of a delivery, or that of one of its commands, if it has many.
    """
    wanted = storable(correlation_id)
    with runtime.engine.connect() as connection:
        if is_id(wanted):
            wanted = connection.execute(OF_DELIVERY, {"id": wanted}).scalar() or wanted
        facts = _Facts.read(connection, wanted, runtime.settings.bulk_max)
        if (found := PART.fullmatch(wanted)) and not facts.has_events:
            whole = _Facts.read(connection, found[1], runtime.settings.bulk_max)
            if whole.has_any:
                wanted, facts = found[1], whole
    if not facts.has_any:
        return None
    traced = (row.traceparent.split("-")[1] for row in facts.deliveries if row.traceparent)
    return Order(wanted, next(traced, None), _Tree(runtime, facts).steps(wanted))


@dataclass(frozen=True)
class _Facts:
    """The rows of one order."""

    commands: Sequence[Any]
    deliveries: Sequence[Any]
    attempts: Mapping[str, list[Any]]  # by delivery
    actions: Mapping[str, list[Any]]  # by delivery
    waiting: Mapping[str, Any]  # unpublished events by id
    letters: Sequence[Any]

    @property
    def has_any(self) -> bool:
        """Return whether anything is stored."""
        return bool(self.commands or self.letters or self.has_events)

    @property
    def has_events(self) -> bool:
        """Return whether events are stored that belong to the order."""
        return bool(self.deliveries or self.waiting)

    @classmethod
    def read(cls, connection: Connection, wanted: str, bulk_max: int) -> _Facts:
        ids = [wanted, *(f"{wanted}.{number}" for number in range(bulk_max))]
        deliveries = connection.execute(DELIVERIES, {"id": wanted, "limit": LIMIT}).all()
        of_them = {"ids": [row.id for row in deliveries]}
        return cls(
            connection.execute(COMMANDS, {"ids": ids}).all(),
            deliveries,
            _by_delivery(connection.execute(ATTEMPTS, of_them)),
            _by_delivery(connection.execute(ACTIONS, of_them)),
            {row.event_id: row for row in connection.execute(WAITING, {"id": wanted})},
            connection.execute(LETTERS, {"id": wanted}).all(),
        )


def _by_delivery(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.delivery_id, []).append(row)
    return found


@dataclass(frozen=True)
class _Tree:
    """Puts the rows below what caused them."""

    runtime: Runtime
    facts: _Facts

    @property
    def _project(self) -> Project:
        return self.runtime.project

    def steps(self, wanted: str) -> list[Step]:
        steps = [self._command(row) for row in self.facts.commands]
        known = {row.task_id for row in self.facts.commands} | {row.id for row in self.facts.deliveries}
        # What is left began with a command whose answer was pruned or is not there yet, or with an operator.
        causes = dict.fromkeys(row.causation_id for row in self.facts.deliveries)
        steps += [
            Step(f"command {cause}", state="not stored", steps=self._events(cause, None))
            for cause in causes
            if cause not in known
        ]
        steps += [
            Step(f"dead letter {row.id} for {row.task}", row.at, row.reason, row.error)
            for row in self.facts.letters
        ]
        return steps or [Step(f"message {wanted}", state="waiting", steps=self._events(wanted, None))]

    def _command(self, row: Any) -> Step:
        if row.error is not None:
            why = f"{row.error['type']}: {' '.join(map(str, row.error['args']))}"
            return Step(row.error.get("command") or row.task_id, row.at, "refused", why)
        return Step(
            f"{row.command}: {row.result!r}",
            row.at,
            "done",
            steps=self._events(row.task_id, row.effects, row.at),
        )

    def _events(self, cause: str, effects: Any, at: datetime | None = None, depth: int = 0) -> list[Step]:
        """Return the events that a message raised, with their deliveries, and the mails that it sent.

        `depth` counts the deliveries above: where events raise each other for ever, the rest is left out.
        """
        effects = effects or {}
        events: dict[str, str] = dict(effects.get("events", ()))
        mine = [row for row in self.facts.deliveries if row.causation_id == cause]
        events |= {row.event_id: row.event_type for row in mine}
        waiting = [row for row in self.facts.waiting.values() if row.causation_id == cause]
        events |= {row.event_id: row.event_type for row in waiting}
        mails = [Step(f"mail {mail}", at, "sent") for mail in effects.get("mails", ())]
        if events and depth >= MAX_CHAIN:
            return [*mails, Step(f"{', '.join(events.values())}, and what that led to", at, "not shown")]
        return mails + [
            self._event(event_id, kind, [row for row in mine if row.event_id == event_id], at, depth)
            for event_id, kind in events.items()
        ]

    def _event(self, event_id: str, kind: str, rows: Sequence[Any], at: datetime | None, depth: int) -> Step:
        shown = shown_event(self._project, _delivery(rows[0])) if rows else kind
        waits = self.facts.waiting.get(event_id)
        state = "to be published" if waits else "published" if self.runtime.settings.announce else "raised"
        raised = rows[0].created_at if rows else waits.at if waits else at
        return Step(shown, raised, state, steps=[self._of_delivery(row, depth) for row in rows])

    def _of_delivery(self, row: Any, depth: int) -> Step:
        attempts = [
            Step(f"attempt {one.number}{_after(one.run)} on {one.worker}", one.at, "failed", one.error)
            for one in self.facts.attempts.get(row.id, ())
        ]
        actions = [
            Step(f"{one.action} by {one.actor}", one.at, why=one.reason or "")
            for one in self.facts.actions.get(row.id, ())
        ]
        steps = sorted([*attempts, *actions], key=lambda step: step.at.timestamp() if step.at else 0)
        if row.status == Status.DONE:
            done = Step(
                f"attempt {row.attempts}{_after(row.reruns)} on {row.worker}", row.finished_at, "done"
            )
            steps.append(replace(done, steps=self._events(row.id, row.effects, row.finished_at, depth + 1)))
        return Step(
            f"{row.handler}, delivery {row.id}", row.created_at, row.status, row.reason or "", row.id, steps
        )


def _delivery(row: Any) -> Delivery:
    return Delivery(row.id, row.event_type, row.payload, row.handler, row.correlation_id, row.causation_id)


def _after(run: int) -> str:
    return f" after re-run {run}" if run else ""
