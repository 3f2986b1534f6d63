"""Any JSON as the arguments of any task gives a result, or an error of the contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import celeryconfig
from allocation.bootstrap import project
from allocation.config import Settings
from local.servers.redis_server import Redis
from messaging.worker.app import MessagingApp, make_app
from tests.property.strategies import NASTY, json_values

#: The errors that a sender may get. A task raises no others, whatever was sent.
CONTRACT = {"InvalidMessage", "InvalidSku", "UnknownBatch", "BatchAlreadyExists", "UnknownMessage"}
LONGEST_ANSWER = 1_000  # characters
FIELDS = {
    "allocation.create_batch": ("ref", "sku", "qty", "eta"),
    "allocation.allocate": ("orderid", "sku", "qty"),
    "allocation.change_batch_quantity": ("ref", "qty"),
    "allocation.many": ("commands",),
    "allocation.send_out_of_stock_notification": (),
    "allocation.reallocate": (),
}


@pytest.fixture(scope="module")
def app(new_database: Any, redis_server: Redis) -> Iterator[MessagingApp]:
    """The workers' app on the test's own database; tasks run in this process."""
    own = Settings(
        _env_file=None,
        database_url=new_database(),
        broker_url=redis_server.url_of(2),
        result_backend_url=redis_server.url_of(3),
    )
    app = make_app(replace(project, settings=lambda: own), celeryconfig)
    yield app
    app.runtime.engine.dispose()
    app.close()


def check(app: MessagingApp, task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Run a task with a message's arguments, and check that the answer conforms to the contract."""
    args, kwargs = json.loads(json.dumps([args, kwargs]))

    outcome = app.tasks[task].apply(args=args, kwargs=kwargs, task_id=str(uuid4()))

    if outcome.failed():
        assert type(outcome.result).__name__ in CONTRACT, repr(outcome.result)
        assert len(str(outcome.result)) < LONGEST_ANSWER
        assert "\n" not in str(outcome.result)
        assert "\x1b" not in str(outcome.result)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    task=st.sampled_from(sorted(FIELDS)),
    args=st.lists(json_values, max_size=5),
    kwargs=st.dictionaries(st.text(max_size=12), json_values, max_size=4),
)
def test_any_json_is_a_result_or_an_error_of_the_contract(
    app: MessagingApp, task: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """Whatever the arguments, the sender gets a result or a one-line error."""
    check(app, task, args, kwargs)


@pytest.mark.parametrize("task", sorted(FIELDS))
@pytest.mark.parametrize("name", ["task", "self", "args", "kwargs", "request", "cls"])
def test_a_field_may_have_the_name_of_anything_in_our_code(app: MessagingApp, task: str, name: str) -> None:
    """Else an event with a field `task` would fail in each handler, a command with an error of Python's."""
    check(app, task, [], {name: 1})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), task=st.sampled_from([task for task, fields in FIELDS.items() if fields]))
def test_any_json_in_the_right_fields_is_a_result_or_an_error_of_the_contract(
    app: MessagingApp, data: st.DataObject, task: str
) -> None:
    """The fields have the right names and any values."""
    near = json_values | st.sampled_from([*NASTY, "sku", 1, "2026-01-31", "2026-02-30"])
    fields = {name: data.draw(near, label=name) for name in FIELDS[task]}

    check(app, task, [], fields)


@settings(max_examples=150, deadline=None)
@given(item=st.lists(json_values | st.sampled_from(sorted(FIELDS)), max_size=4) | json_values)
def test_any_item_of_a_bulk_message_gets_its_own_answer(app: MessagingApp, item: Any) -> None:
    """One bad command does not affect the others in its message."""
    outcome = app.tasks["allocation.many"].apply(args=[[item]], task_id=str(uuid4()))

    if outcome.failed():
        assert type(outcome.result).__name__ in CONTRACT, repr(outcome.result)
    else:
        [answer] = outcome.result
        assert answer.get("error", {"type": "InvalidMessage"})["type"] in CONTRACT, answer
