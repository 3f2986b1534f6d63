"""A span for each round trip to PostgreSQL that belongs to a traced message.

The maintained instrumentation of psycopg2 does not fit: our transactions put values into the statement before
they send it, several statements at once, so their text would be a payload. Here the text is the one before
that, and is summarized. (docs/adr/043)
Source: https://opentelemetry.io/docs/specs/semconv/database/database-spans/
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from psycopg2.extensions import cursor

from messaging.telemetry.provider import tracer
from messaging.tracing import note_error

#: Texts of prepared statements, by name.
_prepared: dict[str, str] = {}
_PREPARE = re.compile(r"PREPARE (\w+) \(.*?\) AS\s+(.*)", re.DOTALL)
_EXECUTE = re.compile(r"EXECUTE (\w+) ")
_STEPS = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM|FROM)\s+([a-z_]+)\b")
_VERBS = {"INSERT INTO": "INSERT", "DELETE FROM": "DELETE", "FROM": "SELECT"}
_MAX_STEPS = 8


class TracedCursor(cursor):
    """A cursor that notes what it is asked to run, and traces it within the current span."""

    _texts: tuple[str, ...] = ()  # put into the next round trip

    def mogrify(self, sql: Any, params: Any = None) -> bytes:
        """Put parameters into SQL, and note the SQL without them."""
        self._texts = (*self._texts, sql)
        return super().mogrify(sql, params)

    def execute(self, sql: Any, params: Any = None) -> None:
        """Run statements in a span, if they belong to one."""
        if isinstance(sql, str) and (found := _PREPARE.match(sql)):  # rare: once per connection
            _prepared[found[1]] = found[2]
            super().execute(sql, params)
            return
        texts, self._texts = self._texts, ()
        if not trace.get_current_span().is_recording():
            super().execute(sql, params)
            return
        if isinstance(sql, str):
            texts = (*texts, sql)
        steps = _summary(texts, isinstance(sql, bytes) and sql.endswith(b"COMMIT"))
        span = tracer().start_span(
            steps,
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": "postgresql", "db.query.summary": steps},
        )
        try:
            super().execute(sql, params)
        except BaseException as error:
            note_error(span, error)
            raise
        finally:
            span.end()


@lru_cache(maxsize=1000)
def _summary(texts: tuple[str, ...], commits: bool) -> str:
    """Return what the statements do, such as `SELECT products; INSERT deliveries; COMMIT`."""
    steps: list[str] = []
    for text in texts:
        found = _EXECUTE.match(text)
        sql = _prepared.get(found[1], text) if found else text
        steps += [f"{_VERBS.get(verb, verb)} {table}" for verb, table in _STEPS.findall(sql)] or [
            sql.split(None, 1)[0].upper()
        ]
    return "; ".join([*dict.fromkeys(steps[:_MAX_STEPS]), *(["COMMIT"] if commits else [])])
