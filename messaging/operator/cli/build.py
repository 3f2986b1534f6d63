"""Build the tool of a project."""

from __future__ import annotations

import click

from messaging import __version__
from messaging.operator.cli import groups, long_reruns, pauses, reruns  # noqa: F401  # add to `deliveries`
from messaging.operator.cli.audit import audit
from messaging.operator.cli.check import backlog, check
from messaging.operator.cli.commands import commands_of
from messaging.operator.cli.dead_letters import dead_letters
from messaging.operator.cli.deliveries import deliveries
from messaging.operator.cli.load import load
from messaging.operator.cli.migrate import migrate
from messaging.operator.cli.replay import replay
from messaging.operator.cli.tool import EXIT_STATUSES, Tool, ToolGroup
from messaging.operator.cli.trace import trace
from messaging.project import Project


def operator_tool(project: Project, app: str, version: str | None = None) -> click.Group:
    """Return the command line of a project; add further commands with `add_command`.

    Args:
        project: the project whose messages, settings and tables it uses.
        app: where the Celery app is, as "module:name"; imported when a command first needs it.
        version: what `--version` prints, else the version of the bus.

    Raises:
        ValueError: a command of the project has the name of one of the tool.
    """
    tool = ToolGroup(
        project.name,
        context_settings={
            "obj": Tool(project, app),
            "help_option_names": ["-h", "--help"],
            "max_content_width": 110,
        },
        help=f"Operator's tool of {project.name}: check, re-run deliveries, replay messages, send commands.",
        epilog=f"""Example:
  {{prog}} check
  {{prog}} deliveries list
  {{prog}} trace ID
  {{prog}} deliveries COMMAND --help

Environment: {{PROJECT}}_DATABASE_URL, {{PROJECT}}_BROKER_URL,
{{PROJECT}}_RESULT_BACKEND_URL, {{PROJECT}}_SMTP_URL
and every other setting; a .env file is read too. NO_COLOR turns colours off.

{EXIT_STATUSES}""",
        no_args_is_help=True,
    )
    said = f"{project.name} {version}" if version else f"{project.name}, on allocation {__version__}"
    click.version_option(version or __version__, message=said)(tool)
    own = (migrate, check, backlog, trace, deliveries, dead_letters, audit, replay, load)
    for built_in in own:
        tool.add_command(built_in)
    for command in commands_of(project):
        if command.name in tool.commands:
            raise ValueError(f"No command may be called {command.name}: the operator's tool has that command")
        tool.add_command(command)
    return tool
