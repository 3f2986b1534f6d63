"""Check each message before Celery handles it: Celery itself trusts its senders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware

from reliable_celery.errors import InvalidMessage

MAX_NAME = 255  # characters of a name or an id
MAX_HEADERS = 65_536  # characters in all headers together, and in all properties
MAX_DEPTH = 64  # levels of lists and tables
MAX_COUNT = 1_000  # retries and nesting; waits are 2 to the power of the retries
CONTAINERS = (dict, list, tuple)  # a tuple, since isinstance is slow with a union
MAX_TIME_LIMIT_S = 86_400  # where the app sets no time limit

NAMES = ("root_id", "parent_id", "group", "taskset", "shadow", "lang", "origin", "meth")
COUNTS = ("retries", "replaced_task_nesting", "group_index")
FLAGS = ("ignore_result", "utc", "redelivered")
CALLBACKS = ("callbacks", "errbacks", "chain", "chord")
#: Headers that Celery overwrites, whatever a sender sets.
OVERWRITTEN = ("args", "kwargs", "properties", "hostname", "reply_to", "correlation_id", "delivery_info")
#: Headers that Celery knows or overwrites. Senders may add others, unless they would replace an attribute of
#: the task's `request` (its method `get`, its flag `called_directly`).
KNOWN = frozenset((
    *NAMES, *COUNTS, *FLAGS, *CALLBACKS, *OVERWRITTEN, "task", "id", "eta", "expires", "timelimit",
    "argsrepr", "kwargsrepr", "stamped_headers", "stamps", "headers",
))  # fmt: skip
RESERVED = frozenset(dir(Context)) - KNOWN
#: In protocol 1, Celery prefers these headers to the fields of the body. The broker adds `redelivered`, and
#: tools for tracing add `headers`.
IN_BODY = KNOWN.difference(OVERWRITTEN, ("headers", "redelivered"))

#: Tasks that come with Celery and run other tasks, named in the message.
RUNS_OTHERS = frozenset(
    f"celery.{name}"
    for name in ("accumulate", "chain", "chord", "chord_unlock", "chunks", "group", "map", "starmap")
)


@dataclass(frozen=True)
class Limits:
    """What a message may ask for; each comes from the Celery setting of the same name."""

    message_max_bytes: int = 1_048_576  # of the body
    message_max_eta_s: float = 86_400.0  # seconds from now; keep longer waits in a database
    message_allow_callbacks: bool = False  # whether a message may name tasks to run after it
    task_time_limit: float | None = None  # seconds; a message may ask for no more

    @classmethod
    def of(cls, conf: Any) -> Limits:
        """Read them from an app's configuration."""
        return cls(
            conf.get("message_max_bytes", cls.message_max_bytes),
            conf.get("message_max_eta_s", cls.message_max_eta_s),
            conf.get("message_allow_callbacks", cls.message_allow_callbacks),
            conf.get("task_time_limit") or MAX_TIME_LIMIT_S,
        )


def check_message(message: Any, limits: Limits) -> str:
    """Return the name of the task that kombu's `message` names.

    Raises InvalidMessage, or whatever decoding the body raises.
    """
    _require(
        len(message.body or b"") <= limits.message_max_bytes,
        "body",
        f"is over {limits.message_max_bytes} bytes",
    )
    for name, table in ("headers", message.headers), ("properties", message.properties):
        _check_table(name, table)
    for name in "reply_to", "correlation_id":
        _check_name(name, message.properties.get(name) or None)
    payload = message.payload
    _require(_is_flat(payload), "body", f"is nested more than {MAX_DEPTH} deep")
    fields, embed = _take_apart(message.headers, payload)
    _check_fields(fields, embed, limits)
    if fields is not message.headers:
        _check_headers_of_protocol_1(message.headers)
    return str(fields["task"])


