"""Tasks and rows refer to a message by the name of its class, so ambiguous names are refused at the start."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass, replace
from decimal import Decimal
from typing import Any

import pytest

import celeryconfig
from allocation.bootstrap import project
from allocation.domain.commands import Allocate
from allocation.domain.events import OutOfStock
from messaging.bus import MessageBus
from messaging.messages import Command, Event
from messaging.operator.cli import operator_tool
from messaging.project import Project
from messaging.worker.app import make_app


def ignore(_message: Any, _uow: object) -> None:
    """Do nothing."""


def command(name: str) -> type[Command]:
    """Return a command without fields; `Prune` is what beat would carry out every hour."""
    return dataclass(frozen=True)(type(name, (Command,), {}))


def event(name: str, *fields: tuple[str, Any]) -> type[Event]:
    return make_dataclass(name, fields, bases=(Event,), frozen=True)


def project_with(*messages: type[Command] | type[Event]) -> Project:
    """Return the project with more commands and events."""
    commands = {kind: ignore for kind in messages if issubclass(kind, Command)}
    events = {kind: [ignore] for kind in messages if issubclass(kind, Event)}
    bus = MessageBus({**project.bus.commands, **commands}, {**project.bus.events, **events})
    return replace(project, bus=bus)


@pytest.mark.parametrize("name", ["Relay", "Announce", "CollectDeadLetters", "Rerun", "Prune", "Many"])
def test_a_command_with_the_name_of_a_task_of_the_bus_is_refused(name: str):
    with pytest.raises(ValueError, match=f"No command may be called {name}: another task is called"):
        make_app(project_with(command(name)), celeryconfig)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (event("Cancelled", ("order", str)), event("Cancelled", ("ticket", str))),
        (command("Cancel"), command("Cancel")),
        (Allocate, command("Allocate")),
        (OutOfStock, event("OutOfStock")),
        (command("Cancel"), event("Cancel")),
    ],
)
def test_two_messages_of_one_name_are_refused(first: Any, second: Any):
    with pytest.raises(ValueError, match=f"Two messages are called {first.__name__}"):
        make_app(project_with(first, second), celeryconfig)


def test_two_commands_whose_tasks_would_have_one_name_are_refused():
    with pytest.raises(ValueError, match=r"another task is called allocation\.a_bc"):
        make_app(project_with(command("ABc"), command("A_bc")), celeryconfig)


@pytest.mark.parametrize("kind", [Command, Event])
def test_a_message_with_a_field_that_does_not_survive_json_is_refused(kind: Any):
    odd = make_dataclass("Weighed", [("weight", Decimal)], bases=(kind,), frozen=True)

    with pytest.raises(ValueError, match="The field weight of Weighed: Decimal does not survive JSON"):
        make_app(project_with(odd), celeryconfig)


@pytest.mark.parametrize(
    "name", ["Migrate", "Check", "Backlog", "Trace", "Deliveries", "DeadLetters", "Audit", "Replay", "Load"]
)
def test_a_command_with_the_name_of_one_of_the_operators_tool_is_refused(name: str):
    with pytest.raises(ValueError, match="the operator's tool has that command"):
        operator_tool(project_with(command(name)), "tasks:app")


def test_other_commands_and_events_are_taken():
    more = project_with(command("Cancel"), event("Cancelled"))

    assert make_app(more, celeryconfig).tasks.keys() >= {"allocation.cancel", "allocation.ignore"}
    assert "cancel" in operator_tool(more, "tasks:app").commands
