"""Commands that have arrived share a transaction; each keeps its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import psutil
import pytest
import redis
from sqlalchemy import create_engine, text

from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually
from tests.chaos.world import UNACKED
from tests.e2e.conftest import Backend, Broker, Shop
from tests.paused import paused as stopped

pytestmark = pytest.mark.timeout(200)

GROUP_MAX = 8

#: The commands of a transaction have the same time in the inbox.
TRANSACTIONS = "SELECT count(DISTINCT at), count(*) FROM inbox WHERE task_id = ANY(:ids)"
LINES = "SELECT orderid FROM allocations WHERE sku = ANY(:skus) ORDER BY orderid"


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """Redis, on which solo workers take several messages at a time."""
    return broker_of("redis")


def grouping_worker(backend: Backend, pool: str, name: str) -> Child:
    """Return a running worker that carries out commands in groups."""
    env = {**backend.env, "ALLOCATION_GROUP_MAX": str(GROUP_MAX)}
    worker = programs.worker(name, programs.WORK_QUEUES, backend.folder, env, 1, f"--pool={pool}")
    worker.start()
    backend.wait_for_worker(worker)
    return worker


@pytest.fixture(scope="module", params=["solo", "prefork"])
def pool(request: pytest.FixtureRequest) -> str:
    """Each pool that forms groups."""
    return str(request.param)


@pytest.fixture(scope="module")
def worker(backend: Backend, pool: str) -> Iterator[Child]:
    """The worker of this file."""
    worker = grouping_worker(backend, pool, "grouping")
    yield worker
    worker.stop()


@contextmanager
def paused(worker: Child) -> Iterator[None]:
    """What is sent in this block is there when the worker looks again, and all of its prefetch is free."""
    assert worker.env is not None
    with redis.Redis.from_url(worker.env["ALLOCATION_BROKER_URL"]) as broker:
        eventually(lambda: not broker.exists(*UNACKED), what="a worker without messages")
    with stopped(worker):
        yield


@pytest.fixture
def skus(shop: Shop, worker: Child) -> list[str]:
    """Four products in the order in which a group locks them, each with ten pieces in stock."""
    skus = [f"{letter}-{uuid4()}" for letter in "ABCD"]
    for sku in skus:
        shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=10)
    return skus


def allocate(shop: Shop, skus: list[str]) -> list[Any]:
    """Send a command for each SKU; the order ids are `order-0`, `order-1`, …"""
    return [
        shop.send("allocate", orderid=f"order-{n}", sku=sku, qty=1) for n, sku in enumerate(skus)
    ]  # fmt: skip


def ids(results: list[Any]) -> list[str]:
    """Return the ids of the messages."""
    return [result.id for result in results]


def outcome(result: Any) -> Any:
    """Return a result, or the name of the error's class."""
    try:
        return result.get(timeout=30)
    except Exception as error:  # noqa: BLE001  Celery creates the class at run time
        return type(error).__name__


def allocate_in_two_messages(shop: Shop, skus: list[str]) -> list[Any]:
    """Send one more command for the first SKU: it reads what the others write, before the commit."""
    return allocate(shop, [*skus, skus[0]])


def fails_then_sleeps(seconds: int) -> str:
    """Return a statement that fails a group, and then takes its time where the command runs alone."""
    return (
        "IF nextval('hampered') = 1 THEN RAISE EXCEPTION USING ERRCODE = 'deadlock_detected';"
        f" ELSE PERFORM pg_sleep({seconds}); END IF"
    )


@contextmanager
def failing_order(backend: Backend, orderid: str, statement: str) -> Iterator[None]:
    """Run a PL/pgSQL statement in the database whenever this order is allocated."""
    backend.sql(f"""
        CREATE SEQUENCE hampered;
        CREATE FUNCTION hamper() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            {statement}; RETURN new; END $$;
        CREATE TRIGGER hamper BEFORE INSERT ON allocations FOR EACH ROW WHEN (new.orderid = '{orderid}')
            EXECUTE FUNCTION hamper();
        SELECT 1""")
    try:
        yield
    finally:
        backend.sql(
            "DROP TRIGGER hamper ON allocations; DROP FUNCTION hamper; DROP SEQUENCE hampered; SELECT 1"
        )


def sleeping(backend: Backend) -> bool:
    """Return whether a statement of `failing_order` sleeps."""
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    return backend.sql(asleep) == [(1,)]


def test_commands_that_wait_share_one_transaction(shop: Shop, worker: Child, backend: Backend, skus):
    with paused(worker):
        sent = allocate(shop, [*skus, *skus])

    assert [outcome(result) for result in sent] == [f"batch-{sku}" for sku in [*skus, *skus]]
    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(1, 8)]


