"""Bugs put into the real code on purpose: what the simulation finds of them is its measure."""

# mypy: disable-error-code="attr-defined, assignment"
# What is replaced here has other names and types there.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from celery.backends.redis import RedisBackend
from celery.worker.request import Request as CeleryRequest
from sqlalchemy import text

import reliable_celery.requests
from allocation.adapters import repository
from allocation.domain.model import Product
from messaging.bus import MessageBus
from messaging.client.client import Client
from messaging.delivery import Failure, Status, Waits
from messaging.postgres import announcements, attempts, breakers, gate, inbox, limits, outbox, reruns
from messaging.postgres.attempts import Attempt
from messaging.postgres.audit import GO_ON
from messaging.postgres.dead_letters import DeadLetters
from messaging.postgres.effects import Effects
from messaging.postgres.gate import GatedAttempt
from messaging.postgres.inbox import Answer, Inbox
from messaging.postgres.low_water import LowWater
from messaging.postgres.order import Lanes
from messaging.postgres.outbox import Outbox
from messaging.postgres.pauses import Pauses, Scope
from messaging.postgres.reruns import BulkReruns, Progress
from messaging.postgres.shared import SharedTransaction
from messaging.postgres.states import is_in
from messaging.postgres.transaction import DATABASE_ERRORS, Statement, Transaction
from messaging.postgres.unit_of_work import PostgresUnitOfWork
from messaging.wire.cloud_events import Announcement
from messaging.worker import events, sharing
from messaging.worker.delivery_group import DeliveryGroup, DeliveryUnit
from messaging.worker.received import Received
from messaging.worker.waking import Stops
from reliable_celery.groups import collecting, prefork
from reliable_celery.results import ResultBackend
from tests.simulation.planting import put, sql_of, without
from tests.simulation.world import World

Mutation = Callable[[World], ExitStack]

MUTATIONS: dict[str, Mutation] = {}


def mutation(
    words: str, among: dict[str, Mutation] = MUTATIONS
) -> Callable[[Callable[[World, ExitStack], None]], None]:
    """Register a bug under the words that say what is wrong."""

    def register(plant: Callable[[World, ExitStack], None]) -> None:
        def planted(world: World) -> ExitStack:
            stack = ExitStack()
            plant(world, stack)
            return stack

        among[words] = planted

    return register


# Answers and keys


@mutation("commands are compared by their repr, which another release writes differently")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, inbox, "same_message", lambda _bus, line, message: line == repr(message))


@mutation("an answer is not compared with the command under the same key")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, inbox, "same_message", lambda _bus, _line, _message: True)


@mutation("a refusal is told and not recorded")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Inbox, "refuse", lambda _self, _job, error: Answer(error=error))


@mutation("a refusal does not look for a result under its key")
def _(_world: World, stack: ExitStack) -> None:
    columns = "INSERT INTO inbox (task_id, idempotency_key, command, error, at)"
    without(
        stack, inbox, "RESERVE", "INSERT INTO inbox (task_id, idempotency_key, command, at)", instead=columns
    )
    without(stack, inbox, "RESERVE", "'', '-infinity'", instead="'', '{}', '-infinity'")


@mutation("messages are acknowledged before they are handled")
def _(world: World, stack: ExitStack) -> None:
    for app in world.apps.values():
        for name, task in app.tasks.items():
            if name.startswith("allocation."):
                put(stack, task, "acks_late", False)


@mutation("success is told although the commit failed")
def _(_world: World, stack: ExitStack) -> None:
    def run(_self: Any, handler: Any, message: Any, uow: Any) -> Any:
        result = handler(message, uow)
        try:
            return result, uow.commit(result)
        except DATABASE_ERRORS:
            return result, []

    put(stack, MessageBus, "run", run)


@mutation("no unique index on keys")
def _(world: World, stack: ExitStack) -> None:
    definition = "(coalesce(idempotency_key, task_id))) WHERE error IS NULL"
    world.database.run("DROP INDEX inbox_effects")

    def bring_back() -> None:
        world.database.empty()
        world.database.run(f"CREATE UNIQUE INDEX inbox_effects ON inbox ({definition}")

    stack.callback(bring_back)


