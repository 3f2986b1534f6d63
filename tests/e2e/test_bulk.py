"""Many commands in one message, from a plain sender."""

from __future__ import annotations

import os
import signal
from uuid import uuid4

import psutil
import pytest

from local.waiting import eventually

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def sku(shop) -> str:
    """The test's own product, with ten pieces on the shelf."""
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=10)
    return sku


def line(orderid: str, sku: str, qty: int) -> list[object]:
    return ["allocation.allocate", {"orderid": orderid, "sku": sku, "qty": qty}]


def test_each_command_gets_its_own_answer(shop, sku):
    bulk = shop.send(
        "many",
        [
            line("o1", sku, 4),
            line("o2", "NONE", 1),
            line("o3", sku, 0),
            ["allocation.no_such_command", {}],
            ["allocation.allocate"],
            [*line("o4", sku, 6), "my-own-id"],
            line("o5", sku, 1),
        ],
    )

    def refused(position: int, kind: str, text: str) -> dict[str, object]:
        return {"id": f"{bulk.id}.{position}", "error": {"type": kind, "message": text}}

    assert bulk.get(timeout=30) == [
        {"id": f"{bulk.id}.0", "result": f"b-{sku}"},
        refused(1, "InvalidSku", "Invalid sku NONE"),
        refused(2, "InvalidMessage", "qty must be at least 1"),
        refused(3, "UnknownMessage", "No command is called 'allocation.no_such_command'"),
        refused(4, "InvalidMessage", "command must be [task name, fields] or [task name, fields, id]"),
        {"id": "my-own-id", "result": f"b-{sku}"},
        {"id": f"{bulk.id}.6", "result": None},
    ]


def test_a_message_that_is_sent_again_is_answered_and_changes_nothing(shop, other_shop, sku, backend):
    orders, bulk_id = [line("o1", sku, 4), line("o2", sku, 6), line("o3", sku, 1)], str(uuid4())
    first = shop.send("many", orders, task_id=bulk_id).get(timeout=30)
    shop.ask("change_batch_quantity", ref=f"b-{sku}", qty=0)
    shop.app.AsyncResult(bulk_id).forget()

    assert other_shop.send("many", orders, task_id=bulk_id).get(timeout=30) == first


def test_events_of_many_commands_reach_their_handlers(shop, sku, backend):
    shop.ask("many", [line(f"o{number}", sku, 99) for number in range(5)])

    eventually(
        lambda: (
            backend.sql(
                "SELECT count(*) FROM deliveries WHERE payload->>'sku' = :sku AND status = 'done'", sku=sku
            )
            == [(5,)]
        ),
        what="five out-of-stock mails",
    )


@pytest.mark.parametrize("arguments", [("text",), ([], []), ()])
def test_an_argument_that_is_no_list_is_refused_as_a_whole(shop, arguments):
    with pytest.raises(Exception, match="commands must be one list, and the only argument"):
        shop.ask("many", *arguments)


def test_a_list_that_is_too_long_is_refused_as_a_whole(shop, sku):
    with pytest.raises(Exception, match="commands must be at most 1000 in one message"):
        shop.ask("many", [line("o1", sku, 1)] * 1001)


def test_a_worker_killed_halfway_loses_and_doubles_nothing(shop, sku, backend, worker):
    shop.ask("change_batch_quantity", ref=f"b-{sku}", qty=10_000)
    bulk = shop.send("many", [line(f"o{number}", sku, 1) for number in range(1000)])

    def allocated() -> int:
        return backend.sql("SELECT count(*) FROM allocations WHERE sku = :sku", sku=sku)[0][0]

    eventually(lambda: allocated() > 10, every=0.01, what="the first lines")
    for child in psutil.Process(worker.pid).children():
        os.kill(child.pid, signal.SIGKILL)

    outcomes = bulk.get(timeout=60)
    assert {outcome["result"] for outcome in outcomes} == {f"b-{sku}"}
    assert allocated() == 1000
    assert backend.sql("SELECT allocated_quantity FROM batches WHERE sku = :sku", sku=sku) == [(1000,)]
