"""The operator's tool: the commands that every project has, and `stock`."""

from __future__ import annotations

import click
from sqlalchemy import text

from allocation.bootstrap import project
from messaging import __version__
from messaging.operator.cli import operator_tool
from messaging.operator.cli.options import json_option
from messaging.operator.cli.output import print_json, print_table
from messaging.operator.cli.tool import Documented, Failure, Tool

STOCK = text("""
SELECT reference, purchased_quantity AS purchased, allocated_quantity AS allocated,
       purchased_quantity - allocated_quantity AS available, eta
FROM batches WHERE sku = :sku ORDER BY eta NULLS FIRST, reference
""")

tool = operator_tool(project, app="tasks:app", version=__version__)


@tool.command(cls=Documented, epilog="Example:\n  {prog} stock LAMP\n\nEnvironment: {PROJECT}_DATABASE_URL.")
@click.argument("sku")
@json_option
@click.make_pass_decorator(Tool)
def stock(tool: Tool, sku: str, as_json: bool) -> None:
    """Show a SKU's batches, soonest first: purchased, allocated, available, and when they arrive."""
    with tool.runtime.engine.connect() as connection:
        batches = [dict(row._mapping) for row in connection.execute(STOCK, {"sku": sku})]
    if not batches:
        raise Failure(f"Invalid sku {sku}")
    if as_json:
        print_json(batches)
        return
    rows = [(*batch.values(),) for batch in batches]
    totals = [sum(row[column] for row in rows) for column in (1, 2, 3)]
    print_table(
        ("batch", "purchased", "allocated", "available", "eta"),
        [*((*row[:4], row[4] or "in the warehouse") for row in rows), ("total", *totals, "")],
    )


def main() -> None:
    """Run one command of the tool."""
    tool.main(prog_name=f"python -m {project.name}")