def test_deliveries_that_wait_share_a_transaction(shop: Shop, worker: Child, backend: Backend, skus):
    for number in range(6):
        shop.ask("allocate", orderid=f"order-{number}", sku=skus[0], qty=1)
    shop.ask("create_batch", ref=f"next-{skus[0]}", sku=skus[0], qty=10)

    correction = shop.send("change_batch_quantity", ref=f"batch-{skus[0]}", qty=0)

    made = (
        "SELECT count(DISTINCT finished_at), count(*) FROM deliveries"
        " WHERE correlation_id = :id AND status = 'done'"
    )
    eventually(lambda: backend.sql(made, id=correction.id)[0][1] == 6, what="the six deliveries")
    assert backend.sql(made, id=correction.id)[0][0] < 6
    moved = "SELECT DISTINCT batch_reference FROM allocations WHERE sku = :sku"
    assert backend.sql(moved, sku=skus[0]) == [(f"next-{skus[0]}",)]


def test_a_message_with_many_commands_does_not_overtake_a_single_one(shop: Shop, worker: Child, skus):
    new = f"C-{uuid4()}"
    with paused(worker):
        created = shop.send("create_batch", ref=f"batch-{new}", sku=new, qty=10)
        many = shop.send("many", [["allocation.allocate", {"orderid": "order", "sku": new, "qty": 1}]])
        after = shop.send("allocate", orderid="order-2", sku=new, qty=10)

    assert outcome(created) is None
    assert [each.get("result") for each in many.get(timeout=30)] == [f"batch-{new}"]
    assert outcome(after) is None  # out of stock


@pytest.mark.parametrize("pool", ["solo"], indirect=True)
def test_a_new_command_does_not_overtake_those_of_a_group_that_is_run_one_by_one(
    shop: Shop, worker: Child, backend: Backend, skus
):
    with failing_order(backend, "order-0", fails_then_sleeps(1)):
        with paused(worker):
            sent = allocate(shop, [skus[0]] * 6)
        eventually(lambda: sleeping(backend), what="the first of the group, alone")
        sent.append(shop.send("allocate", orderid="late", sku=skus[0], qty=1))
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [f"batch-{skus[0]}"] * 7
    in_turn = "SELECT orderid FROM allocations WHERE sku = :sku ORDER BY position"
    assert backend.sql(in_turn, sku=skus[0]) == [*((f"order-{n}",) for n in range(6)), ("late",)]


def test_a_refused_command_is_undone_alone(shop: Shop, worker: Child, backend: Backend, skus):
    """`get_or_create` has inserted the new product by the time the domain refuses the batch."""
    new = f"B-{uuid4()}"
    with paused(worker):
        before = shop.send("allocate", orderid="order", sku=skus[0], qty=1)
        refused = shop.send("create_batch", ref=f"batch-{skus[0]}", sku=new, qty=1)
        unknown = shop.send("allocate", orderid="order", sku="NONE", qty=1)
        after = shop.send("allocate", orderid="order", sku=skus[3], qty=1)

    sent = [before, refused, unknown, after]
    assert [outcome(result) for result in sent] == [
        f"batch-{skus[0]}", "BatchAlreadyExists", "InvalidSku", f"batch-{skus[3]}"
    ]  # fmt: skip
    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(1, 4)]
    assert backend.sql("SELECT FROM products WHERE sku = :sku", sku=new) == []


def test_a_key_that_is_used_twice_in_a_group_takes_effect_once(
    shop: Shop, other_shop: Shop, worker: Child, backend: Backend, skus
):
    key = f"key-{uuid4()}"
    fields = {"orderid": "order", "sku": skus[0], "qty": 1}
    with paused(worker):
        sent = [one.send("allocate", key=key, **fields) for one in (shop, other_shop, shop)]

    assert [outcome(result) for result in sent] == [f"batch-{skus[0]}"] * 3
    assert backend.sql(LINES, skus=skus) == [("order",)]


def test_two_commands_with_one_id_are_both_settled_and_the_first_is_answered(
    shop: Shop, other_shop: Shop, worker: Child, backend: Backend, skus
):
    task_id = str(uuid4())
    with paused(worker):
        first = shop.send("allocate", orderid="order-0", sku=skus[0], qty=1, task_id=task_id)
        other_shop.send("allocate", orderid="order-1", sku=skus[0], qty=1, task_id=task_id)
        last = shop.send("allocate", orderid="order-2", sku=skus[1], qty=1)

    assert [outcome(first), outcome(last)] == [f"batch-{skus[0]}", f"batch-{skus[1]}"]
    assert backend.sql(LINES, skus=skus) == [("order-0",), ("order-2",)]
    with redis.Redis.from_url(backend.addresses.broker_url) as broker:
        eventually(lambda: not broker.exists(*UNACKED), 5, "a worker without messages")


