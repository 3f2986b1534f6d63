"""Another app, as the demo needs one: it knows task names and addresses, and no code of this project.

`python examples/demo/shop.py --broker URL --results URL --batches FILE --orders FILE` creates the batches,
allocates the orders, and prints the outcome as a line of JSON on standard output, progress on standard error.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from celery import Celery
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Commands in flight at once: enough to keep the workers busy, few enough to hold in memory.
WINDOW = 500
ANSWER_TIMEOUT = 120.0  # seconds


def main() -> int:
    """Play the files and print the outcome."""
    options = _options()
    app = connect(options.broker, options.results)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        batches = _play(
            app, progress, "creating batches", "allocation.create_batch", _batches(options.batches)
        )
        orders = _play(app, progress, "allocating orders", "allocation.allocate", _lines(options.orders))
    print(json.dumps({"batches": batches, "orders": orders}))
    return 0


def connect(broker: str, results: str) -> Celery:
    """Return an app that looks for its answers, and is not told of them.

    Nobody would read what Redis says to that, and sending would hang after some 300,000 commands.
    """
    app = Celery("shop", broker=broker, backend=results)
    app.backend.on_task_call = lambda _producer, _task_id: None
    return app


def _play(
    app: Celery, progress: Progress, what: str, task: str, rows: list[dict[str, Any]]
) -> dict[str, int]:
    """Send every row as a command and count the answers by outcome."""
    bar = progress.add_task(what, total=len(rows))
    outcome: Counter[str] = Counter()
    for window in _windows(rows):
        sent = {app.send_task(task, kwargs=row, queue="allocation.commands", declare=()).id for row in window}
        for _, answer in app.backend.get_many(sent, timeout=ANSWER_TIMEOUT, interval=0.05):
            outcome[_said(answer)] += 1
            progress.advance(bar)
    return dict(outcome)


def _windows(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    remaining = iter(rows)
    while window := list(islice(remaining, WINDOW)):
        yield window


def _said(answer: dict[str, Any]) -> str:
    if answer["status"] != "SUCCESS":
        return f"{type(answer['result']).__name__}: {answer['result']}"
    return "done" if answer["result"] else "nothing"


def _batches(file: Path) -> list[dict[str, Any]]:
    return [
        {"ref": row["ref"], "sku": row["sku"], "qty": _number(row["qty"]), "eta": row["eta"] or None}
        for row in _read(file)
    ]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [{"orderid": row["orderid"], "sku": row["sku"], "qty": _number(row["qty"])} for row in _read(file)]


def _read(file: Path) -> Iterable[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _number(text: str) -> int | str:
    """Return a whole number, or the text as it is for the backend to refuse."""
    try:
        return int(text)
    except ValueError:
        return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Create batches and allocate orders, as another app would.")
    parser.add_argument("--broker", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--batches", type=Path, required=True)
    parser.add_argument("--orders", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