@mutation("the idempotency key is ignored")
def _(_world: World, stack: ExitStack) -> None:
    of = Received.of.__func__
    put(stack, Received, "of", classmethod(lambda cls, *args: replace(of(cls, *args), key=None)))


@mutation("expiry is ignored")
def _(_world: World, stack: ExitStack) -> None:
    of = Received.of.__func__
    put(stack, Received, "of", classmethod(lambda cls, *args: replace(of(cls, *args), expired=False)))


@mutation("crashes of a command are forgotten when they are counted")
def _(_world: World, stack: ExitStack) -> None:
    count = Inbox.count_crash

    def count_and_forget(self: Inbox, task_id: str) -> int:
        crashes = count(self, task_id)
        self.forget_crashes(task_id)
        return crashes

    put(stack, Inbox, "count_crash", count_and_forget)


@mutation("a parked command leaves no dead letter")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, DeadLetters, "add", lambda _self, _letter: None)


@mutation("a command is parked when it is redelivered for the first time")
def _(_world: World, stack: ExitStack) -> None:
    counted = Inbox.count_crash
    put(stack, Inbox, "count_crash", lambda self, task_id: counted(self, task_id) + 2)


@mutation("a sender's client gives the outcomes of many commands in another order")
def _(_world: World, stack: ExitStack) -> None:
    outcomes = Client._outcomes

    def mixed_up(self: Client, keyed: Any, sent: Any, timeout_s: float) -> Any:
        return outcomes(self, list(reversed(keyed)), sent, timeout_s)

    put(stack, Client, "_outcomes", mixed_up)


@mutation("an answer that cannot be stored is told as a failure")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, ResultBackend, "mark_as_failure", RedisBackend.mark_as_failure)


@mutation("a message whose answer could not be stored is acknowledged")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, reliable_celery.requests.Request, "on_failure", CeleryRequest.on_failure)


@mutation("a copy is told an unexpected error under another name")
def _(_world: World, stack: ExitStack) -> None:
    def rebuilt(name: str, module: str, *args: object, text: str | None = None) -> Exception:
        kind: type[Exception] = type(name, (Exception,), {"__module__": module})
        return kind(*args)

    put(stack, inbox, "rebuilt", rebuilt)
    put(stack, inbox, "_can_be_pickled", lambda _error: True)


# Deliveries

THIS_RUN = "SELECT delivery_id, %(run)s, number"

#: Of handlers that have nothing to wait for, and of the others.
CLAIMS = (attempts, "CLAIM"), (gate, "CLAIM_GATED")


@mutation("a relay without row locks")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "TAKE_DUE", "FOR UPDATE SKIP LOCKED")


@mutation("a claim without a row lock")
def _(_world: World, stack: ExitStack) -> None:
    for module, name in CLAIMS:
        without(stack, module, name, "FOR UPDATE SKIP LOCKED")


@mutation("a claim that does not look at the state")
def _(_world: World, stack: ExitStack) -> None:
    for module, name in CLAIMS:
        without(stack, module, name, f"AND {is_in(Status.PENDING)} ")


@mutation("done is written in another transaction than the effects")
def _(_world: World, stack: ExitStack) -> None:
    commit = PostgresUnitOfWork.commit

    def commit_then_finish(self: PostgresUnitOfWork, result: object = None) -> Any:
        job = self.job
        if not isinstance(job, Attempt):
            return commit(self, result)
        deliveries = commit(self, result)
        with Transaction(self.transaction._engine) as transaction:
            transaction.write(attempts.DONE, (job.worker, job.id, job.effects.stored()))
            transaction.commit()
        return deliveries

    put(stack, Attempt, "finish", lambda _self, transaction, _result: transaction.release())
    put(stack, PostgresUnitOfWork, "commit", commit_then_finish)


