"""The operator's tool of any project: `operator_tool(project, app="tasks:app")` is the whole command line."""

from __future__ import annotations

from messaging.operator.cli.build import operator_tool

__all__ = ["operator_tool"]
