"""The inbox: one answer per message, one effect per idempotency key, and crashes per message."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from messaging.bus import MessageBus
from messaging.errors import InvalidMessage
from messaging.messages import Command
from messaging.postgres.commits import WAIT_FOR_STANDBY
from messaging.postgres.effects import Effects
from messaging.postgres.transaction import Row, Statement, Transaction
from messaging.texts import cut, repr_of, text_of
from messaging.wire.replay import same_message
from reliable_celery.errors import MEANT_FOR_CELERY

MAX_STORED_TEXT = 10_000  # characters of an error, and of each of its arguments

FIND = """
SELECT task_id, coalesce(idempotency_key, task_id), command, result, error FROM inbox
WHERE task_id = ANY(%(ids)s) OR (coalesce(idempotency_key, task_id) = ANY(%(keys)s) AND error IS NULL)"""

# A refusal begins as an effect under its key: it waits for a copy of the message, or for another message with
# the key, that is about to commit, and those that come later wait for it. Each answer that stands is kept.
RESERVE = Statement(
    """
INSERT INTO inbox (task_id, idempotency_key, command, at) VALUES ($1, $2, '', '-infinity')
ON CONFLICT DO NOTHING""",
    *("text", "text"),
)

REFUSE = Statement(
    "UPDATE inbox SET error = $2, at = now() WHERE task_id = $1 AND at = '-infinity' RETURNING true",
    *("text", "json"),
)

ANSWER = Statement(
    "INSERT INTO inbox (task_id, idempotency_key, command, result, effects) VALUES ($1, $2, $3, $4, $5)",
    *("text", "text", "text", "jsonb", "json"),
)


@dataclass(frozen=True)
class CommandJob:
    """A command from outside: its inbox row answers copies of the message and repeats with the same key."""

    id: str  # of the message; its result is stored under it
    command: Command
    correlation_id: str
    idempotency_key: str | None = None  # the sender's, else the id
    effects: Effects = field(default_factory=Effects, compare=False, repr=False)
    shares: Transaction | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """Return the idempotency key; the command takes effect once per key."""
        return self.idempotency_key or self.id

    @property
    def stored_key(self) -> str | None:
        """Return the key as the inbox stores it: null if it is the id."""
        return self.idempotency_key if self.idempotency_key != self.id else None

    def finish(self, transaction: Transaction, result: object) -> None:
        """Write the inbox row; unique indexes allow one answer per message and one effect per key.

        Nothing is claimed in advance: a copy waits for the aggregate's lock, then finds its id or key taken.
        """
        answer = self.id, self.stored_key, repr(self.command), json.dumps(result), self.effects.stored()
        transaction.write(ANSWER, answer)


@dataclass(frozen=True)
class Answer:
    """The answer to a command: a result, or the error of a refusal."""

    result: Any = None
    error: Exception | None = None
    recorded: bool = True  # else a copy of the message may get another answer

    def given(self) -> Any:
        """Return the result, or raise the error.

        Celery tells another error in place of one that cannot be pickled or is not JSON, and a copy could not
        repeat that. On some errors of a handler it acts, for instance on `MemoryError` by ending the worker.
        """
        if self.error is None:
            return self.result
        survives = all(map(_survives, self.error.args)) and _can_be_pickled(self.error)
        stays = survives and not isinstance(self.error, MEANT_FOR_CELERY)
        raise self.error if stays else _replaced(self.error)


@dataclass(frozen=True)
class Inbox:
    """Answers by task id, effects by idempotency key."""

    engine: Engine
    bus: MessageBus
    #: The error classes that stored refusals are rebuilt as, by name.
    errors: Mapping[str, type[Exception]] = field(default_factory=dict)

    def answer(self, job: CommandJob) -> Answer | None:
        """Return the answer to this message, else the result under its key, else None."""
        return self.answers([job]).get(job.id)

    def answers(self, jobs: Sequence[CommandJob]) -> dict[str, Answer]:
        """Return the answers to these messages by task id; messages without an answer are left out."""
        found = self._find([job.id for job in jobs], [job.key for job in jobs])
        by_id = {row[0]: row for row in found}
        by_key = {row[1]: row for row in found if row[4] is None}
        rows = ((job, by_id.get(job.id) or by_key.get(job.key)) for job in jobs)
        return {job.id: self._answer(job, row) for job, row in rows if row is not None}

    def refuse(self, job: CommandJob, error: Exception) -> Answer:
        """Store an error as a message's answer, unless it or its key has one; return the final answer."""
        return self.refuse_all([job], error)[job.id]

    def refuse_all(self, jobs: Sequence[CommandJob], error: Exception) -> dict[str, Answer]:
        """Store an error as the answer to those messages that have none; return the final answers by id."""
        answers: dict[str, Answer] = {}
        with Transaction(self.engine) as transaction:
            for job in jobs:
                if self.record_refusal(transaction, job, error):
                    answers[job.id] = Answer(error=error)
            transaction.commit()
        if others := [job for job in jobs if job.id not in answers]:
            answers |= self.answers(others)
        if lost := [job.id for job in jobs if job.id not in answers]:
            raise LookupError(f"the answer to {lost[0]} was pruned while it was read")
        return answers

    def record_refusal(self, transaction: Transaction, job: CommandJob, error: Exception) -> bool:
        """Write an error as a message's answer; False if the message or its key has an answer."""
        transaction.write(RESERVE, (job.id, job.stored_key))
        return bool(transaction.read(REFUSE, (job.id, json.dumps(_stored(job, error)))))

    def _find(self, ids: list[str], keys: list[str]) -> list[Row]:
        with Transaction(self.engine) as transaction:
            rows = transaction.read(FIND, {"ids": ids, "keys": keys})
            if rows:  # no answer is sent that a failover could undo
                transaction.write(WAIT_FOR_STANDBY)
                transaction.commit()
        return rows

    def _answer(self, job: CommandJob, row: Row) -> Answer:
        task_id, _, command, result, error = row
        if error is not None:
            return Answer(error=self._rebuilt(error))
        same = task_id == job.id
        # A plain `Command()` stands for an unreadable command: another release could read this same message.
        if not (same and job.command == Command()) and not same_message(self.bus, command, job.command):
            field = "id" if same else "idempotency_key"
            return Answer(error=InvalidMessage(field, "was used before, for another command"))
        return Answer(result)

    def _rebuilt(self, stored: Mapping[str, Any]) -> Exception:
        kind, args, shown = self.errors.get(stored["type"]), tuple(stored["args"]), stored.get("text")
        if kind is not None:
            with suppress(Exception):  # its class may want other arguments than it hands on
                error = kind(*args)
                if error.args == args and shown in (None, text_of(error)):
                    return error
        # Perhaps an unexpected error, whose class need not be importable here.
        return rebuilt(stored["type"], stored["module"], *args, text=shown)

    def count_crash(self, task_id: str) -> int:
        """Count another start of a redelivered message; return the count."""
        with self.engine.begin() as connection:
            count: int = connection.execute(
                text(
                    "INSERT INTO crashes (task_id) VALUES (:id)"
                    " ON CONFLICT (task_id) DO UPDATE SET count = crashes.count + 1, at = now()"
                    " RETURNING count"
                ),
                {"id": task_id},
            ).scalar_one()
        return count

    def forget_crashes(self, task_id: str) -> None:
        """Delete the count of a redelivered message once it was handled, whatever the outcome."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM crashes WHERE task_id = :id"), {"id": task_id})

    def prune(self, retention_s: float, limit: int = 5000) -> int:
        """Delete answers older than this many seconds, at most `limit`; return how many were deleted."""
        with self.engine.begin() as connection:
            gone = connection.execute(
                text(
                    "DELETE FROM inbox WHERE ctid = ANY(ARRAY("
                    " SELECT ctid FROM inbox WHERE at < now() - make_interval(secs => :age)"
                    " ORDER BY at LIMIT :limit FOR UPDATE SKIP LOCKED))"
                ),
                {"age": retention_s, "limit": limit},
            )
            connection.execute(
                text("DELETE FROM crashes WHERE at < now() - make_interval(secs => :age)"),
                {"age": retention_s},
            )
        return gone.rowcount


def _stored(job: CommandJob, error: Exception) -> dict[str, Any]:
    """Return the stored form of a refusal: enough to raise it again, and the command for people."""
    kind = type(error)
    args, text = _as_stored(error.args), text_of(error)
    stored = {
        "type": kind.__name__,
        "module": kind.__module__,
        "args": args,
        "command": cut(repr_of(job.command), MAX_STORED_TEXT),
    }
    made_of_args = text == text_of(Exception(*args))
    return stored if made_of_args else {**stored, "text": cut(text, MAX_STORED_TEXT)}


def rebuilt(name: str, module: str, *args: object, text: str | None = None) -> Exception:
    """Return an error of a class of this name, which can be pickled although it is not in that module.

    `text` is what `str` returns of it, if that is not made of `args`. A pickle lacks it: Celery tells `args`.
    """

    def reduced(error: Exception) -> tuple[Any, ...]:
        return rebuilt, (name, module, *error.args)

    own: dict[str, Any] = {"__module__": module, "__reduce__": reduced}
    if text is not None:
        own["__str__"] = lambda _error: text
    kind: type[Exception] = type(name, (Exception,), own)
    return kind(*args)


def _can_be_pickled(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  written here
    except Exception:  # noqa: BLE001  whatever its class does
        return False
    return True


def _replaced(error: Exception) -> Exception:
    """Return an error as a copy of the message will find it."""
    kind = type(error)
    return rebuilt(kind.__name__, kind.__module__, *_as_stored(error.args))


def _as_stored(arguments: Iterable[object]) -> list[Any]:
    """Return the arguments of an error as a copy of the message will find them."""
    found: list[Any] = json.loads(json.dumps([_storable(argument) for argument in arguments]))
    return found


def _storable(argument: object) -> object:
    """Return an argument of an error, or its text if the inbox would not return the same value."""
    if _survives(argument):
        return argument
    return cut(argument if isinstance(argument, str) else repr_of(argument), MAX_STORED_TEXT)


def _survives(argument: object) -> bool:
    """Return whether an argument of an error is short, and the same after it was written as JSON."""
    if isinstance(argument, str):
        return len(argument) <= MAX_STORED_TEXT
    try:
        written = json.dumps(argument, allow_nan=False)
        return len(written) <= MAX_STORED_TEXT and bool(json.loads(written) == argument)
    except Exception:  # noqa: BLE001  it may be anything
        return False


def known_errors(kinds: Iterable[type[Exception]]) -> dict[str, type[Exception]]:
    """Return error classes and their subclasses, by name."""
    found: dict[str, type[Exception]] = {}
    for kind in kinds:
        found[kind.__name__] = kind
        found |= known_errors(kind.__subclasses__())
    return found