@mutation("a failed attempt is not counted when its transaction is lost")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, events, "_note_failure", lambda *_args: None)


@mutation("a failed attempt keeps what its handler wrote")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Transaction, "undo", lambda _self: None)


@mutation("a late failure is noted for whatever run is on")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "NOTE_FAILED", " AND reruns = :run")


@mutation("a late failure is not noted while its delivery is put aside")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "NOTE_FAILED", "finished_at IS NULL", instead="status = 'pending'")


@mutation("failures of earlier runs are counted for this one")
def _(_world: World, stack: ExitStack) -> None:
    for module, name in CLAIMS:
        without(stack, module, name, " AND run = deliveries.reruns")
    without(stack, attempts, "COUNT_OPEN", " AND run = %(run)s")
    without(stack, attempts, "COUNT_OPEN", "SELECT delivery_id, run, number", instead=THIS_RUN)


@mutation("a failure that is counted, and noted since nobody knew, is counted twice")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "COUNT_OPEN", "token = taken.token", instead="false")


@mutation("failures that are noted are pruned while their run is under way")
def _(_world: World, stack: ExitStack) -> None:
    over, early = "finished_at IS NULL AND reruns = run", "finished_at IS NULL AND reruns < run"
    without(stack, outbox, "PRUNE_OPEN_ATTEMPTS", over, instead=early)


@mutation("a parked delivery does not say that it killed its workers")
def _(_world: World, stack: ExitStack) -> None:
    def park(self: Attempt, transaction: Transaction, failure: Failure, _deaths: int) -> None:
        self.count_failure(transaction, failure, attempts.NO_MORE)
        transaction.commit()

    put(stack, Attempt, "park", park)


@mutation("what an attempt raised that was rolled back is listed with the next one")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Effects, "clear", lambda _self: None)


@mutation("pruning takes what failed")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "PRUNE", "('done', 'discarded')", instead="('done', 'discarded', 'failed')")


@mutation("a re-run without a look at the state")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "CHOSEN", " FOR UPDATE SKIP LOCKED")
    without(stack, outbox, "PUT_BACK", f" AND {is_in(Status.FAILED)}")


@mutation("two processes go on with the same re-run of many at once")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, reruns, "TAKE", "FOR UPDATE OF bulk_reruns SKIP LOCKED")


@mutation("a re-run of many goes on whatever becomes of those that are tried first")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, reruns, "_judge", lambda *_args: None)


@mutation("a re-run of many is stopped in the middle of a step")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, reruns, "LOCK", " FOR UPDATE")


@mutation("the progress of a re-run of many is written in a transaction of its own")
def _(_world: World, stack: ExitStack) -> None:
    step = BulkReruns.step

    def step_and_note(self: BulkReruns, number: int, room: int) -> Progress:
        progress = step(self, number, room)
        if progress.deliveries:
            facts = {"id": number, "count": progress.count, "outcome": progress.outcome}
            with self.engine.begin() as connection:
                connection.execute(GO_ON, facts)
        return progress

    put(stack, reruns, "GO_ON", text("SELECT :id, :count, :outcome"))
    put(stack, BulkReruns, "step", step_and_note)


@mutation("the relay sends nothing")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "TAKE_DUE", "due_at <= now()", instead="false")


@mutation("a delivery does not wait for the earlier ones of its lane")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, gate, "CLAIM_GATED", "earlier.position < deliveries.position", instead="false")


@mutation("a failed delivery does not hold up its lane")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, gate, "CLAIM_GATED", ", 'failed')", instead=")")


@mutation("the corrected copy of a delivery goes to the end of its lane")
def _(_world: World, stack: ExitStack) -> None:
    last = "nextval('deliveries_position')"
    without(stack, outbox, "REPLACE", f"coalesce(position, {last})", instead=last)


@mutation("the original of a corrected copy stays failed")
def _(_world: World, stack: ExitStack) -> None:
    discards = "WHERE id = :old\n)\n"
    without(stack, outbox, "REPLACE", discards, instead=discards.replace(":old", ":old AND false"))


