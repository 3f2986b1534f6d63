"""The trace that the current work belongs to, in the W3C format `traceparent`.

Nothing here imports OpenTelemetry: a program that has not loaded it traces nothing, and pays a look-up.
Source: https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from messaging.texts import class_name

#: The header of a message, the column of a row, and the extension of a CloudEvent.
TRACEPARENT = "traceparent"
#: The header of a re-run's message: the trace of the first run, to which the new trace links.
RERUN_OF = "rerun_of_traceparent"

#: The header of a message with many commands: the trace of each, or null.
TRACES = "traceparents"
#: Traces of commands in one message; more would make its headers too long.
MAX_TRACES = 500

_FORMAT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


def current() -> str | None:
    """Return the current span's `traceparent`; None while nothing is traced."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def checked(value: object) -> str | None:
    """Return a `traceparent` from a message, None if it is none: any sender may have written it."""
    return value if isinstance(value, str) and _FORMAT.fullmatch(value) else None


def worth_sending(traces: Sequence[str | None]) -> bool:
    """Tell whether a message with many commands carries their traces."""
    return any(traces) and len(traces) <= MAX_TRACES


def checked_many(value: object) -> tuple[str | None, ...]:
    """Return the traces of a message with many commands."""
    return tuple(map(checked, value[:MAX_TRACES])) if isinstance(value, list) else ()


@contextmanager
def sending(
    system: str,
    destination: str,
    message_id: str,
    correlation_id: str,
    *,
    of: str | None = None,
    rerun: bool = False,
    operation: str = "send",
    links: Sequence[str | None] = (),
) -> Iterator[dict[str, str]]:
    """Trace the sending of one message, and yield the headers that carry its trace to whoever handles it.

    `of` is the trace that it belongs to, else the current one. A re-run begins a new trace, with a link.
    `links` are the traces of what is sent together.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield {RERUN_OF if rerun else TRACEPARENT: of} if of else {}
        return
    above = span_context(of)
    linked = [above] if rerun and above else [span_context(link) for link in links[:MAX_TRACES] if link]
    parent = _empty_context() if rerun else context_of(above)
    span = trace.get_tracer(__name__).start_span(
        f"{operation} {destination}",
        parent,
        kind=trace.SpanKind.PRODUCER,
        links=[trace.Link(context) for context in linked],
        attributes={
            "messaging.system": system,
            "messaging.operation.name": operation,
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
            "messaging.message.id": message_id,
            "messaging.message.conversation_id": correlation_id,
        },
    )
    with within(span):
        sent = current()
        headers = {TRACEPARENT: sent} if sent else {}
        if rerun and of:
            headers[RERUN_OF] = of
        yield headers


@contextmanager
def within(span: Any) -> Iterator[None]:
    """Make a span current, and end it; of an error it has the class alone, since its text is a payload."""
    trace = sys.modules["opentelemetry.trace"]
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            note_error(span, error)
            raise


def note_error(span: Any, error: BaseException) -> None:
    """Mark a span as failed."""
    span.set_attribute("error.type", class_name(error))
    span.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR)


def span_context(traceparent: str | None) -> Any:
    """Return OpenTelemetry's span context of a `traceparent`; None for None."""
    if traceparent is None:
        return None
    trace = sys.modules["opentelemetry.trace"]
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    )


def context_of(above: Any) -> Any:
    """Return the context below a span context; None, which means the current context, for None."""
    if above is None:
        return None
    trace = sys.modules["opentelemetry.trace"]
    return trace.set_span_in_context(trace.NonRecordingSpan(above), _empty_context())


def _empty_context() -> Any:
    return sys.modules["opentelemetry.context"].Context()
