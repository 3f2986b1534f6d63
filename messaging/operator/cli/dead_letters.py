"""`dead-letters …`: messages that no task could read."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from uuid import UUID

import click

from messaging.dead_letters import DeadLetter
from messaging.errors import MessagingError
from messaging.operator import replaying
from messaging.operator.cli.options import REASON, TEXT, json_option
from messaging.operator.cli.output import console, print_facts, print_json, print_table, printable, when
from messaging.operator.cli.tool import REFUSED, Failure, Group, Tool
from messaging.postgres.dead_letters import STATES, DeadLetters

#: The fields that a list leaves out, and those that replace them.
WHOLE = {"headers", "properties", "body"}
BEGINNINGS = {"body_head", "headers_head"}

SHOWN_BODY = 20_000  # characters of a body on the terminal

pass_tool = click.make_pass_decorator(Tool)

ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True, type=click.UUID)


@click.group(
    cls=Group,
    epilog="""Example:
  {prog} dead-letters list --reason "unknown task"
  {prog} dead-letters replay 0198c6a2-0000-7000-8000-000000000000""",
)
def dead_letters() -> None:
    """Inspect messages that no task could read: unknown task, broken body, or killed its workers."""


@dead_letters.command(
    "list",
    epilog="""Example:
  {prog} dead-letters list --state all --task {project}. --json

The list has the beginning of each body and of its headers; `show --json` prints a whole letter.""",
)
@click.option("--state", type=click.Choice(list(STATES)), default="open", show_default=True)
@click.option("--reason", type=TEXT, help="Only those whose reason contains this text.")
@click.option("--task", type=TEXT, help="Only those whose task name contains this text.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Show at most this many."
)
@json_option
@pass_tool
def list_(tool: Tool, state: str, reason: str | None, task: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first."""
    letters = DeadLetters(tool.runtime.engine).find(state, reason, task, limit)
    if as_json:
        print_json([_facts(letter, WHOLE, body_head=letter.shown_head) for letter in letters])
    elif letters:
        print_table(("id", "state", "at", "queue", "what"), map(_line, letters))
    else:
        console().print("No dead letters match.")


def _line(letter: DeadLetter) -> tuple[object, ...]:
    what = f"{letter.reason}: {letter.error}\n{letter.task or 'no task'}, id {letter.task_id}"
    return letter.id, letter.state, letter.at, letter.queue, what


def _facts(letter: DeadLetter, hidden: set[str], **shown: str) -> dict[str, Any]:
    facts = {field.name: getattr(letter, field.name) for field in fields(letter)}
    return {
        "state": letter.state,
        **{name: value for name, value in facts.items() if name not in hidden},
        **shown,
    }


@dead_letters.command(epilog="Example:\n  {prog} dead-letters show 0198c6a2-0000-7000-8000-000000000000")
@click.argument("letter_id", metavar="ID", type=click.UUID)
@json_option
@pass_tool
def show(tool: Tool, letter_id: UUID, as_json: bool) -> None:
    """Show one dead letter with its headers and its body, or the beginning of a long body."""
    letter = DeadLetters(tool.runtime.engine).get(str(letter_id))
    if letter is None:
        raise Failure(f"There is no dead letter {letter_id}")
    if as_json:
        print_json(_facts(letter, BEGINNINGS, body=letter.shown_body))
        return
    print_facts(_facts(letter, WHOLE | BEGINNINGS).items())
    print_facts((f"header {name}", repr(value)) for name, value in letter.headers.items())
    print_facts((f"property {name}", repr(value)) for name, value in letter.properties.items())
    console().print("\nbody")
    console().print(printable(letter.shown_body[:SHOWN_BODY]), soft_wrap=True)
    if len(letter.shown_body) > SHOWN_BODY:
        console().print(f"\nThese are the first {SHOWN_BODY:,} characters; --json prints all.")


@dead_letters.command(epilog="Example:\n  {prog} dead-letters replay 0198c6a2-0000-7000-8000-000000000000")
@ids_argument
@click.option("--anyway", is_flag=True, help="Even if this release has no such task; workers may be newer.")
@pass_tool
def replay(tool: Tool, ids: tuple[UUID, ...], anyway: bool) -> None:
    """Replay dead letters, once the code can read them."""
    store, refused = DeadLetters(tool.runtime.engine), False
    for letter_id in map(str, ids):
        try:
            letter = replaying.replay(tool.dispatcher, store, letter_id, tool.actor, anyway=anyway)
            console().print(f"{letter_id} sent to {letter.queue} again ({letter.task}).")
        except MessagingError as error:
            refused = True
            console().print(f"{letter_id} was not sent: {error}.")
    if refused:
        raise SystemExit(REFUSED)


@dead_letters.command(
    epilog="""Example:
  {prog} dead-letters discard 0198c6a2-0000-7000-8000-000000000000 --reason "a port scan"
"""
)
@ids_argument
@click.option("--reason", required=True, type=REASON, help="Why; stored with the letter.")
@pass_tool
def discard(tool: Tool, ids: tuple[UUID, ...], reason: str) -> None:
    """Discard dead letters for good, with a reason."""
    store = DeadLetters(tool.runtime.engine)
    for letter_id in map(str, ids):
        letter = store.discard(letter_id, reason, tool.actor)
        console().print(f"{letter_id} of {when(letter.at)} discarded.")