@mutation("a delivery is corrected without a lock")
def _(_world: World, stack: ExitStack) -> None:
    lock = outbox._lock_failed

    def only_read(connection: Any, delivery_id: str) -> Any:
        def execute(query: Any, facts: Any) -> Any:
            return connection.execute(text(query.text.replace(" FOR UPDATE", "")), facts)

        reads: Any = SimpleNamespace(execute=execute)
        return lock(reads, delivery_id)

    put(stack, outbox, "_lock_failed", only_read)


@mutation("new deliveries of a lane are in no order where their products are others")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, outbox, "lock_lanes", lambda *_args: None)


@mutation("nobody wakes the next one of a lane")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Lanes, "wake_head", lambda *_args: [])
    put(stack, Lanes, "wake_heads", lambda *_args: [])


@mutation("the schedule re-runs a delivery as often as it fails")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "RERUN_COOLED", "auto_reruns < :rerun_max", instead="0 < :rerun_max")


@mutation("the schedule re-runs what has just failed")
def _(_world: World, stack: ExitStack) -> None:
    found, again = "power(2, least(kinds.auto_reruns, 30))", "power(2, least(auto_reruns, 30))"
    without(stack, outbox, "RERUN_COOLED", found, again, instead="0")


@mutation("an operator's re-run leaves the schedule none")
def _(_world: World, stack: ExitStack) -> None:
    for module in (outbox, reruns):
        without(stack, module, "PUT_BACK", "ELSE 0 END", instead="ELSE auto_reruns END")


@mutation("the schedule re-runs what kills its workers")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, outbox, "RERUN_COOLED", "AND crashes = 0")


@mutation("workers do not ask what is paused")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Pauses, "seen", lambda _self: [])


@mutation("groups do not ask what is paused")
def _(_world: World, stack: ExitStack) -> None:
    prepare = DeliveryGroup.prepare

    def prepare_all(self: DeliveryGroup, members: Any) -> set[str]:
        with patch.object(self.runtime.pauses, "seen", list):
            return prepare(self, members)

    put(stack, DeliveryGroup, "prepare", prepare_all)


@mutation("a redelivered message that finds its delivery locked leaves no trace")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, Attempt, "note_seen", lambda _self, _transaction: None)


# Breakers, places and rates


@mutation("a handler begins although its breaker is open")
def _(_world: World, stack: ExitStack) -> None:
    stopped = GatedAttempt._stopped
    put(stack, GatedAttempt, "_stopped", lambda self, row, blocked, _until: stopped(self, row, blocked, None))


@mutation("all deliveries are tried at once after the pause of a breaker")
def _(_world: World, stack: ExitStack) -> None:
    _take_places(stack, lambda name: name.endswith(" trial"))


@mutation("a trial that succeeds leaves the breaker open")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, breakers, "TRIAL_SUCCEEDED", breakers.SUCCEEDED)


@mutation("a trial that fails uses up the last attempt")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, gate, "NEVER_THE_LAST", 2)


@mutation("nobody wakes what waits for a breaker")
def _(_world: World, stack: ExitStack) -> None:
    allowed = Stops.allowed

    def others(self: Stops, queue: Any, names: Any, options: Any, first: bool) -> int:
        return 0 if queue.why == Waits.BREAKER else allowed(self, queue, names, options, first)

    put(stack, Stops, "allowed", others)


@mutation("more deliveries run at once than their handler allows")
def _(_world: World, stack: ExitStack) -> None:
    _take_places(stack, lambda name: not name.endswith(" trial"))


def _take_places(stack: ExitStack, is_free: Callable[[str], bool]) -> None:
    """Find a place of these names free, whoever has it."""
    take = gate.take_place
    put(
        stack,
        gate,
        "take_place",
        lambda transaction, name, places: is_free(name) or take(transaction, name, places),
    )


