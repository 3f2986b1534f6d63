"""Deliveries that are stored under an older name of their handler, whatever it is called now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from allocation.domain.events import OutOfStock
from messaging.options import handler
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, put, receive, sent, state

#: The SKUs that the handler was called with.
calls: list[str] = []


@handler(shares_transaction=True)
def tell_buyers(event: OutOfStock, _uow: Any) -> None:
    """Leave a trace. It was called `tell_stock_team`, and before that `tell_everybody`."""
    calls.append(event.sku)


def other(_event: OutOfStock, _uow: Any) -> None:
    """Handle the same event."""


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The release after two changes of the name."""
    calls.clear()
    renamed = {"tell_everybody": "tell_stock_team", "tell_stock_team": "tell_buyers"}
    yield from app_on(clean_database, {OutOfStock: [tell_buyers, other]}, renamed)


def pending(app: MessagingApp, name: str) -> str:
    """Write a delivery under a name of its handler; return its id."""
    return put(app, handler=name, sku=name, status="pending")


@pytest.mark.parametrize("message", ["tell_everybody", "tell_stock_team", "tell_buyers"])
def test_a_delivery_under_any_name_is_made_whichever_name_its_message_has(app: MessagingApp, message: str):
    names = ["tell_everybody", "tell_stock_team", "tell_buyers"]
    ids = [pending(app, name) for name in names]

    for one in ids:
        receive(app, one, message)

    assert calls == names
    assert {state(app, one) for one in ids} == {"done"}


def test_the_relay_sends_it_under_the_current_name(app: MessagingApp):
    one = pending(app, "tell_everybody")
    ask(app, "UPDATE deliveries SET due_at = now() RETURNING 1")

    housekeeping.relay(app.dispatcher)

    assert sent(app) == [one]
    assert app.runtime.project.handler_task("tell_everybody") == "allocation.tell_buyers"
    assert app.runtime.project.all_names("tell_everybody") == (
        "tell_buyers",
        "tell_everybody",
        "tell_stock_team",
    )


def test_a_message_for_another_handlers_delivery_is_not_logged_as_handled(
    app: MessagingApp, caplog: pytest.LogCaptureFixture
):
    one = pending(app, "tell_buyers")
    caplog.set_level("INFO")

    receive(app, one, "other")

    assert "is not for other" in caplog.text
    assert "Handled" not in caplog.text
    assert state(app, one) == "pending"
