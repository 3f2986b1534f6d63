"""`audit list`: what operators did."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

import click

from messaging.operator.cli.options import MOMENT, TEXT, list_limit_option
from messaging.operator.cli.output import console, print_table, when
from messaging.operator.cli.tool import Group, Tool

pass_tool = click.make_pass_decorator(Tool)


@click.group(cls=Group, epilog="Example:\n  {prog} audit list --since 2h")
def audit() -> None:
    """Read the record of what operators did: it outlives the deliveries."""


@audit.command(
    "list",
    epilog="""Example:
  {prog} audit list --action rerun --since 7d
  {prog} audit list --json --limit 100000""",
)
@click.option("--actor", type=TEXT, help="Only by this person.")
@click.option("--action", type=TEXT, help="Only this action, such as rerun, discard, edit, pause, resume.")
@click.option("--since", type=MOMENT, help="At or after this time; or an age: 2h.")
@list_limit_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, one entry in each.")
@pass_tool
def list_(
    tool: Tool, actor: str | None, action: str | None, since: datetime | None, limit: int, as_json: bool
) -> None:
    """List actions, the latest first: who, what, to what, why, how many, and what came of it.

    An action that is `under way` and does not go on was interrupted after as many as it says.
    """
    entries = tool.runtime.audit.find(limit, actor=actor, action=action, since=since)
    if as_json:
        for entry in entries:
            click.echo(json.dumps({**asdict(entry), "at": entry.at.isoformat()}, ensure_ascii=False))
    elif entries:
        rows = (
            (when(one.at), one.actor, one.action, one.count, one.outcome, _what(one.subject, one.reason))
            for one in entries
        )
        print_table(("at", "who", "what", "count", "outcome", "subject and reason"), rows)
    else:
        console().print("No entries match.")


def _what(subject: str, reason: str | None) -> str:
    return f"{subject}: {reason}" if reason else subject
