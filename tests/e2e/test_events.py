"""Event handlers have their own tasks: they fail, are retried and re-run apart from their command."""

from __future__ import annotations

import pytest

from local.waiting import eventually

pytestmark = pytest.mark.usefixtures("worker", "housekeeping")

STATE = """
SELECT status, attempts, last_error, last_traceback, id::text
FROM deliveries WHERE payload->>'sku' = :sku"""


def mails_about(mail, sku: str) -> list[str]:
    """Return the Message-IDs of the mails about a product."""
    return [m["Message-ID"] for m in mail.mails.all() if m["Subject"] == f"Out of stock for {sku}"]


def wait_for_status(backend, sku: str, status: str) -> tuple:
    """Wait until a product's only delivery has this state, and return it."""
    return eventually(
        lambda: next((row for row in backend.sql(STATE, sku=sku) if row[0] == status), None),
        60,
        f"a delivery about {sku} that is {status}",
    )


def test_the_stock_team_gets_one_mail_with_the_deliverys_id(shop, sku, backend, module_mail):
    assert shop.ask("allocate", "o1", sku, 2) is None

    delivery_id = wait_for_status(backend, sku, "done")[-1]
    assert mails_about(module_mail, sku) == [f"<{delivery_id}.1@example.com>"]


def test_a_failing_handler_is_retried_and_fails_without_affecting_its_command(
    shop, sku, backend, mail_is_down
):
    assert shop.ask("allocate", "o1", sku, 2) is None
    assert shop.ask("allocate", "o2", sku, 1) == f"batch-{sku}"

    _, attempts, error, trace, _ = wait_for_status(backend, sku, "failed")
    assert attempts == 3  # once, and max_retries = 2
    assert "Connect" in error
    assert "smtplib" in trace
    runs = backend.sql(
        "SELECT number FROM attempts JOIN deliveries ON id = delivery_id"
        " WHERE payload->>'sku' = :sku ORDER BY number",
        sku=sku,
    )
    assert runs == [(1,), (2,), (3,)]


def test_a_failed_event_is_rerun_by_the_schedule_after_its_cause_is_fixed(shop, sku, backend, mail_is_down):
    shop.ask("allocate", "o1", sku, 2)
    wait_for_status(backend, sku, "failed")

    mail_is_down.start()
    backend.sql(
        "UPDATE deliveries SET finished_at = finished_at - interval '1 day' WHERE payload->>'sku' = :sku"
        " RETURNING 1",
        sku=sku,
    )
    shop.app.send_task("allocation.rerun", queue="allocation.housekeeping", declare=())

    delivery_id = wait_for_status(backend, sku, "done")[-1]
    assert mails_about(mail_is_down, sku) == [f"<{delivery_id}.1@example.com>"]


def test_an_event_whose_message_is_lost_still_reaches_its_handler(
    shop, sku, backend, broker, worker, module_mail
):
    worker.stop()
    sent = shop.send("allocate", "o1", sku, 2)
    worker.start()
    backend.wait_for_worker(worker)
    sent.get(timeout=30)
    broker.lose("allocation.events")

    wait_for_status(backend, sku, "done")
    assert len(mails_about(module_mail, sku)) == 1


def test_copies_of_a_delivery_take_effect_once(shop, sku, backend, broker, module_mail):
    shop.ask("allocate", "o1", sku, 2)
    delivery_id = wait_for_status(backend, sku, "done")[-1]

    for _ in range(5):
        shop.app.send_task(
            "allocation.send_out_of_stock_notification",
            task_id=delivery_id,
            queue="allocation.events",
            declare=(),
        )
    shop.app.send_task(
        "allocation.send_out_of_stock_notification", queue="allocation.events", declare=()
    )  # no such delivery
    shop.ask("allocate", "o2", sku, 1)

    eventually(lambda: broker.waiting("allocation.events") == 0)
    assert len(mails_about(module_mail, sku)) == 1