@mutation("a handler's rate holds nobody back")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, limits, "_taken", lambda _transaction, _name, _rate, *, was_woken: None)


@mutation("who has waited for its time begins, whoever has begun just before")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, gate, "begin", lambda _transaction, _name, _rate: None)


@mutation("a delivery begins with the time that it took, and without its lock")
def _(_world: World, stack: ExitStack) -> None:
    def claim(self: GatedAttempt, transaction: Transaction) -> Any:
        delivery = self._claim(transaction)
        if delivery is None or not self.needs_time or self.gate.options.rate is None:
            return delivery
        transaction.commit()
        take = gate.begin if self.was_woken else gate.reserve
        self.until = take(transaction, self.gate.limit(self.key), gate.Rate.parse(self.gate.options.rate))
        self.has_time = True
        if self.until is None:
            return delivery
        self.delivery = None
        return self._claim(transaction)

    put(stack, GatedAttempt, "claim", claim)


# What is raised


@mutation("of the events of one kind that a commit raises only the first is written")
def _(_world: World, stack: ExitStack) -> None:
    take = PostgresUnitOfWork.take_events

    def take_first(self: PostgresUnitOfWork) -> list[Any]:
        return list({type(one.event): one for one in reversed(take(self))}.values())[::-1]

    put(stack, PostgresUnitOfWork, "take_events", take_first)


@mutation("what the handler of an event raises is not written")
def _(_world: World, stack: ExitStack) -> None:
    take = PostgresUnitOfWork.take_events

    def take_of_commands(self: PostgresUnitOfWork) -> list[Any]:
        return [] if isinstance(self.job, Attempt) else take(self)

    put(stack, PostgresUnitOfWork, "take_events", take_of_commands)


# Events for other apps


@mutation("the events of a group are not announced")
def _(_world: World, stack: ExitStack) -> None:
    write = Outbox.write

    def write_unannounced(
        self: Outbox, transaction: Transaction, raised: Any, correlation: str, cause: str, effects: Any = None
    ) -> Any:
        outbox = replace(self, announced=False) if isinstance(transaction, SharedTransaction) else self
        return write(outbox, transaction, raised, correlation, cause, effects)

    put(stack, Outbox, "write", write_unannounced)


@mutation("events are published in another order than they were committed in")
def _(_world: World, stack: ExitStack) -> None:
    ordered = "FROM taken ORDER BY position"
    without(stack, announcements, "TAKE", ordered, instead=f"{ordered} DESC")


@mutation("two processes publish at once, each what the other has not locked")
def _(_world: World, stack: ExitStack) -> None:
    oldest = "ORDER BY position LIMIT :limit"
    without(stack, announcements, "TAKE", oldest, instead=f"{oldest} FOR UPDATE SKIP LOCKED")
    take = announcements.Announcements.take

    @contextmanager
    def take_beside(
        self: announcements.Announcements, limit: int, low: LowWater | None = None
    ) -> Iterator[list[Announcement]]:
        announcements.LOCK = next(others)
        with take(self, limit, low) as taken:
            yield taken

    others = count(announcements.LOCK)
    put(stack, announcements, "LOCK", next(others))
    put(stack, announcements.Announcements, "take", take_beside)


@mutation("announcements are deleted by range")
def _(_world: World, stack: ExitStack) -> None:
    @contextmanager
    def take(
        self: announcements.Announcements,
        limit: int,
        _low: LowWater | None = None,  # of no use: another one may be committed below
    ) -> Iterator[list[Announcement]]:
        query = text(
            "SELECT event_id::text, event_type, payload, correlation_id, causation_id, at, position, subject,"
            " traceparent FROM announcements WHERE pg_try_advisory_xact_lock(:lock)"
            " ORDER BY position LIMIT :limit"
        )
        with self.engine.begin() as connection:
            rows = connection.execute(query, {"limit": limit, "lock": announcements.LOCK}).all()
            yield [Announcement(*row) for row in rows]
            last = max((row.position for row in rows), default=0)
            connection.execute(text("DELETE FROM announcements WHERE position <= :last"), {"last": last})

    put(stack, announcements.Announcements, "take", take)


