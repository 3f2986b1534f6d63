"""`trace`: everything that one order caused, as a tree with times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

import click
from rich.text import Text
from rich.tree import Tree

from messaging.operator.cli.options import json_option
from messaging.operator.cli.output import STYLES, console, print_facts, print_json, printable, when
from messaging.operator.cli.tool import Documented, Failure, Tool
from messaging.operator.order import Order, Step, story_of

pass_tool = click.make_pass_decorator(Tool)


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} trace 0c2f7d3e-4b5a-4f0e-9a55-2f6d1c0b7e11

Environment: {PROJECT}_DATABASE_URL.""",
)
@click.argument("correlation_id")
@json_option
@pass_tool
def trace(tool: Tool, correlation_id: str, as_json: bool) -> None:
    """Tell everything that one command caused, given its task id or the id of a delivery.

    Times are counted from the first step. An answer is kept for 45 days, a delivery that is done for 7.
    """
    order = story_of(tool.runtime, correlation_id)
    if order is None:
        raise Failure(f"Nothing is stored about {correlation_id}")
    if as_json:
        print_json(asdict(order))
        return
    print_facts((("order", order.correlation_id), ("began", order.began), ("trace", order.trace_id)))
    for step in order.steps:
        console().print(_tree(order, step), soft_wrap=True)


def _tree(order: Order, step: Step) -> Tree:
    tree = Tree(_line(step, order.began), guide_style="dim")
    _grow(tree, step.steps, order.began)
    return tree


def _grow(tree: Tree, steps: Sequence[Step], began: datetime | None) -> None:
    for step in steps:
        _grow(tree.add(_line(step, began)), step.steps, began)


def _line(step: Step, began: datetime | None) -> Text:
    line = Text(f"{since(step.at, began):>10}  ", "dim")
    line.append(printable(step.what))
    if step.state:
        line.append(f"  {step.state}", STYLES.get(step.state, ""))
    if step.why:
        line.append(f"  {printable(step.why)}", "red")
    return line


def since(at: datetime | None, began: datetime | None) -> str:
    """Return a time after the beginning, such as `+0.012 s`; the whole time where it is hours."""
    if at is None or began is None:
        return ""
    seconds = (at - began).total_seconds()
    return f"+{seconds:.3f} s" if seconds < 3600 else when(at)