def test_an_error_of_the_database_affects_no_other_command(shop: Shop, worker: Child, backend: Backend, skus):
    with failing_order(backend, "order-1", "RAISE 'no'"):
        with paused(worker):
            sent = allocate(shop, skus)
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [f"batch-{skus[0]}", "Unavailable", f"batch-{skus[2]}", f"batch-{skus[3]}"]
    assert backend.sql(LINES, skus=skus) == [("order-0",), ("order-2",), ("order-3",)]


def test_a_group_that_lost_a_deadlock_is_run_one_by_one(shop: Shop, worker: Child, backend: Backend, skus):
    deadlock = "RAISE EXCEPTION USING ERRCODE = 'deadlock_detected'"
    with failing_order(backend, "order-2", f"IF nextval('hampered') = 1 THEN {deadlock}; END IF"):
        with paused(worker):
            sent = allocate(shop, skus)
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [f"batch-{sku}" for sku in skus]
    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(4, 4)]


def test_a_group_does_not_wait_for_a_lock_while_it_holds_others(
    shop: Shop, worker: Child, backend: Backend, skus
):
    """The others are committed; the one that has to wait for the lock holds none meanwhile."""
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as holder:
        holder.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": skus[2]})
        with paused(worker):
            sent = allocate(shop, skus)
        others = [("order-0",), ("order-1",), ("order-3",)]
        eventually(lambda: backend.sql(LINES, skus=skus) == others, what="the other commands")
        free = "SELECT count(*) FROM (SELECT FROM products WHERE sku = ANY(:skus) FOR UPDATE NOWAIT) AS free"
        assert backend.sql(free, skus=[skus[0], skus[1], skus[3]]) == [(3,)]
    engine.dispose()

    assert [outcome(result) for result in sent] == [f"batch-{sku}" for sku in skus]


def test_a_worker_that_is_killed_in_the_middle_of_a_group_has_done_nothing(
    shop: Shop, worker: Child, backend: Backend, pool: str, skus
):
    """Its messages are redelivered, and each runs alone: one of them may have killed the worker."""
    with failing_order(backend, "order-2", "PERFORM pg_sleep(1)"):
        with paused(worker):
            sent = allocate_in_two_messages(shop, skus)
        eventually(lambda: sleeping(backend), what="a group that is under way")
        worker.kill()
        assert backend.sql(LINES, skus=skus) == []
    parked = "SELECT count(*) FROM dead_letters"
    before = backend.sql(parked)
    successor = grouping_worker(backend, pool, "successor")
    try:
        outcomes = [outcome(result) for result in sent]
    finally:
        successor.stop()
        worker.start()
        backend.wait_for_worker(worker)

    assert outcomes == [f"batch-{sku}" for sku in [*skus, skus[0]]]
    assert backend.sql(LINES, skus=skus) == [(f"order-{n}",) for n in range(5)]
    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(5, 5)]
    assert backend.sql(parked) == before


def test_a_revoked_command_is_left_out_of_its_group(shop: Shop, worker: Child, backend: Backend, skus):
    task_id = str(uuid4())
    shop.app.control.revoke(task_id)
    eventually(lambda: f"Tasks flagged as revoked: {task_id}" in worker.log_text(), what="the revocation")

    with paused(worker):
        first = shop.send("allocate", orderid="order-0", sku=skus[0], qty=1)
        revoked = shop.send("allocate", orderid="order-1", sku=skus[1], qty=1, task_id=task_id)
        last = shop.send("allocate", orderid="order-2", sku=skus[2], qty=1)

    assert [outcome(each) for each in (first, revoked, last)] == [
        f"batch-{skus[0]}", "TaskRevokedError", f"batch-{skus[2]}"
    ]  # fmt: skip
    assert backend.sql(LINES, skus=skus) == [("order-0",), ("order-2",)]


def test_a_single_command_has_its_own_transaction(shop: Shop, worker: Child, backend: Backend, skus):
    """With an empty queue nothing waits for a group."""
    sent = []
    for result in (shop.send("allocate", orderid=f"order-{n}", sku=sku, qty=1) for n, sku in enumerate(skus)):
        outcome(result)
        sent.append(result)

    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(4, 4)]


