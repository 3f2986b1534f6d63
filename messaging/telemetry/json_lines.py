"""The log as JSON: one object on each line, in the fields of the Elastic Common Schema and a few of our own.

Source: https://www.elastic.co/docs/reference/ecs/ecs-field-reference
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from celery._state import get_current_task

from messaging.telemetry.work import Kind, Work
from messaging.texts import class_name
from messaging.tracing import current

NANOSECONDS = 1_000_000_000


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object; a value that JSON cannot hold is shown as text."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return json.dumps(dict(self._fields(record)), default=repr)

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        yield "@timestamp", at.replace("+00:00", "Z")
        yield "log.level", record.levelname.lower()
        yield "message", record.getMessage()
        yield "log.logger", record.name
        yield "service.name", self._service
        yield "process.pid", record.process
        yield "process.name", record.processName
        work: Work | None = getattr(record, "work", None)
        yield from _of_work(work) if work is not None else _of_task()
        if (traceparent := current()) is not None:
            _, trace_id, span_id, _ = traceparent.split("-")
            yield "trace.id", trace_id
            yield "span.id", span_id
        if record.exc_info and record.exc_info[1] is not None:
            yield "error.type", class_name(record.exc_info[1])
            yield "error.stack_trace", self.formatException(record.exc_info)


def _of_work(work: Work) -> Iterator[tuple[str, Any]]:
    """Yield what is known at the end of a message."""
    yield from _ids(work.task, work.task_id, work.correlation_id, work.causation_id, work.attempt_number)
    yield "event.outcome", work.outcome.value
    yield "event.duration", int(work.seconds * NANOSECONDS)
    if work.kind is Kind.DELIVERY:
        yield "delivery.id", work.task_id
    if work.error is not None:
        yield "error.type", class_name(work.error)
        yield "error.message", work.why
    if work.claim is not None and work.claim.failure is not None:
        yield "error.stack_trace", work.claim.failure.traceback


def _of_task() -> Iterator[tuple[str, Any]]:
    """Yield the ids of the message that is being handled, if one is."""
    task = get_current_task()
    if task is not None and task.request.id:
        request = task.request
        attempt = (request.retries or 0) + 1
        yield from _ids(task.name, request.id, request.root_id or request.id, request.parent_id, attempt)


def _ids(
    task: str, task_id: str, correlation_id: str, causation_id: str | None, attempt: int
) -> Iterator[tuple[str, Any]]:
    yield "task.name", task
    yield "task.id", task_id
    yield "correlation.id", correlation_id
    if causation_id is not None:
        yield "causation.id", causation_id
    yield "attempt", attempt
