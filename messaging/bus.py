"""The message bus: commands fail noisily, events fail independently.

Source: Percival and Gregory, "Architecture Patterns with Python", chapter 10, "Commands and Command Handler".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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

    def handle(self, message: Message, uow: UnitOfWork) -> list[Any]:
        """Handle a message and every event that comes of it; return the results of the commands.

        Raises:
            UnknownMessage: for anything that is no command or event of this project.
            Exception: whatever a command's handler raised. An event's handlers never interrupt.
        """
        results: list[Any] = []
        queue: list[Message] = [message]
        while queue:
            message = queue.pop(0)
            if isinstance(message, Event):
                self.handle_event(message, queue, uow)
            elif isinstance(message, Command):
                results.append(self.handle_command(message, queue, uow))
            else:
                raise UnknownMessage(f"{message!r} is neither a command nor an event")
        return results

    def handle_event(self, event: Event, queue: list[Message], uow: UnitOfWork) -> None:
        """Run every handler of an event; one that fails is logged and stops nobody."""
        for handler in self._handlers_of(event):
            try:
                self.run(handler, event, uow)
            except Exception:
                logger.exception("Exception handling event %r with %s", event, handler.__name__)
                continue
            queue.extend(uow.collect_new_events())

    def handle_command(self, command: Command, queue: list[Message], uow: UnitOfWork) -> Any:
        """Run the one handler of a command and return its result; whatever it raises is raised."""
        handler = self.commands.get(type(command))
        if handler is None:
            raise UnknownMessage(f"{command!r} has no handler")
        result = self.run(handler, command, uow)
        queue.extend(uow.collect_new_events())
        return result

    def run(self, handler: Handler, message: Message, uow: UnitOfWork) -> Any:
        """Run one handler on one message inside one transaction, and commit it."""
        logger.info("Handling %r with %s", message, handler.__name__)
        with uow:
            result = handler(message, uow)
            uow.commit(result)
        return result

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
