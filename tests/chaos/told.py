"""Compare each sender's answer with the database, for every command, in both directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command
from messaging.wire.validation import from_dict
from tests.chaos.sent import Sent
from tests.chaos.traffic import TRY_AGAIN
from tests.chaos.world import World

KINDS: dict[str, type[Command]] = {
    "create_batch": CreateBatch,
    "allocate": Allocate,
    "change_batch_quantity": ChangeBatchQuantity,
}
NOT_KNOWN = "not known"  # the text of an error after which both are possible
USED_BEFORE = "was used before"
#: Errors of a task, in addition to those of any message.
REFUSALS = {"allocate": {"InvalidSku"}, "change_batch_quantity": {"UnknownBatch"}, "create_batch": set()}

# Changes to one batch took effect in commit order, since they lock its product; those of a group, which have
# one commit, in the order of its statements. PostgreSQL's recovery forgets the numbers of those (each is 0
# then), but not where it put their rows.
INBOX = """
SELECT task_id, coalesce(idempotency_key, task_id), command, result, error->>'type', error IS NOT NULL
FROM inbox ORDER BY pg_xact_commit_timestamp(xmin), cmin::text::bigint, ctid"""

LINES = "SELECT orderid, sku, qty FROM allocations WHERE starts_with(sku, %s)"
BATCHES = "SELECT reference, sku, purchased_quantity FROM batches WHERE starts_with(sku, %s)"
GIVEN_BACK = """
SELECT payload->>'orderid', payload->>'sku', (payload->>'qty')::int FROM deliveries
WHERE event_type = 'Deallocated'"""

# A replay of a parked command is a new message, so its letter may have another id.
PARKED = "SELECT headers->>'root_id' FROM dead_letters"


@dataclass(frozen=True)
class Row:
    """The inbox's row for one message."""

    task_id: str
    key: str
    command: str
    result: Any
    error: str | None
    refused: bool


@dataclass(frozen=True)
class Books:
    """The database's state after a round."""

    rows: list[Row]
    lines: set[tuple[str, str, int]]
    given_back: set[tuple[str, str, int]]
    batches: dict[str, tuple[str, int]]  # sku and purchased quantity, by reference
    causes: set[str]  # of deliveries: ids of messages
    parked: set[str]  # ids of the messages in dead letters

    @classmethod
    def of(cls, world: World, prefix: str) -> Books:
        """Read the rows of one round: messages of earlier rounds may have been redelivered meanwhile."""
        own = f"{prefix}-"
        rows = [Row(*row) for row in world.ask(INBOX)]
        batches = world.ask(BATCHES, own)
        return cls(
            rows=[row for row in rows if row.task_id.startswith(own)],
            lines=set(world.ask(LINES, own)),
            given_back=set(world.ask(GIVEN_BACK)),
            batches={reference: (sku, qty) for reference, sku, qty in batches},
            causes={cause for (cause,) in world.ask("SELECT causation_id FROM deliveries")},
            parked={name for (name,) in world.ask(PARKED)},
        )

    @cached_property
    def by_id(self) -> dict[str, Row]:
        """Return the answer to each message."""
        return {row.task_id: row for row in self.rows}

    @cached_property
    def effects(self) -> dict[str, Row]:
        """Return the commands that were carried out, by key."""
        return {row.key: row for row in self.rows if not row.refused}


def told_wrongly(sent: list[Sent], books: Books) -> Iterator[str]:
    """Yield each contradiction between an answer and the database."""
    known = known_since(sent)
    for one in sent:
        if one.answered:
            found = [*_wrong_success(one, books), *_wrong_error(one, books, known)]
            yield from (f"told {one.told}, {what}: {one}" for what in found)
    yield from _never_told(sent, books)


def _wrong_success(one: Sent, books: Books) -> Iterator[str]:
    if one.status != "SUCCESS":
        return
    effect = books.effects.get(one.key)
    if effect is None:
        yield "not done"
    elif one.task in KINDS and effect.command != shown(one):
        yield f"but what was done is {effect.command}"
    elif effect.result != one.result:
        yield f"but the result is {effect.result!r}"
    elif not _has_effect(one, books):
        yield "without an effect"
    elif effect.task_id == one.id and one.message.expires_s is not None and one.message.expires_s < 0:
        yield "although it had expired when it was sent"
    if one.after is not None and one.after.status == "SUCCESS" and not one.repeats:
        yield "although its key was used for another command"


