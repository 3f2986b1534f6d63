"""The bus: a command's failure is raised, each event handler fails on its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from messaging.bus import MessageBus
from messaging.delivery import Delivery
from messaging.errors import UnknownMessage
from messaging.messages import Command, Event
from tests.fakes import FakeUnitOfWork


@dataclass(frozen=True)
class Greet(Command):
    name: str


@dataclass(frozen=True)
class Greeted(Event):
    name: str


class Recorder:
    """Handlers that record their messages; `failing` ones then raise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def handler(self, name: str, failing: bool = False, result: object = None):
        def handle(message, uow):
            self.calls.append((name, message))
            if failing:
                raise ValueError(f"{name} failed")
            return result

        handle.__name__ = name
        return handle


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_command_has_one_handler_and_its_result_is_returned(recorder):
    bus = MessageBus({Greet: recorder.handler("greet", result="hello")}, {})

    assert bus.handle(Greet("Ada"), FakeUnitOfWork()) == ["hello"]


def test_an_error_in_a_command_is_raised_to_the_sender(recorder):
    bus = MessageBus({Greet: recorder.handler("greet", failing=True)}, {})

    with pytest.raises(ValueError, match="greet failed"):
        bus.handle(Greet("Ada"), FakeUnitOfWork())


def test_an_event_reaches_every_handler_although_one_of_them_fails(recorder, caplog):
    handlers = [
        recorder.handler("first"),
        recorder.handler("second", failing=True),
        recorder.handler("third"),
    ]
    bus = MessageBus({}, {Greeted: handlers})

    assert bus.handle(Greeted("Ada"), FakeUnitOfWork()) == []
    assert [name for name, _ in recorder.calls] == ["first", "second", "third"]
    assert "Exception handling event Greeted(name='Ada') with second" in caplog.text


def test_an_event_without_handlers_is_ignored(caplog):
    assert MessageBus({}, {Greeted: []}).handle(Greeted("Ada"), FakeUnitOfWork()) == []
    assert caplog.text == ""


def test_an_unregistered_event_is_logged_as_a_warning(caplog):
    bus = MessageBus({}, {})

    assert bus.handle(Greeted("Ada"), FakeUnitOfWork()) == []
    assert bus.handlers_of(Greeted("Bob")) == []
    assert "No handlers are registered for Greeted(name='Ada')" in caplog.text
    assert "No handlers are registered for Greeted(name='Bob')" in caplog.text


@pytest.mark.parametrize("message", ["Greet", None, {"name": "Ada"}, Greet])
def test_anything_else_is_refused_by_name(message):
    with pytest.raises(UnknownMessage, match="neither a command nor an event"):
        MessageBus({}, {}).handle(message, FakeUnitOfWork())


def test_a_command_without_a_handler_is_refused_by_name():
    with pytest.raises(UnknownMessage, match=r"Greet\(name='Ada'\) has no handler"):
        MessageBus({}, {}).handle(Greet("Ada"), FakeUnitOfWork())


def test_handlers_run_in_a_unit_of_work_that_is_committed_with_their_result(recorder):
    class WatchedUnitOfWork(FakeUnitOfWork):
        def commit(self, result: object = None) -> list[Delivery]:
            recorder.calls.append(("commit", result))
            return super().commit(result)

    MessageBus({Greet: recorder.handler("greet", result=7)}, {}).handle(Greet("Ada"), WatchedUnitOfWork())

    assert [name for name, _ in recorder.calls] == ["greet", "commit"]
    assert recorder.calls[1] == ("commit", 7)


def test_a_handler_that_commits_its_unit_of_work_is_refused_and_leaves_no_trace():
    def greet(_command, uow):
        uow.commit()

    uow = FakeUnitOfWork()

    with pytest.raises(RuntimeError, match="The bus commits the unit of work"):
        MessageBus({Greet: greet}, {}).handle(Greet("Ada"), uow)
    assert uow.committed == 0


async def greet_later(_message: object, _uow: object) -> None:
    """Be a coroutine function."""


def greet_each(_message: object, _uow: object) -> Iterator[int]:
    """Be a generator function."""
    yield 1


async def greet_each_later(_message: object, _uow: object) -> AsyncIterator[int]:
    """Be an async generator function."""
    yield 1


@pytest.mark.parametrize("inner", [greet_later, greet_each, greet_each_later])
def test_a_handler_that_returns_what_nobody_runs_has_failed(inner: Callable[..., object], caplog):
    """As behind a decorator that hides what kind of function it decorates."""

    def greet(message: object, uow: object) -> object:
        return inner(message, uow)

    uow = FakeUnitOfWork()

    with pytest.raises(TypeError, match=r"greet returned a .*, which nothing runs"):
        MessageBus({Greet: greet}, {}).handle(Greet("Ada"), uow)
    MessageBus({}, {Greeted: [greet]}).handle(Greeted("Ada"), uow)
    assert uow.committed == 0
    assert "Exception handling event Greeted(name='Ada') with greet" in caplog.text