def test_each_command_of_a_group_is_an_event_for_flower(shop: Shop, worker: Child, skus):
    seen: dict[str, set[str]] = {}

    def note(event: dict[str, Any]) -> None:
        seen.setdefault(event["uuid"], set()).add(event["type"])

    handlers = {f"task-{kind}": note for kind in ("received", "started", "succeeded", "failed")}
    with shop.app.connection() as connection:
        receiver = shop.app.events.Receiver(connection, handlers=handlers)
        with receiver.consumer_context() as (listening, _, _):
            with suppress(TimeoutError):
                listening.drain_events(timeout=0.5)  # subscribes
            with paused(worker):
                sent = allocate(shop, [*skus, "NONE"])
            ends = {"task-succeeded", "task-failed"}

            def all_ended() -> bool:
                with suppress(TimeoutError):
                    listening.drain_events(timeout=0.5)
                return all(seen.get(result.id, set()) & ends for result in sent)

            eventually(all_ended, what="the end of each task")

    assert [sorted(seen[result.id]) for result in sent] == [
        *[["task-received", "task-started", "task-succeeded"]] * 4,
        ["task-failed", "task-received", "task-started"],
    ]


@pytest.mark.parametrize("pool", ["prefork"], indirect=True)
def test_a_group_that_takes_too_long_is_killed_and_run_one_by_one(
    shop: Shop, worker: Child, backend: Backend, skus
):
    with failing_order(backend, "order-2", "IF nextval('hampered') = 1 THEN PERFORM pg_sleep(6.5); END IF"):
        with paused(worker):
            sent = allocate_in_two_messages(shop, skus)
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [f"batch-{sku}" for sku in [*skus, skus[0]]]
    assert backend.sql(TRANSACTIONS, ids=ids(sent)) == [(5, 5)]
    for result in sent:
        assert f"allocation.allocate[{result.id}] took longer than" in worker.log_text()


@pytest.mark.parametrize("pool", ["prefork"], indirect=True)
def test_terminating_a_command_of_a_running_group_revokes_no_other(
    shop: Shop, worker: Child, backend: Backend, skus
):
    with failing_order(backend, "order-2", "IF nextval('hampered') = 1 THEN PERFORM pg_sleep(4); END IF"):
        with paused(worker):
            sent = allocate_in_two_messages(shop, skus)
        node = f"{worker.name}@"

        def active() -> set[str]:
            replies = shop.app.control.inspect(timeout=0.5).active() or {}
            return {task["id"] for name, tasks in replies.items() if name.startswith(node) for task in tasks}

        eventually(lambda: active() == set(ids(sent)), what="a group that is under way")
        shop.app.control.revoke(sent[1].id, terminate=True, signal="SIGKILL")
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [
        f"batch-{skus[0]}", "TaskRevokedError", f"batch-{skus[2]}", f"batch-{skus[3]}", f"batch-{skus[0]}"
    ]  # fmt: skip
    assert backend.sql(LINES, skus=skus) == [("order-0",), ("order-2",), ("order-3",), ("order-4",)]


@pytest.mark.parametrize("pool", ["prefork"], indirect=True)
def test_terminating_a_command_that_waits_to_run_alone_kills_no_other(
    shop: Shop, worker: Child, backend: Backend, skus
):
    """The process that had its group now carries out another command."""
    with failing_order(backend, "order-0", fails_then_sleeps(2)):
        with paused(worker):
            sent = allocate(shop, [skus[0]] * 3)
        eventually(lambda: sleeping(backend), what="the first of the group, alone")
        shop.app.control.revoke(sent[2].id, terminate=True, signal="SIGKILL")
        outcomes = [outcome(result) for result in sent]

    assert outcomes == [f"batch-{skus[0]}"] * 2 + ["TaskRevokedError"]
    assert backend.sql(LINES, skus=skus) == [("order-0",), ("order-1",)]


@pytest.mark.parametrize("pool", ["prefork"], indirect=True)
def test_a_process_whose_group_was_terminated_politely_carries_out_nothing_more(
    shop: Shop, worker: Child, backend: Backend, skus
):
    """Celery takes its later death for that of a terminated command, which it does not run again."""
    with failing_order(backend, "order-2", "IF nextval('hampered') = 1 THEN PERFORM pg_sleep(1); END IF"):
        with paused(worker):
            sent = allocate_in_two_messages(shop, skus)
        eventually(lambda: sleeping(backend), what="a group that is under way")
        shop.app.control.revoke(sent[1].id, terminate=True)
        outcomes = [outcome(result) for result in sent]
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as holder:
        holder.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": skus[3]})
        late = shop.send("allocate", orderid="late", sku=skus[3], qty=1)
        at_lock = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        eventually(lambda: len(backend.sql(at_lock)) == 1, what="the next command at the lock")
        for child in psutil.Process(worker.pid).children():
            child.kill()
    engine.dispose()

    assert outcomes == [
        f"batch-{skus[0]}", "TaskRevokedError", f"batch-{skus[2]}", f"batch-{skus[3]}", f"batch-{skus[0]}"
    ]  # fmt: skip
    assert outcome(late) == f"batch-{skus[3]}"
