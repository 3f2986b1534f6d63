"""The acts of `make demo-vip`: a sale while the mail server is down, whose VIPs get their mail anyway."""

import os
import subprocess
import sys
from datetime import date
from email.message import EmailMessage
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from celery import Celery
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from examples.vip_customers.demo.checkout import Checkout
from examples.vip_customers.demo.picture import draw
from examples.vip_customers.demo.purchases import Count, growth, read
from local import ROOT
from local.stack import Stack
from local.waiting import eventually

CONGRATULATE = "congratulate_vip_customer"
SENT_AGAIN = 200  # orders
REASONS_SHOWN = 10

# Every VIP with the date of the third order, whatever the order in which the events arrived.
VIPS = """
SELECT customer_id, placed_on FROM (
    SELECT histories.customer_id, placed_on,
           row_number() OVER (PARTITION BY histories.customer_id ORDER BY placed_on) AS number
    FROM histories JOIN history_orders USING (customer_id) JOIN orders USING (orderid) WHERE is_vip
) numbered WHERE number = 3"""


class PlayFailedError(RuntimeError):
    """Something that the demo promises did not happen."""


class Play:
    """One run of a file on a started shop whose mail server is down."""

    def __init__(self, console: Console, stack: Stack, checkout: Celery, purchases: Path, lines: int) -> None:
        self.console = console
        self.stack = stack
        self.purchases = purchases
        self.lines = lines
        self.count = Count()  # of the orders taken
        self.checkout = Checkout(checkout, self.count.add)

    def all_acts(self) -> None:
        """Play everything, and check it.

        Raises:
            PlayFailedError: naming what did not happen.
        """
        self._act(f"The shop opens and sells {self.lines:,} times. Its mail server is down.")
        self._sell()
        vips = len(self.count.vips())
        self._wait_until("failed", vips)
        self._act(f"Every order was taken anyway. Only {vips:,} congratulations failed.")
        self._show_deliveries()
        self._act("The mail server comes back, and an operator re-runs the failed deliveries.")
        self.stack.supervisor.resume("mail")
        self._operator("deliveries", "rerun", "--handler", CONGRATULATE, "--limit", str(max(vips, 1)))
        self._act("Some customers click twice: their orders are sent again.")
        self._sell_again()
        self._wait_until("done", vips)
        self._show_deliveries()
        self._act("The shop's records are compared with a count of the file.")
        self._compare()
        self._draw()

    def _sell(self) -> None:
        columns = (TextColumn("taking orders"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("", total=self.lines)
            self.checkout.send(read(self.purchases), lambda answered: progress.advance(bar, answered))
        for reason, times in self.checkout.refusals.most_common(REASONS_SHOWN):
            self.console.print(f"refused {times:,} times: {reason}", markup=False)

    def _sell_again(self) -> None:
        before = self._sql("SELECT count(*) FROM deliveries")
        self.checkout.send(islice(read(self.purchases), SENT_AGAIN), lambda _answered: None)
        if self._sql("SELECT count(*) FROM deliveries") != before:
            raise PlayFailedError("an order that was sent twice had effects twice")
        self.console.print("answered as the first time, without any effect")

    def _wait_until(self, status: str, congratulations: int) -> None:
        """Wait until no delivery is pending and every congratulation is in this state."""
        seen = "SELECT count(*) FILTER (WHERE status = :status), count(*) FROM deliveries WHERE handler = :of"

        def all_ended() -> bool:
            pending = self._sql("SELECT count(*) FROM deliveries WHERE status = 'pending'")[0][0]
            return not pending and self._sql(seen, status=status, of=CONGRATULATE) == [
                (congratulations, congratulations)
            ]

        patience = 120 + self.count.number_of_orders / 20  # seconds
        with self.console.status("waiting for the last event"):
            eventually(all_ended, patience, f"{congratulations} congratulations that are {status}", every=0.5)

    def _show_deliveries(self) -> None:
        table = Table("handler", "state", "deliveries", "last error")
        query = (
            "SELECT handler, status, count(*), min(last_error) FILTER (WHERE status = 'failed')"
            " FROM deliveries GROUP BY 1, 2 ORDER BY 1 DESC, 2"
        )
        for handler, status, count, error in self._sql(query):
            table.add_row(handler, status, f"{count:,}", error or "")
        self.console.print(table)

    def _operator(self, *command: str) -> None:
        self.console.print(f"$ python -m {self.stack.service.tool} {' '.join(command)}", markup=False)
        environment = {**os.environ, **self.stack.addresses.environment(self.stack.service)}
        tool = [sys.executable, "-m", self.stack.service.tool, *command]
        subprocess.run(tool, env=environment, cwd=ROOT, check=True)

    def _compare(self) -> None:
        """Show both counts and check that they agree."""
        counted, mails = self.count.vips(), self.stack.mail.mails.all() if self.stack.mail else []
        accounts = {
            "orders": (self.count.number_of_orders, self._sql("SELECT count(*) FROM orders")[0][0]),
            "customers": (len(self.count.orders), self._sql("SELECT count(*) FROM histories")[0][0]),
            "customers with three orders or more, the VIPs": (len(counted), len(self.vips)),
            "mails of congratulation": (len(counted), len(mails)),
            "different mails, by Message-ID": (len(counted), len({mail["Message-ID"] for mail in mails})),
        }
        table = Table("", "by the file", "by the shop")
        for what, (expected, found) in accounts.items():
            table.add_row(what, f"{expected:,}", f"{found:,}")
        self.console.print(table)
        wrong = [what for what, (expected, found) in accounts.items() if expected != found]
        if sorted(map(_customer_of, mails)) != sorted(counted):
            wrong.append("who was congratulated")
        if counted != self.vips:
            wrong.append("who is a VIP since when")
        if wrong:
            raise PlayFailedError(f"the counts differ: {', '.join(wrong)}")

    def _draw(self) -> None:
        if not self.vips:
            self.console.print("No customer ordered three times; there is nothing to draw.")
            return
        file = self.stack.settings.folder / "growth-of-vips.svg"
        title = f"{len(self.vips):,} customers became VIPs, each with the third order"
        draw(file, growth(self.vips), growth(self.count.vips()), title)
        self.console.print(f"The growth of VIPs over the dates: {file}", soft_wrap=True)

    @cached_property
    def vips(self) -> dict[str, date]:
        """Return the shop's VIPs at the end, with the date of the third order."""
        return {row[0]: row[1] for row in self._sql(VIPS)}

    @cached_property
    def _engine(self) -> Engine:
        return create_engine(self.stack.addresses.database_url, poolclass=NullPool)

    def _sql(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def _act(self, line: str) -> None:
        self.console.rule(f"[bold]{line}", align="left")


def _customer_of(mail: EmailMessage) -> str:
    """Return a mail's recipient; Python's parser leaves non-ASCII letters of an address undecoded."""
    username: str = mail["To"].addresses[0].username
    return username.encode("utf-8", "surrogateescape").decode("utf-8")
