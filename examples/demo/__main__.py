"""`make demo`: another app's real orders through real servers; the mail server is down at first.

Exit status 0 only if every command was answered, every refusal was deserved, every out-of-stock mail failed
while the mail server was down and arrived once after an operator re-ran the failed events.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, create_engine, text

from local import ROOT
from local.settings import LocalSettings
from local.stack import Stack
from local.waiting import eventually

NOTIFIER = "send_out_of_stock_notification"
LARGEST = 2_147_483_647  # the contract's largest quantity
#: The outcomes of `allocate` that the other app reports, in words.
ANSWERS = {"done": "allocated", "nothing": "out of stock"}
SETTLE_TIMEOUT = 240.0  # seconds for all deliveries to end
#: Fail quickly, so that the demo takes minutes; variables that the user has set win.
QUICK = {
    "ALLOCATION_EVENT_MAX_RETRIES": "2",
    "ALLOCATION_EVENT_BACKOFF_MAX_S": "2",
}

console = Console(width=None if sys.stdout.isatty() else 120)


class DemoFailedError(RuntimeError):
    """Something that the demo promises did not happen."""


def main() -> int:
    """Run the demo; 0 if all of it really happened."""
    options = _options()
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    _stop_on_signals()
    try:
        # The mail server is always ours, since it has to be down.
        with Stack(LocalSettings(smtp_url=None), report=console.print, without={"mail"}) as stack:
            Demo(stack, create_engine(stack.addresses.database_url), options.batches, options.orders).play()
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        console.print(f"[red]The demo failed:[/] {error}", highlight=False)
        return 1
    return 0


@dataclass
class Demo:
    """One run on a started stack whose mail server is down."""

    stack: Stack
    engine: Engine
    batches: Path
    orders: Path

    def play(self) -> None:
        """Play all acts."""
        began = self._sql("SELECT clock_timestamp()")[0][0]
        _act("Another app buys stock and allocates orders. The mail server is down.")
        outcome = self._run_shop()
        self._show_outcome(outcome)
        out_of_stock = outcome["orders"].get("nothing", 0)
        _act(f"{out_of_stock} order lines could not be allocated. Their mails fail; the commands do not.")
        self._wait_until_all(began, "failed", out_of_stock)
        self._show_deliveries(began)
        _act("The mail server comes back, and an operator re-runs the failed events.")
        self.stack.supervisor.resume("mail")
        self._rerun()
        self._wait_until_all(began, "done", out_of_stock)
        self._show_deliveries(began)
        self._check_mails(began)
        _act(f"{out_of_stock} mails arrived, each once. Nothing was lost, nothing was doubled.")

    def _run_shop(self) -> dict[str, dict[str, int]]:
        addresses = self.stack.addresses
        shop = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("shop.py")), "--broker", addresses.broker_url,
             "--results", addresses.result_backend_url,
             "--batches", str(self.batches), "--orders", str(self.orders)],
            stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        if shop.returncode != 0:
            raise DemoFailedError("the other app did not get all its answers")
        answers: dict[str, dict[str, int]] = json.loads(shop.stdout)
        return answers

    def _show_outcome(self, outcome: dict[str, dict[str, int]]) -> None:
        table = Table(
            "orders", "lines", title=f"{sum(outcome['orders'].values())} order lines", title_justify="left"
        )
        for what, count in sorted(outcome["orders"].items(), key=lambda item: -item[1]):
            table.add_row(ANSWERS.get(what, f"refused: {what}"), str(count))
        console.print(table)
        _check_refusals(outcome["batches"], _unfit(self.batches, "ref"), "BatchAlreadyExists")
        _check_refusals(outcome["orders"], _unfit(self.orders, "orderid"), "InvalidSku")

    def _wait_until_all(self, began: datetime, status: str, expected: int) -> None:
        def all_there() -> bool:
            found = self._counts(began).get(NOTIFIER, {})
            return found == ({status: expected} if expected else {})

        eventually(all_there, SETTLE_TIMEOUT, f"{expected} deliveries that are {status}", every=0.5)

    def _show_deliveries(self, began: datetime) -> None:
        table = Table(
            "handler", "state", "deliveries", "last error", title="deliveries", title_justify="left"
        )
        for row in self._sql(
            "SELECT handler, status, count(*), min(last_error) FILTER (WHERE status = 'failed')"
            " FROM deliveries WHERE created_at >= :began GROUP BY 1, 2 ORDER BY 1, 2",
            began=began,
        ):
            table.add_row(*(str(value) if value is not None else "" for value in row))
        console.print(table)

    def _rerun(self) -> None:
        """Re-run every failed mail, also those of an earlier run that was interrupted."""
        command = ["deliveries", "rerun", "--handler", NOTIFIER, "--limit", "1000000"]
        console.print(f"$ python -m allocation {' '.join(command)}", highlight=False)
        environment = {**os.environ, **self.stack.addresses.environment()}
        subprocess.run([sys.executable, "-m", "allocation", *command], env=environment, cwd=ROOT, check=True)

    def _check_mails(self, began: datetime) -> None:
        expecting = self._sql(
            "SELECT id::text FROM deliveries WHERE created_at >= :began AND handler = :handler",
            began=began,
            handler=NOTIFIER,
        )
        expected = {f"{row[0]}.1" for row in expecting}
        kept = self.stack.mail.mails.message_ids() if self.stack.mail else []
        arrived = [
            name for name in (mail_id.strip("<>").partition("@")[0] for mail_id in kept) if name in expected
        ]
        if sorted(arrived) != sorted(expected):
            raise DemoFailedError(f"{len(expected)} mails were expected, {len(arrived)} arrived")

    def _counts(self, began: datetime) -> dict[str, dict[str, int]]:
        counts: dict[str, dict[str, int]] = {}
        query = "SELECT handler, status, count(*) FROM deliveries WHERE created_at >= :began GROUP BY 1, 2"
        for handler, status, count in self._sql(query, began=began):
            counts.setdefault(handler, {})[status] = count
        return counts

    def _sql(self, query: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            return list(connection.execute(text(query), values))


def _act(line: str) -> None:
    console.rule(f"[bold]{line}", align="left")


def _check_refusals(outcome: dict[str, int], unfit: int, also_deserved: str) -> None:
    """Check that exactly the invalid rows were refused as messages, and all others for a good reason."""
    refusals = {what: count for what, count in outcome.items() if what not in ANSWERS}
    invalid = sum(count for what, count in refusals.items() if what.startswith("InvalidMessage"))
    if invalid != unfit:
        raise DemoFailedError(f"{invalid} rows were refused as invalid, but {unfit} are")
    if strange := [what for what in refusals if not what.startswith(("InvalidMessage", also_deserved))]:
        raise DemoFailedError(f"refused for no good reason: {strange}")


def _unfit(file: Path, key: str) -> int:
    """Count the rows of a file that are not valid commands."""
    with file.open(newline="", encoding="utf-8") as lines:
        return sum(
            not (row["qty"].isdecimal() and 1 <= int(row["qty"]) <= LARGEST)
            or not all(1 <= len(row[name]) <= 255 and row[name].isprintable() for name in (key, "sku"))
            for row in csv.DictReader(lines)
        )


def _stop_on_signals() -> None:
    """Let SIGTERM end the demo as Ctrl-C does, so that all its processes are stopped."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description="Play orders through real servers."
    )
    parser.add_argument("--batches", type=Path, default=ROOT / "data" / "batches.csv")
    parser.add_argument("--orders", type=Path, default=ROOT / "data" / "orders.csv")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