def _take_apart(headers: Mapping[str, Any], payload: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the fields that describe the task, and its embedded callbacks, in protocol 1 or 2."""
    if "task" in headers:
        rule = "must be JSON [args, kwargs, embed]"
        _require(isinstance(payload, list | tuple) and len(payload) == 3, "body", rule)
        args, kwargs, embed = payload
        _require(embed is None or isinstance(embed, dict), "body", rule)
        fields = headers
    else:
        _require(isinstance(payload, dict), "body", "names no task, and there is no header `task`")
        args, kwargs, embed = payload.get("args", ()), payload.get("kwargs", {}), {}
        fields = payload
    _require(isinstance(args, list | tuple), "args", "must be a list")
    _require(isinstance(kwargs, dict), "kwargs", "must be a table")
    return fields, embed or {}


def _check_headers_of_protocol_1(headers: Mapping[str, Any]) -> None:
    for name, value in headers.items():
        _require(name not in RESERVED, name[:MAX_NAME], "is not a header that a sender may set")
        _require(name not in IN_BODY, name, "must be in the body, not in a header")
        if name in FIELD_CHECKS and value is not None:
            FIELD_CHECKS[name](name, value)


def _check_fields(fields: Mapping[str, Any], embed: Mapping[str, Any], limits: Limits) -> None:
    for name in "task", "id":
        _require(bool(fields.get(name)), name, "is missing")
        _check_name(name, fields[name])
    for name in fields:
        _require(name not in RESERVED, name[:MAX_NAME], "is not a header that a sender may set")
    for name in embed:
        _require(name in CALLBACKS, name[:MAX_NAME], "is nothing that a body may embed")
    if not limits.message_allow_callbacks:
        for name in CALLBACKS:
            _require(
                not fields.get(name) and not embed.get(name), name, "may not be set: it runs other tasks"
            )
    for name, check in FIELD_CHECKS.items():
        if fields.get(name) is not None:
            check(name, fields[name])
    _check_times(fields, limits)


def _check_times(fields: Mapping[str, Any], limits: Limits) -> None:
    latest = datetime.now(UTC) + timedelta(seconds=limits.message_max_eta_s)
    for name in "eta", "expires":
        if fields.get(name) is not None:
            at = timestamp(name, fields[name])
            _require(
                name == "expires" or at <= latest.timestamp(),
                name,
                f"is over {limits.message_max_eta_s} s away",
            )
    limit = limits.task_time_limit or MAX_TIME_LIMIT_S
    pair = fields.get("timelimit") or (None, None)
    rule = f"must be two times of 0 to {limit} s, or null"
    _require(isinstance(pair, list | tuple) and len(pair) == 2, "timelimit", rule)
    for seconds in pair:
        _require(seconds is None or (_is_number(seconds) and 0 <= seconds <= limit), "timelimit", rule)


def timestamp(name: str, value: Any) -> float:
    """Return a field's time as Unix time; without a zone it is in UTC, as in Celery.

    Raises InvalidMessage.
    """
    try:
        return float(maybe_make_aware(maybe_iso8601(value), UTC).timestamp())
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise InvalidMessage(name, "must be a time in ISO 8601") from None


def _check_table(name: str, table: Any) -> None:
    _require(isinstance(table, dict), name, "must be a table")
    _require(_is_flat(table), name, f"are nested more than {MAX_DEPTH} deep")
    size = sum(
        len(key) + len(value if isinstance(value, str) else repr(value))
        for key, value in table.items()
        if key != "redelivered"  # the broker adds to the sender's headers
    )
    _require(size <= MAX_HEADERS, name, f"are over {MAX_HEADERS} characters")


def _check_name(name: str, value: Any) -> None:
    valid = value is None or (isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable())
    _require(valid, name, f"must be a text of up to {MAX_NAME} printable characters")


def _check_count(name: str, value: Any) -> None:
    _require(
        _is_number(value) and isinstance(value, int) and 0 <= value <= MAX_COUNT,
        name,
        f"is not 0 to {MAX_COUNT}",
    )


def _must_be(kind: type, what: str) -> Callable[[str, Any], None]:
    return lambda name, value: _require(isinstance(value, kind), name, f"must be {what}")


def _check_names(name: str, value: Any) -> None:
    _require(isinstance(value, list), name, "must be a list of texts")
    for item in value:
        _check_name(name, item or "")


FIELD_CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(NAMES, _check_name),
    **dict.fromkeys(COUNTS, _check_count),
    **dict.fromkeys(FLAGS, _must_be(bool, "true or false")),
    **dict.fromkeys(("argsrepr", "kwargsrepr"), _must_be(str, "a text")),
    **dict.fromkeys(("stamps", "headers"), _must_be(dict, "a table")),
    "stamped_headers": _check_names,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flat(value: Any) -> bool:
    """Whether lists and tables are nested at most MAX_DEPTH deep; iterates, so any depth is safe."""
    level: Iterable[Any] = [value]
    for _ in range(MAX_DEPTH):
        tables = [item for item in level if isinstance(item, CONTAINERS)]
        if not tables:
            return True
        level = [
            child for table in tables for child in (table.values() if isinstance(table, dict) else table)
        ]
    return not any(isinstance(item, CONTAINERS) for item in level)


def _require(holds: bool, field: str, rule: str) -> None:
    if not holds:
        raise InvalidMessage(field, rule)
