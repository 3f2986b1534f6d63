"""Commands through a real worker, sent by an app that imports nothing of this project."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from local.waiting import eventually

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def sku(shop) -> str:
    """The test's own product: ten on the shelf, ten in a shipment."""
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"shelf-{sku}", sku=sku, qty=10)
    shop.ask("create_batch", ref=f"ship-{sku}", sku=sku, qty=10, eta="2026-01-31")
    return sku


def refusal(shop, task: str, *args: object, **fields: object) -> tuple[str, str]:
    """Return class name and text of the sender's error."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # Celery creates the class at run time
        shop.ask(task, *args, **fields)
    return type(caught.value).__name__, str(caught.value)


def test_the_sender_gets_the_batch_reference(shop, sku):
    assert shop.ask("allocate", orderid="o1", sku=sku, qty=10) == f"shelf-{sku}"
    assert shop.ask("allocate", "o2", sku, 10) == f"ship-{sku}"


def test_out_of_stock_is_an_answer_not_an_error(shop, sku):
    assert shop.ask("allocate", orderid="o1", sku=sku, qty=11) is None


def test_repeating_a_command_is_harmless(shop, sku, backend):
    first = shop.ask("allocate", orderid="o1", sku=sku, qty=10)
    second = shop.ask("allocate", orderid="o1", sku=sku, qty=10)
    shop.ask("create_batch", ref=f"shelf-{sku}", sku=sku, qty=10)

    assert first == second
    assert backend.sql("SELECT allocated_quantity FROM batches WHERE reference = :r", r=first) == [(10,)]


def test_a_smaller_batch_moves_its_last_lines_elsewhere(shop, sku, backend):
    shop.ask("allocate", orderid="o1", sku=sku, qty=4)
    shop.ask("allocate", orderid="o2", sku=sku, qty=4)

    assert shop.ask("change_batch_quantity", ref=f"shelf-{sku}", qty=5) is None

    eventually(
        lambda: (
            backend.sql(
                "SELECT orderid, batch_reference FROM allocations WHERE sku = :sku ORDER BY 1", sku=sku
            )
            == [("o1", f"shelf-{sku}"), ("o2", f"ship-{sku}")]
        ),
        what="the line given back on the shipment",
    )


@pytest.mark.parametrize(
    ("task", "fields", "error"),
    [
        ("allocate", {"sku": "NONE"}, ("InvalidSku", "Invalid sku NONE")),
        ("allocate", {"qty": "3"}, ("InvalidMessage", "qty must be a whole number")),
        ("allocate", {"qty": True}, ("InvalidMessage", "qty must be a whole number")),
        ("allocate", {"qty": 0}, ("InvalidMessage", "qty must be at least 1")),
        ("allocate", {"sku": "a\u0000b"}, ("InvalidMessage", "sku must have printable characters only")),
        ("allocate", {"colour": "red"}, ("InvalidMessage", "colour is not a field of this message")),
        ("allocate", {"orderid": ""}, ("InvalidMessage", "orderid must have at least 1 character")),
    ],
)
def test_a_refusal_reaches_the_sender_by_class_name_with_readable_text(shop, sku, task, fields, error):
    good = {"orderid": "o1", "sku": sku, "qty": 1}

    assert refusal(shop, task, **{**good, **fields}) == error


def test_refusals_of_the_other_commands_are_named_too(shop, sku):
    assert refusal(shop, "change_batch_quantity", "b9", 5) == ("UnknownBatch", "Unknown batch b9")
    assert refusal(shop, "create_batch", f"ship-{sku}", sku, 11) == (
        "BatchAlreadyExists",
        f"Batch ship-{sku} already exists with other content",
    )
    assert refusal(shop, "create_batch", "b9", sku, 1, "31.1.2026") == (
        "InvalidMessage",
        "eta must be a date as YYYY-MM-DD",
    )
    assert refusal(shop, "allocate") == ("InvalidMessage", "orderid is missing")


def test_a_message_sent_twice_takes_effect_once_and_returns_the_first_result_twice(
    shop, other_shop, sku, backend
):
    task_id = str(uuid4())
    first = shop.send("allocate", "o1", sku, 10, task_id=task_id).get(timeout=30)
    shop.ask("change_batch_quantity", f"shelf-{sku}", 0)  # a fresh run would give another answer

    shop.app.AsyncResult(task_id).forget()
    second = other_shop.send("allocate", "o1", sku, 10, task_id=task_id).get(timeout=30)

    assert first == second == f"shelf-{sku}"
    assert len(backend.sql("SELECT FROM inbox WHERE task_id = :id", id=task_id)) == 1


def test_copies_of_a_message_that_run_at_once_have_one_effect(shop, sku, backend):
    task_id = str(uuid4())

    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: shop.send("allocate", "o1", sku, 3, task_id=task_id), range(8)))

    assert {copy.get(timeout=30) for copy in copies} == {f"shelf-{sku}"}
    shop.ask("allocate", "o2", sku, 1)  # queued behind the copies
    assert backend.sql("SELECT allocated_quantity FROM batches WHERE reference = :r", r=f"shelf-{sku}") == [
        (4,)
    ]


def test_an_id_that_another_command_used_is_refused(shop, other_shop, sku):
    task_id = str(uuid4())
    shop.send("allocate", "o1", sku, 3, task_id=task_id).get(timeout=30)
    shop.app.AsyncResult(task_id).forget()

    with pytest.raises(Exception, match="id was used before, for another command"):
        other_shop.send("allocate", "o2", sku, 3, task_id=task_id).get(timeout=30)


def test_an_expired_command_is_refused_by_name_and_its_key_can_be_used_again(shop, sku, backend):
    key, order = f"checkout-{uuid4()}", {"orderid": "late", "sku": sku, "qty": 1}
    expired = shop.app.send_task(
        "allocation.allocate",
        kwargs=order,
        queue="allocation.commands",
        headers={"idempotency_key": key},
        expires=datetime.now(UTC) - timedelta(seconds=1),
        declare=(),
    )

    with pytest.raises(Exception, match="The message expired before a worker started it") as told:
        expired.get(timeout=30)
    assert type(told.value).__name__ == "Expired"
    assert shop.send("allocate", key=key, **order).get(timeout=30) == f"shelf-{sku}"


def test_a_plain_sender_sets_idempotency_keys_in_a_header(shop, sku, backend):
    key = f"checkout-{uuid4()}"
    first = shop.send("allocate", "o1", sku, 3, key=key)
    assert first.get(timeout=30) == f"shelf-{sku}"
    shop.ask("change_batch_quantity", f"shelf-{sku}", 0)

    repeat = shop.send("allocate", "o1", sku, 3, key=key)

    assert repeat.id != first.id
    assert repeat.get(timeout=30) == f"shelf-{sku}"


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 256, 7, ["a"]])
def test_an_invalid_key_is_refused(shop, sku, key):
    sent = shop.app.send_task(
        "allocation.allocate", ("o1", sku, 1), queue="allocation.commands",
        headers={"idempotency_key": key}, declare=(),
    )  # fmt: skip

    with pytest.raises(Exception, match="idempotency_key must be a text of 1 to 255 printable characters"):
        sent.get(timeout=30)