@mutation("announcements are deleted before they are published")
def _(_world: World, stack: ExitStack) -> None:
    take = announcements.Announcements.take

    @contextmanager
    def take_first(
        self: announcements.Announcements, limit: int, low: LowWater | None = None
    ) -> Iterator[list[Announcement]]:
        with take(self, limit, low) as taken:
            pass
        yield taken

    put(stack, announcements.Announcements, "take", take_first)


# Stock


def _overwrite(stack: ExitStack) -> None:
    """Write the quantities that were worked out, whatever is there by now."""
    found = repository.UPDATE_BATCH
    sql = (
        "UPDATE batches SET purchased_quantity = $1, allocated_quantity = $2"
        " WHERE $3 = $3 AND $4 = $4 AND reference = $5"
    )
    put(stack, repository, "UPDATE_BATCH", Statement(sql, *sql_of(found)[0]))


@mutation("a lock that finds nothing, the read after it, and quantities that overwrite")
def _(_world: World, stack: ExitStack) -> None:
    _overwrite(stack)
    without(
        stack, repository, "LOAD_FOR_LINE", f" AND $1 = {repository.LOCKED_SKU}",
    )  # fmt: skip


@mutation("no lock on the product, and quantities that overwrite")
def _(_world: World, stack: ExitStack) -> None:
    _overwrite(stack)
    without(stack, repository, "LOCK_PRODUCT", " FOR NO KEY UPDATE")


@mutation("a line that is allocated already is allocated again elsewhere")
def _(_world: World, stack: ExitStack) -> None:
    place = Product._place

    def place_anew(self: Product, line: Any) -> Any:
        for batch in self.batches:
            if line in batch.lines:
                batch.lines.remove(line)
        return place(self, line)

    put(stack, repository, "Product", type("Product", (Product,), {"_place": place_anew}))


@mutation("a shortage outlives the line's new place")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, repository, "DELETE_SHORTAGES", "WHERE", instead="WHERE false AND")


@mutation("a shortage is not remembered")
def _(_world: World, stack: ExitStack) -> None:
    nothing = "SELECT $1, $2, $3"
    put(stack, repository, "INSERT_SHORTAGE", Statement(nothing, "text", "text", "integer"))


@mutation("a line that lost its stock and finds no other is reported to nobody")
def _(_world: World, stack: ExitStack) -> None:
    def place_or_note(self: Product, line: Any) -> None:
        if self._place(line) is None:
            self.short.add(line)

    put(stack, repository, "Product", type("Product", (Product,), {"reallocate": place_or_note}))


# Groups


@mutation("a message of a group has no savepoint")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, SharedTransaction, "_send", Transaction._send)


@mutation("a message that is undone takes what the others of its group have yet to send with it")
def _(_world: World, stack: ExitStack) -> None:
    close = SharedTransaction.close

    def close_all(self: SharedTransaction) -> None:
        self._start = 0
        close(self)

    put(stack, SharedTransaction, "close", close_all)


@mutation("a group reads ahead for every message of a product, and quantities that overwrite")
def _(_world: World, stack: ExitStack) -> None:
    _overwrite(stack)
    put(stack, sharing, "_key", lambda message: repr(message))


@mutation("a group reads ahead without a lock, and quantities that overwrite")
def _(_world: World, stack: ExitStack) -> None:
    _overwrite(stack)
    without(stack, repository, "LOCK_FREE_PRODUCTS", " FOR NO KEY UPDATE SKIP LOCKED")


@mutation("a group's answers are given although its commit failed")
def _(_world: World, stack: ExitStack) -> None:
    commit_all = SharedTransaction.commit_all

    def commit_or_not(self: SharedTransaction) -> None:
        with suppress(*DATABASE_ERRORS):
            commit_all(self)

    put(stack, SharedTransaction, "commit_all", commit_or_not)


