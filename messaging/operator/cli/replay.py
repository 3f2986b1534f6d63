"""`replay`: send a logged message again."""

from __future__ import annotations

import sys

import click

from messaging.messages import Command, Event
from messaging.operator.cli.options import key_option, timeout_option
from messaging.operator.cli.output import console
from messaging.operator.cli.send import execute
from messaging.operator.cli.tool import Documented, Tool
from messaging.wire.replay import parse_line

pass_tool = click.make_pass_decorator(Tool)


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} replay '{message}'
  grep Refused worker.log | tail -1 | {prog} replay -

The line is parsed as data; nothing in it is executed.
Environment: {PROJECT}_BROKER_URL, {PROJECT}_DATABASE_URL.""",
)
@click.argument("line")
@key_option
@timeout_option
@pass_tool
def replay(tool: Tool, line: str, idempotency_key: str | None, timeout_s: float) -> None:
    """Send a logged message again: a command as its sender did, an event to each of its handlers.

    LINE is the message as the log shows it, or the whole log line; - reads it from standard input.
    """
    message = parse_line(tool.project.bus, sys.stdin.read() if line == "-" else line)
    if isinstance(message, Command):
        execute(tool, message, timeout_s, idempotency_key)
        return
    assert isinstance(message, Event)  # noqa: S101  # the bus knows nothing else
    for delivery in tool.dispatcher.raise_event(message):
        console().print(f"{message!r} goes to {delivery.handler} as {delivery.id}.", soft_wrap=True)
