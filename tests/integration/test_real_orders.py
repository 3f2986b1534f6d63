"""6,000 real order lines, one by one, get the same batches as in a short simulation."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, CreateBatch
from allocation.service_layer.messagebus import bus
from messaging.delivery import new_id
from messaging.errors import InvalidMessage
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.postgres.outbox import Outbox
from messaging.wire.validation import parse

DATA = Path(__file__).parents[2] / "data"


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


def simulate() -> list[str | None]:
    """Return each line's batch, computed with lists: None for out of stock, "refused" for no quantity."""
    stock: dict[str, list[list[Any]]] = {}
    for row in rows("batches.csv"):
        stock.setdefault(row["sku"], []).append([row["eta"], row["ref"], int(row["qty"])])
    for batches in stock.values():
        batches.sort()  # "" (in the warehouse) before any date, then by reference
    held: dict[tuple[str, str, int], str] = {}
    outcome: list[str | None] = []
    for row in rows("orders.csv"):
        line = row["orderid"], row["sku"], int(row["qty"])
        if line[2] < 1:
            outcome.append("refused")
            continue
        batch = next((b for b in stock[line[1]] if line not in held and b[2] >= line[2]), None)
        if batch:
            batch[2] -= line[2]
            held[line] = batch[1]
        outcome.append(held.get(line))
    return outcome


def test_every_real_line_gets_the_batch_that_a_simulation_gives_it(clean_database):
    engine = create_engine(clean_database)
    settings, outbox = Settings(_env_file=None), Outbox(engine, bus.handlers_of)

    def handle(command: Command) -> Any:
        task_id = new_id()
        uow = project.unit_of_work(settings, engine, CommandJob(task_id, command, task_id), outbox)
        return bus.handle_command(command, [], uow)

    for row in rows("batches.csv"):
        eta = date.fromisoformat(row["eta"]) if row["eta"] else None
        handle(CreateBatch(row["ref"], row["sku"], int(row["qty"]), eta))
    outcome: list[str | None] = []
    for row in rows("orders.csv"):
        try:
            outcome.append(handle(parse(Allocate, [row["orderid"], row["sku"], int(row["qty"])], {})))
        except InvalidMessage as error:
            assert str(error) == "qty must be at least 1"  # noqa: PT017  # one of thousands, refused or not
            outcome.append("refused")
    engine.dispose()

    expected = simulate()
    assert outcome == expected
    assert expected.count("refused") == 26
    assert 0 < expected.count(None) < 600
