"""The operator's tool."""

from __future__ import annotations

import argparse

from allocation.bootstrap import project
from messaging.postgres.migrate import migrate
from messaging.runtime import Runtime


def main() -> None:
    """Run one command of the tool."""
    parser = argparse.ArgumentParser(prog="python -m allocation")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("migrate", help="bring the database to the newest schema")
    command.set_defaults(run=lambda: migrate(Runtime(project).engine, project.migrations))
    parser.parse_args().run()