def _has_effect(one: Sent, books: Books) -> bool:
    fields = one.fields
    if one.task not in KINDS:
        return True
    if one.task == "allocate":
        line = fields["orderid"], fields["sku"], fields["qty"]
        return one.result is None or line in books.lines or line in books.given_back
    return fields["ref"] in books.batches


def _wrong_error(one: Sent, books: Books, known: dict[str, float]) -> Iterator[str]:
    if not one.error or NOT_KNOWN in one.text:
        return
    row, effect = books.by_id.get(one.id), books.effects.get(one.key)
    if (row is not None and not row.refused) or one.id in books.causes:
        yield "yet it was done"
    elif row is not None and row.error != one.error:
        yield f"but {row.error} is recorded"
    if one.error in TRY_AGAIN:
        return
    if one.after is not None and one.after.status == "SUCCESS" and one.repeats:
        yield f"although it repeats what was told {one.after.result!r}"
    if not _may_be_told(one, books, effect, known):
        yield "for no reason"


def _may_be_told(one: Sent, books: Books, effect: Row | None, known: dict[str, float]) -> bool:
    if one.error == "Expired":
        return one.message.expires_s is not None
    if one.error == "WorkerCrashed":
        return one.task == "kill_worker" and one.id in books.parked
    if one.error == "InvalidMessage":
        if USED_BEFORE in one.text:
            return effect is not None and effect.command != shown(one)
        return one.task == "allocate" and one.fields["qty"] == 0
    name = one.fields.get("sku" if one.task == "allocate" else "ref", "")
    # Orders and purchases overtake each other, but a product that was confirmed before must be known.
    return one.error in REFUSALS.get(one.task, ()) and one.message.first_sent_at < known.get(
        name, float("inf")
    )


def known_since(sent: Iterable[Sent]) -> dict[str, float]:
    """Return when a sender first learned that a batch, and so its product, exists."""
    since: dict[str, float] = {}
    for one in sent:
        at = one.message.answered_at
        if one.task == "create_batch" and one.status == "SUCCESS" and at is not None:
            for name in (one.fields["sku"], one.fields["ref"]):
                since[name] = min(at, since.get(name, at))
    return since


def _never_told(sent: list[Sent], books: Books) -> Iterator[str]:
    """Yield effects that nobody requested or that were answered otherwise."""
    asked = {one.id: one for one in sent}
    for row in books.rows:
        one = asked.get(row.task_id)
        if one is None:
            yield f"an answer to a message that nobody sent: {row}"
        elif row.key != one.key or (one.task in KINDS and row.command not in ("", shown(one))):
            yield f"the inbox has another key or command: {row} for {one}"
        elif row.result is not None and one.answered and NOT_KNOWN not in one.text and one.error:
            yield f"told {one.told}, but {row.result!r} is recorded: {one}"
    yield from _effects_without_answer(books, asked)


def _effects_without_answer(books: Books, asked: dict[str, Sent]) -> Iterator[str]:
    done = [asked[row.task_id] for row in books.effects.values() if row.task_id in asked]
    quantities: dict[str, int] = {}
    for one in done:  # in the order of their commits
        if one.task in ("create_batch", "change_batch_quantity"):
            quantities[one.fields["ref"]] = one.fields["qty"]
    yield from (
        f"batch {ref} has {qty} pieces, told {quantities.get(ref)}"
        for ref, (_, qty) in books.batches.items()
        if quantities.get(ref) != qty
    )
    placed = {
        (one.fields["orderid"], one.fields["sku"], one.fields["qty"])
        for one in done
        if one.task == "allocate"
    }
    yield from (f"line {line} is allocated and nobody was told" for line in books.lines - placed)


def answers_that_changed(changes: Iterable[tuple[Sent, Any]]) -> Iterator[str]:
    """Yield stored answers that now differ from what their sender was told."""
    for one, stored in changes:
        if NOT_KNOWN not in one.text:
            yield f"told {one.told}, later {stored}: {one}"


def effects_twice(books: Books) -> Iterator[str]:
    """Yield keys with more than one effect."""
    count = Counter(row.key for row in books.rows if not row.refused)
    yield from (f"key {key} has {times} effects" for key, times in count.items() if times > 1)


def shown(one: Sent) -> str:
    """Return a command in the inbox's form."""
    kind = KINDS.get(one.task)
    if kind is None or (kind is Allocate and one.fields["qty"] == 0):  # not a command
        return ""
    return repr(from_dict(kind, one.fields))
