"""A span for each message that a worker handles, for the trace that the message belongs to.

Names and attributes follow the semantic conventions for messaging. No payloads: what a message says is in
the log and in the database. (docs/adr/043)
Source: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from messaging.telemetry.provider import tracer
from messaging.telemetry.work import Kind, Outcome, Work
from messaging.texts import class_name, one_line
from messaging.tracing import context_of, span_context

#: Work that has a trace. Housekeeping runs every few seconds and belongs to no order.
TRACED = (Kind.COMMAND, Kind.BATCH, Kind.DELIVERY)

NANOSECONDS = 1_000_000_000

#: Outcomes after which somebody has to look. A refusal is an answer.
FAILURES = (Outcome.RETRIED, Outcome.FAILED, Outcome.ERROR)


class Spans:
    """Follows work with spans."""

    def __init__(self, system: str) -> None:
        self._system = system  # "redis" or "rabbitmq"

    def begin(self, work: Work) -> tuple[Span, Any] | None:
        """Open a span, below the sender's or in a new trace; SQL and sends within become its children."""
        if work.kind not in TRACED:
            return None
        span = work.ahead[0] if work.ahead else self._started(work)
        return span, context.attach(trace.set_span_in_context(span))

    def end(self, work: Work, begun: tuple[Span, Any] | None) -> None:
        """Close it, with the outcome; in a group it ends after its own time, not after that of the others."""
        if begun is not None:
            span, token = begun
            _conclude(span, work)
            context.detach(token)
            span.end(work.ahead[1] + int(work.seconds * NANOSECONDS) if work.ahead else None)

    def enter(self, work: Work) -> Any:
        """Open a message's span, which `begin` finds."""
        work.ahead = span, _ = self._started(work), time.time_ns()
        return context.attach(trace.set_span_in_context(span)), None

    def enter_group(self, works: Sequence[Work]) -> Any:
        """Open a span of its own for what many orders share, with links to them."""
        above = [span_context(work.traceparent) for work in works if work.traceparent]
        span = tracer().start_span(
            f"group {works[0].queue}",
            links=[Link(one, {"bus.link": "shares"}) for one in above],
            attributes={
                "messaging.system": self._system,
                "messaging.destination.name": works[0].queue,
                "messaging.batch.message_count": len(works),
                "bus.kind": "group",
            },
        )
        return context.attach(trace.set_span_in_context(span)), span

    def leave(self, entered: tuple[Any, Span | None]) -> None:
        """Go back to what was followed before."""
        token, group = entered
        context.detach(token)
        if group is not None:
            group.end()

    def _started(self, work: Work) -> Span:
        # Without a sender's trace it begins one, unless its message has many: a group is above no order.
        above = None if work.traceparent is None and work.in_batch else _above(work)
        return tracer().start_span(
            f"process {work.queue}", above, SpanKind.CONSUMER, self._attributes(work), _links(work)
        )

    def _attributes(self, work: Work) -> dict[str, Any]:
        attributes = {
            "messaging.system": self._system,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": work.queue,
            "messaging.message.id": work.task_id,
            "messaging.message.conversation_id": work.correlation_id,
            "messaging.batch.message_count": work.count,
            "bus.task": one_line(work.task),
            "bus.kind": work.kind.value,
            "bus.handler": work.handler,
            "bus.causation_id": work.causation_id,
            "bus.attempt": work.attempt,
            "bus.redelivered": work.redelivered or None,
        }
        return {name: value for name, value in attributes.items() if value is not None}


def _links(work: Work) -> list[Link]:
    """Link a re-run to its first run, and a command to the message or the group that it was a part of."""
    links = []
    if work.rerun_of:
        links.append(Link(span_context(work.rerun_of), {"bus.link": "rerun of"}))
    around = trace.get_current_span().get_span_context()
    if around.is_valid and work.in_batch and work.traceparent:
        links.append(Link(around, {"bus.link": "sent in"}))
    elif around.is_valid and not work.in_batch:
        links.append(Link(around, {"bus.link": "handled in"}))
    return links


def _above(work: Work) -> context.Context:
    return context_of(span_context(work.traceparent)) or context.Context()


def _conclude(span: Span, work: Work) -> None:
    span.set_attribute("bus.outcome", work.outcome.value)
    if work.delivery is not None:
        span.set_attribute("bus.event", work.delivery.event_type)
        span.set_attribute("bus.attempt", work.attempt_number)
    if work.error is not None:
        span.set_attribute("error.type", class_name(work.error))
        if work.outcome in FAILURES:
            span.set_status(StatusCode.ERROR)
