"""The message bus: a command's failure is raised, each event handler fails on its own.

Source: Percival and Gregory, "Architecture Patterns with Python", chapter 10, "Commands and Command Handler".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from inspect import isasyncgen, isawaitable, iscoroutine, isgenerator
from typing import Any

from messaging.delivery import Delivery
from messaging.errors import UnknownMessage
from messaging.messages import Command, Event, Message
from messaging.unit_of_work import UnitOfWork

logger = logging.getLogger(__name__)

Handler = Callable[[Any, Any], Any]  # (message, unit of work) -> result


class MessageBus:
    """Dispatches a command to its one handler and an event to each of its handlers."""

    def __init__(
        self,
        commands: Mapping[type[Command], Handler],
        events: Mapping[type[Event], Sequence[Handler]],
    ) -> None:
        self.commands = dict(commands)
        self.events = {kind: list(handlers) for kind, handlers in events.items()}
        self.event_types = {kind.__name__: kind for kind in self.events}
        self.command_types = {kind.__name__: kind for kind in self.commands}
        self.event_handlers = {
            handler.__name__: handler for handlers in self.events.values() for handler in handlers
        }

    def handle(self, message: Message, uow: UnitOfWork) -> list[Any]:
        """Handle a message and all its consequences in this process; return the results of the commands.

        A worker sends the deliveries instead, so that each handler runs in its own task.

        Raises:
            UnknownMessage: this is no command or event of the project.
            Exception: raised by a command's handler. Errors of event handlers are only logged.
        """
        results: list[Any] = []
        queue: list[Any] = [message]
        while queue:
            message = queue.pop(0)
            if isinstance(message, Delivery):
                self._deliver(self.event_handlers[message.handler], message.event, queue, uow)
            elif isinstance(message, Event):
                self.handle_event(message, queue, uow)
            elif isinstance(message, Command):
                results.append(self.handle_command(message, queue, uow))
            else:
                raise UnknownMessage(f"{message!r} is neither a command nor an event")
        return results

    def handle_event(self, event: Event, queue: list[Any], uow: UnitOfWork) -> None:
        """Run every handler of an event; a failure is logged and does not stop the others."""
        for handler in self._handlers_of(event):
            self._deliver(handler, event, queue, uow)

    def handle_command(self, command: Command, queue: list[Any], uow: UnitOfWork) -> Any:
        """Run the one handler of a command and return its result; its errors are raised.

        The deliveries of its events are added to `queue`.
        """
        handler = self.commands.get(type(command))
        if handler is None:
            raise UnknownMessage(f"{command!r} has no handler")
        with uow:
            result, deliveries = self.run(handler, command, uow)
        queue.extend(deliveries)
        return result

    def run(self, handler: Handler, message: Message, uow: UnitOfWork) -> tuple[Any, list[Delivery]]:
        """Run one handler in an open unit of work and commit it; return its result and what to send.

        Every handler runs here, of commands and events, in workers and on fakes.

        Raises:
            TypeError: it returned a coroutine or a generator, which nobody would run.
        """
        logger.debug("Handling %r with %s", message, handler.__name__)
        uow.in_handler = True
        try:
            result = handler(message, uow)
        finally:
            uow.in_handler = False
        if isawaitable(result) or isgenerator(result) or isasyncgen(result):
            if iscoroutine(result):
                result.close()  # else Python warns that nobody has awaited it
            raise TypeError(
                f"{handler.__name__} returned a {type(result).__name__}, which nothing runs: a handler must"
                " be a plain function"
            )
        return result, uow.commit(result)

    def handlers_of(self, event: Event) -> list[str]:
        """Return the names of an event's handlers."""
        return [handler.__name__ for handler in self._handlers_of(event)]

    def _handlers_of(self, event: Event) -> list[Handler]:
        handlers = self.events.get(type(event))
        if handlers is None:
            logger.warning(
                "No handlers are registered for %r; register an empty list if it needs none", event
            )
        return handlers or []

    def _deliver(self, handler: Handler, event: Any, queue: list[Any], uow: UnitOfWork) -> None:
        try:
            with uow:
                _, deliveries = self.run(handler, event, uow)
        except Exception:
            logger.exception("Exception handling event %r with %s", event, handler.__name__)
        else:
            queue.extend(deliveries)