@mutation("a message of a group is told its refusal although its key was carried out")
def _(_world: World, stack: ExitStack) -> None:
    record = Inbox.record_refusal

    def record_and_tell(self: Inbox, transaction: Transaction, job: Any, error: Exception) -> bool:
        return record(self, transaction, job, error) or isinstance(transaction, SharedTransaction)

    put(stack, Inbox, "record_refusal", record_and_tell)


@mutation("a refusal of a group is told and not recorded")
def _(_world: World, stack: ExitStack) -> None:
    record = Inbox.record_refusal

    def record_alone(self: Inbox, transaction: Transaction, job: Any, error: Exception) -> bool:
        return isinstance(transaction, SharedTransaction) or record(self, transaction, job, error)

    put(stack, Inbox, "record_refusal", record_alone)


@mutation("a group's messages are acknowledged before their answers are stored")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, ResultBackend, "when_stored", lambda *_args: False)


@mutation("a message of a group in a child is acknowledged although its answer could not be stored")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, prefork, "_watch", lambda *_args: None)


@mutation("redelivered messages join groups")
def _(_world: World, stack: ExitStack) -> None:
    put(stack, collecting, "may_join", lambda request: getattr(request.task, "together", None) is not None)
    put(stack, Received, "is_fresh", property(lambda self: not self.expired))


@mutation("the deliveries of a group are claimed without a row lock")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "CLAIM_ALL", "FOR UPDATE SKIP LOCKED")


@mutation("the deliveries of a group are claimed without a look at their state")
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "CLAIM_ALL", f"AND {is_in(Status.PENDING)} ")


@mutation("a delivery of a group whose handler failed is done")
def _(_world: World, stack: ExitStack) -> None:
    run = DeliveryUnit.run

    def run_to_done(self: DeliveryUnit, transaction: SharedTransaction) -> Any:
        made = run(self, transaction)
        if made is None:
            transaction.write(attempts.DONE, (self.attempt.worker, self.id, None))
            return []
        return made

    put(stack, DeliveryUnit, "run", run_to_done)


# Found by fresh seeds once, and too rare to be found within a minute

RARE: dict[str, Mutation] = {}


@mutation("nobody can pause what another operator resumes just then", RARE)
def _(_world: World, stack: ExitStack) -> None:
    add = Pauses.add

    def add_or_fail(self: Pauses, scope: Scope, names: Sequence[str], actor: str, reason: str) -> bool:
        if add(self, scope, names, actor, reason):
            return True
        [_old, *_] = [one for one in self.active() if one.scope is scope and one.name in names]
        return False

    put(stack, Pauses, "add", add_or_fail)


@mutation("a copy is told the result under its key, whatever its message was told", RARE)
def _(_world: World, stack: ExitStack) -> None:
    def answers(self: Inbox, jobs: Sequence[Any]) -> dict[str, Answer]:
        found = self._find([job.id for job in jobs], [job.key for job in jobs])
        by_id = {row[0]: row for row in found}
        by_key = {row[1]: row for row in found if row[4] is None}
        rows = ((job, by_key.get(job.key) or by_id.get(job.id)) for job in jobs)
        return {job.id: self._answer(job, row) for job, row in rows if row is not None}

    put(stack, Inbox, "answers", answers)


@mutation("a refusal does not wait for a success under its key", RARE)
def _(_world: World, stack: ExitStack) -> None:
    without(
        stack,
        inbox,
        "RESERVE",
        "command, at) VALUES ($1, $2, '', '-infinity')",
        instead="""command, error, at) SELECT $1, $2, '', '{}', '-infinity' WHERE NOT EXISTS (
            SELECT FROM inbox
            WHERE coalesce(idempotency_key, task_id) = coalesce($2, $1) AND error IS NULL)""",
    )


@mutation("a failed trial that is noted beside its row is the last attempt", RARE)
def _(_world: World, stack: ExitStack) -> None:
    without(stack, attempts, "NOTE_FAILED", ":is_trial", instead="false")
