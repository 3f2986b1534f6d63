"""An operator's filter never matches more than was typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click.testing
import pytest

from allocation.cli import tool as command_line
from messaging.operator.cli.tool import Tool
from messaging.operator.deliveries import DeliveryQueries
from messaging.postgres.filters import DeliveryFilter
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, put, state

HANDLER = "send_out_of_stock_notification"

Run = Callable[..., click.testing.Result]


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app on an empty database."""
    yield from app_on(clean_database)


@pytest.fixture
def tool(app: MessagingApp) -> Iterator[Run]:
    """`tool("deliveries", "list")` runs the operator's tool on that database."""
    obj = Tool(app.runtime.project, "tasks:app")
    runner = click.testing.CliRunner()
    yield lambda *arguments: runner.invoke(command_line, arguments, obj=obj, prog_name="allocation")
    obj.runtime.engine.dispose()


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize(
    "option", ["--handler", "--event", "--error", "--correlation", "--since", "--older-than"]
)
def test_a_blank_filter_beside_another_is_refused_instead_of_dropped(tool, app, option, blank):
    other = ("--event", "OutOfStock") if option == "--handler" else ("--handler", HANDLER)
    delivery_id = put(app)

    for command in (("rerun",), ("discard", "--reason", "a test"), ("list",)):
        done = tool("deliveries", *command, *other, option, blank)
        assert done.exit_code == 2
        assert f"Invalid value for '{option}'" in done.stderr

    assert state(app, delivery_id) == "failed"


@pytest.mark.parametrize("noun", ["deliveries", "dead-letters"])
def test_a_blank_reason_is_refused(tool, app, noun):
    delivery_id = put(app)

    done = tool(noun, "discard", delivery_id, "--reason", " ")

    assert done.exit_code == 2
    assert "it is blank; give a reason" in done.stderr
    assert state(app, delivery_id) == "failed"


def test_a_discard_says_that_it_is_final(tool, app):
    done = tool("deliveries", "discard", put(app), "--reason", "a test")

    assert done.output == "1 discarded for good.\n"
    assert "This is final" in tool("deliveries", "discard", "--help").output


@pytest.mark.parametrize("option", ["--reason", "--task"])
def test_a_blank_filter_of_dead_letters_is_refused(tool, option):
    assert tool("dead-letters", "list", option, "").exit_code == 2


def test_a_filter_by_an_empty_text_is_still_a_filter(app):
    put(app)

    assert DeliveryQueries(app.runtime.engine).find(DeliveryFilter(handlers=("",))) == []
    assert len(DeliveryQueries(app.runtime.engine).find(DeliveryFilter(handlers=()))) == 1


@pytest.mark.parametrize("command", [("list",), ("rerun", "--dry-run"), ("discard", "--reason", "a test")])
def test_a_misspelled_name_is_refused_with_those_that_exist(tool, app, command):
    delivery_id = put(app)
    put(app, handler="of_an_older_release")

    handler = tool("deliveries", *command, "--handler", "send_out")
    event = tool("deliveries", *command, "--event", "Foo")

    assert (handler.exit_code, event.exit_code) == (2, 2)
    assert "No handler is called 'send_out'" in handler.stderr
    assert f"of_an_older_release, reallocate, {HANDLER}" in handler.stderr
    assert "No event is called 'Foo'" in event.stderr
    assert "OutOfStock" in event.stderr
    assert state(app, delivery_id) == "failed"


def test_a_handler_that_a_release_removed_can_still_be_selected(tool, app):
    delivery_id, other = put(app, handler="gone", event_type="LongAgo"), put(app)

    assert delivery_id in tool("deliveries", "list", "--handler", "gone", "--event", "LongAgo").stdout
    assert tool("deliveries", "discard", "--handler", "gone", "--reason", "removed").exit_code == 0

    assert (state(app, delivery_id), state(app, other)) == ("discarded", "failed")


@pytest.mark.parametrize(
    ("moment", "listed"),
    [
        ("2026-01-01T00:00+23:59", True),  # PostgreSQL knows offsets up to 15:59:59 alone
        ("2026-01-01T00:00+00:00:00.5", True),
        ("0001-01-01T00:00+23:59", False),
        ("999999d", False),
    ],
)
def test_a_time_that_python_reads_is_one_for_the_database_or_refused(tool, app, moment, listed):
    delivery_id = put(app)

    done = tool("deliveries", "list", "--since", moment)

    assert (delivery_id in done.stdout) is listed
    assert done.exit_code == (0 if listed else 2)
    assert listed or "is not a time: write" in done.stderr


def test_a_handler_is_also_selected_under_the_name_it_had_before(tool, app):
    """Deliveries keep the name that their handler had when they were written."""
    renamed, other = put(app, handler="announce_to_the_team"), put(app, handler="reallocate")

    assert renamed in tool("deliveries", "list", "--handler", HANDLER).stdout
    tool("deliveries", "discard", "--handler", HANDLER, "--reason", "a test")

    assert (state(app, renamed), state(app, other)) == ("discarded", "failed")


def test_a_filter_by_text_that_no_row_can_hold_finds_what_is_kept_of_it(tool, app):
    """A terminal hands over bytes that are no UTF-8 as halves of surrogate pairs."""
    delivery_id = put(app, error="File \\udcff: not found")

    done = tool("deliveries", "list", "--error", "\udcff")

    assert delivery_id in done.stdout
