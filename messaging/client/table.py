"""The statements over the table of commands: what a send writes, and each step that a relay takes.

A command is unsent (no `task_id`), under way (a `task_id`, no answer), answered, then handled. The commands
of one message share its task id from the claim to the answer, so that a message that is sent again is the
same one: the backend then gives the first answer, a refusal too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from messaging.client.connections import Row, Statements
from messaging.tracing import TRACEPARENT


@dataclass(frozen=True)
class Entry:
    """A command as the table has it."""

    position: int
    key: str
    task: str
    fields: str  # JSON
    attempts: int
    answer: str | None = None  # JSON
    traceparent: str | None = None  # the trace that it was sent in

    @classmethod
    def of(cls, row: Row) -> Entry:
        """Read a row of `_ENTRY`, with or without the trace."""
        return cls(int(row[0]), row[1], row[2], row[3], int(row[4]), *row[5:])


@dataclass(frozen=True)
class Waiting:
    """How many commands wait for what, and for how long the oldest of them has."""

    unsent: int
    unanswered: int
    unhandled: int  # answered, but not taken note of by the app
    oldest_s: float  # seconds since it was written; 0 when nothing waits

    @property
    def count(self) -> int:
        """Return how many wait in all."""
        return self.unsent + self.unanswered + self.unhandled


#: JSON of the commands in one message; the backend's ALLOCATION_MESSAGE_MAX_BYTES is above it.
MAX_BYTES = 400_000
_ENTRY = "position, idempotency_key, task, fields, attempts, answer"
#: The one before it in its group has no answer yet.
_BEHIND = (
    "EXISTS (SELECT 1 FROM {table} earlier WHERE earlier.order_group = command.order_group"
    " AND earlier.position < command.position AND earlier.answered_at IS NULL)"
)
_UNDER_WAY = "task_id IS NOT NULL AND answered_at IS NULL"
#: What a command waits in: unsent, unanswered, unhandled.
_STEPS = ("task_id IS NULL", _UNDER_WAY, "answered_at IS NOT NULL AND handled_at IS NULL")


@dataclass(frozen=True)
class CommandTable:
    """A table in the caller's database; each method is a part of a transaction of the caller's."""

    name: str
    #: Whether the relay reads traces: a table of an earlier release lacks their column.
    traced: bool = False

    @property
    def _entry(self) -> str:
        return f"{_ENTRY}, {TRACEPARENT}" if self.traced else _ENTRY

    def has_traces(self, run: Statements) -> bool:
        """Return whether the table has the column of traces."""
        return bool(run.read(run.dialect.column, (self.name, TRACEPARENT)))

    def add(
        self,
        run: Statements,
        key: str,
        task: str,
        fields: str,
        group: str | None,
        traceparent: str | None = None,
    ) -> bool:
        """Insert a command; False when the key is taken."""
        before, after = run.dialect.insert
        now = run.dialect.now
        column, value = ("", ()) if traceparent is None else (f", {TRACEPARENT}", (traceparent,))
        sql = (
            f"{before} {self.name} (idempotency_key, task, fields, order_group, created_at, due_at{column})"
            f" VALUES (%s, %s, %s, %s, {now}, {now}{', %s' if value else ''}) {after}"
        )
        return run.write(sql, (key, task, fields, group, *value)) == 1

    def find(self, run: Statements, key: str) -> Entry | None:
        """Return the command under a key."""
        sql = f"SELECT {_ENTRY} FROM {self.name} WHERE idempotency_key = %s {run.dialect.newest}"
        rows = run.read(sql, (key,))
        return Entry.of(rows[0]) if rows else None

    def begin(self, run: Statements) -> None:
        """Run first in each transaction of a relay."""
        if run.dialect.begin:
            run.write(run.dialect.begin.format(table=self.name))

    def claim(self, run: Statements, task_id: str, size: int, lease_s: float) -> list[Entry]:
        """Put commands that may go into a message, as many as fit; others wait until its lease is over."""
        now = run.dialect.now
        rows = run.read(
            f"SELECT {self._entry} FROM {self.name} command WHERE task_id IS NULL AND due_at <= {now}"
            f" AND (order_group IS NULL OR NOT {_BEHIND.format(table=self.name)})"
            f" ORDER BY position LIMIT %s {run.dialect.for_update}",
            (size,),
        )
        entries = _fitting([Entry.of(row) for row in rows])
        self._put_into(run, task_id, entries, lease_s)
        return [replace(entry, attempts=entry.attempts + 1) for entry in entries]

    def _put_into(self, run: Statements, task_id: str, entries: Sequence[Entry], lease_s: float) -> None:
        if entries:
            marks, positions = _those(entries)
            run.write(
                f"UPDATE {self.name} SET task_id = %s, attempts = attempts + 1, sent_at = NULL,"
                f" due_at = {run.dialect.now} + %s WHERE position IN ({marks})",
                (task_id, lease_s, *positions),
            )

    def claim_again(self, run: Statements, lease_s: float) -> tuple[str, list[Entry]] | None:
        """Take a message that was not confirmed or not answered in time, None if no message is due."""
        due = f"{_UNDER_WAY} AND due_at <= {run.dialect.now}"
        found = run.read(f"SELECT task_id FROM {self.name} WHERE {due} ORDER BY due_at LIMIT 1")
        if not found:
            return None
        task_id: str = found[0][0]
        claimed = run.write(
            f"UPDATE {self.name} SET due_at = {run.dialect.now} + %s, attempts = attempts + 1"
            f" WHERE task_id = %s AND {due}",
            (lease_s, task_id),
        )
        if not claimed:
            return None
        rows = run.read(
            f"SELECT {self._entry} FROM {self.name} WHERE task_id = %s AND answered_at IS NULL"
            " ORDER BY position",
            (task_id,),
        )
        return task_id, [Entry.of(row) for row in rows]

    def confirm(self, run: Statements, task_id: str, answer_after_s: float) -> None:
        """Note that the broker has a message, and when it is sent again for want of an answer."""
        run.write(
            f"UPDATE {self.name} SET sent_at = {run.dialect.now}, due_at = {run.dialect.now} + %s"
            f" WHERE task_id = %s AND answered_at IS NULL",
            (answer_after_s, task_id),
        )

    def give_back(self, run: Statements, task_id: str) -> None:
        """Note that the broker did not confirm a message, which is to be sent as soon as it can be."""
        run.write(
            f"UPDATE {self.name} SET due_at = {run.dialect.now}, attempts = attempts - 1"
            f" WHERE task_id = %s AND answered_at IS NULL",
            (task_id,),
        )

    def put_off(self, run: Statements, task_id: str, after_s: float) -> None:
        """Note that a message could not be sent, and when that is tried again."""
        run.write(
            f"UPDATE {self.name} SET due_at = {run.dialect.now} + %s"
            " WHERE task_id = %s AND answered_at IS NULL",
            (after_s, task_id),
        )

    def hasten(self, run: Statements, task_id: str, within_s: float) -> None:
        """Have a message sent again in so many seconds, or earlier."""
        now = run.dialect.now
        run.write(
            f"UPDATE {self.name} SET due_at = {now} + %s"
            f" WHERE task_id = %s AND answered_at IS NULL AND due_at > {now} + %s",
            (within_s, task_id, within_s),
        )

    def under_way(self, run: Statements, limit: int) -> list[str]:
        """Return the task ids of messages that have no answer yet, the oldest first."""
        rows = run.read(
            f"SELECT task_id FROM {self.name} WHERE {_UNDER_WAY}"
            " GROUP BY task_id ORDER BY min(position) LIMIT %s",
            (limit,),
        )
        return [row[0] for row in rows]

    def lock_message(self, run: Statements, task_id: str) -> list[Entry]:
        """Return a message's commands, which no other relay answers meanwhile; none if that was done."""
        waits = run.dialect.for_update.removesuffix(" SKIP LOCKED")
        rows = run.read(
            f"SELECT {_ENTRY} FROM {self.name} WHERE task_id = %s AND answered_at IS NULL"
            f" ORDER BY position {waits}",
            (task_id,),
        )
        return [Entry.of(row) for row in rows]

    def answer(self, run: Statements, answers: Mapping[int, str], *, handled: bool) -> None:
        """Write the answers to commands, by their positions."""
        if not answers:
            return
        now = run.dialect.now
        cases = " ".join("WHEN %s THEN %s" for _ in answers)
        marks = ", ".join("%s" for _ in answers)
        run.write(
            f"UPDATE {self.name} SET answer = CASE position {cases} END, answered_at = {now},"
            f" handled_at = {now if handled else 'NULL'}, due_at = {now}, attempts = 0"
            f" WHERE position IN ({marks})",
            (*(part for pair in answers.items() for part in pair), *answers),
        )

    def try_later(self, run: Statements, entries: Sequence[Entry], after_s: float) -> None:
        """Make commands unsent again, for a message of another id."""
        if entries:
            marks, positions = _those(entries)
            run.write(
                f"UPDATE {self.name} SET task_id = NULL, sent_at = NULL, due_at = {run.dialect.now} + %s"
                f" WHERE position IN ({marks})",
                (after_s, *positions),
            )

    def answered(self, run: Statements, limit: int, *, failed_before: bool) -> list[Entry]:
        """Return answered commands that no other relay has the app take note of meanwhile."""
        rows = run.read(
            f"SELECT {_ENTRY} FROM {self.name} WHERE answered_at IS NOT NULL AND handled_at IS NULL"
            f" AND due_at <= {run.dialect.now} AND attempts {'> 0' if failed_before else '= 0'}"
            f" ORDER BY answered_at, position LIMIT %s {run.dialect.for_update}",
            (limit,),
        )
        return [Entry.of(row) for row in rows]

    def handled(self, run: Statements, entries: Sequence[Entry]) -> None:
        """Note that the app has taken note of answers."""
        marks, positions = _those(entries)
        run.write(
            f"UPDATE {self.name} SET handled_at = {run.dialect.now} WHERE position IN ({marks})", positions
        )

    def handle_later(self, run: Statements, entry: Entry, after_s: float) -> None:
        """Note that the app failed to take note of an answer."""
        run.write(
            f"UPDATE {self.name} SET attempts = attempts + 1, due_at = {run.dialect.now} + %s"
            " WHERE position = %s AND handled_at IS NULL",
            (after_s, entry.position),
        )

    def send_again(self, run: Statements, key: str) -> bool:
        """Make an answered command unsent; False when there is none under this key."""
        changed = run.write(
            f"UPDATE {self.name} SET task_id = NULL, sent_at = NULL, answer = NULL, answered_at = NULL,"
            f" handled_at = NULL, attempts = 0, due_at = {run.dialect.now}"
            " WHERE idempotency_key = %s AND answered_at IS NOT NULL",
            (key,),
        )
        return changed == 1

    def prune(self, run: Statements, retention_s: float, limit: int) -> int:
        """Delete commands that were handled this many seconds ago, at most `limit`; return their number."""
        rows = run.read(
            f"SELECT position FROM {self.name} WHERE handled_at < {run.dialect.now} - %s"
            f" ORDER BY handled_at LIMIT %s {run.dialect.for_update}",
            (retention_s, limit),
        )
        positions = [row[0] for row in rows]
        if positions:
            marks = ", ".join("%s" for _ in positions)
            run.write(f"DELETE FROM {self.name} WHERE position IN ({marks})", positions)
        return len(positions)

    def anything_waits(self, run: Statements) -> bool:
        """Tell whether there is a command that is not handled, without counting."""
        return any(run.read(f"SELECT 1 FROM {self.name} WHERE {step} LIMIT 1") for step in _STEPS)

    def waiting(self, run: Statements) -> Waiting:
        """Count what waits."""
        counts = [
            run.read(f"SELECT count(*), {run.dialect.now} - min(created_at) FROM {self.name} WHERE {step}")[0]
            for step in _STEPS
        ]
        unsent, unanswered, unhandled = (int(count) for count, _ in counts)
        ages = (float(age) for _, age in counts if age is not None)
        return Waiting(
            unsent, unanswered, unhandled, max(0.0, *ages) if unsent + unanswered + unhandled else 0.0
        )


def _those(entries: Sequence[Entry]) -> tuple[str, list[int]]:
    """Return the placeholders and the values for `position IN (…)`."""
    return ", ".join("%s" for _ in entries), [entry.position for entry in entries]


def _fitting(entries: Sequence[Entry]) -> list[Entry]:
    """Return as many of the first entries as fit into a message, one at least."""
    size, fitting = 0, list[Entry]()
    for entry in entries:
        size += len(entry.fields) + len(entry.key) + len(entry.task) + 20
        if fitting and size > MAX_BYTES:
            break
        fitting.append(entry)
    return fitting
