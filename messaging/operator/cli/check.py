"""`check` and `backlog`: what a deployment is like now."""

from __future__ import annotations

from dataclasses import asdict

import click

from messaging.operator.check import Checkup, Finding
from messaging.operator.cli.options import json_option
from messaging.operator.cli.output import print_json, print_table
from messaging.operator.cli.tool import REFUSED, Documented, Tool
from messaging.operator.queues import load

pass_tool = click.make_pass_decorator(Tool)


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} check || echo "something is wrong"

Environment: {PROJECT}_DATABASE_URL, {PROJECT}_BROKER_URL, {PROJECT}_RESULT_BACKEND_URL, {PROJECT}_SMTP_URL.
Exit status: 0 if everything works, else 1; "look" marks work for an operator.""",
)
@json_option
@pass_tool
def check(tool: Tool, as_json: bool) -> None:
    """Check settings, servers, schema, locks, workers, queues, listeners, beat, clocks, and what failed."""
    findings = list(Checkup(lambda: tool.app, tool.runtime, tool.app_path.partition(":")[0]).run())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("check", "", "what"), map(_finding, findings))
    if not all(finding.ok for finding in findings):
        raise SystemExit(REFUSED)


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} backlog

Environment: {PROJECT}_BROKER_URL.""",
)
@pass_tool
def backlog(tool: Tool) -> None:
    """Print how many commands and deliveries wait or are being worked on: a number to scale workers by."""
    project = tool.project
    click.echo(load(tool.app, (project.commands_queue, project.events_queue)))


def _finding(finding: Finding) -> tuple[str, str, str]:
    remedy = f"\n{finding.remedy}" if finding.remedy else ""
    return finding.name, finding.state, finding.detail + remedy
