"""Raise events of many keys at once while workers are killed, attempts fail and operators re-run."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from local.processes.child import Child
from messaging.delivery import new_id
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import Raised
from messaging.worker.app import MessagingApp
from tests.order.handlers import Moved

TABLES = """
CREATE TABLE moves (position bigint GENERATED ALWAYS AS IDENTITY, key text, number integer);
CREATE TABLE counters (key text PRIMARY KEY, number integer NOT NULL);
"""

#: Like an aggregate: the row's lock makes the numbers rise in the order of the commits.
COUNT = """
INSERT INTO counters VALUES (%(key)s, 1) ON CONFLICT (key) DO UPDATE SET number = counters.number + 1
RETURNING number"""

SENDERS = 4


@dataclass
class Proof:
    """One run: `app` sends, `workers` deliver."""

    app: MessagingApp
    workers: list[Child]
    keys: int
    events: int
    other: MessagingApp | None = None  # of another release, from which half of the events come
    seed: int = 1
    kill_every_s: float = 4.0
    killed: int = 0
    rerun: int = 0
    raised: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def run(self, deadline_s: float) -> float:
        """Raise everything, and wait until everything is done; return the seconds it took."""
        began = time.monotonic()
        senders = [threading.Thread(target=self._raise, args=(number,)) for number in range(SENDERS)]
        for sender in senders:
            sender.start()
        last_kill = time.monotonic()
        chance = random.Random(self.seed)
        while time.monotonic() - began < deadline_s:
            if not any(sender.is_alive() for sender in senders) and not self._open():
                return time.monotonic() - began
            self._rerun_failed()
            if time.monotonic() - last_kill > self.kill_every_s:
                self._kill(chance.choice(self.workers))
                last_kill = time.monotonic()
            time.sleep(0.5)
        raise AssertionError(f"not done after {deadline_s} s: {self.states()}")

    def _raise(self, sender: int) -> None:
        chance = random.Random(f"{self.seed} {sender}")
        app = self.other if self.other is not None and sender % 2 else self.app
        runtime = app.runtime
        for _ in range(self.events // SENDERS):
            key = f"key-{chance.randrange(self.keys)}"
            with Transaction(runtime.engine) as transaction:
                [(number,)] = transaction.read(COUNT, {"key": key})
                deliveries = runtime.outbox.write(
                    transaction, [Raised(Moved(key, number), key)], new_id(), new_id()
                )
                transaction.commit()
            app.dispatcher.after_commit(deliveries)

    def _rerun_failed(self) -> None:
        for turn in self.app.dispatcher.rerun(DeliveryFilter(), "proof", 1000):
            self.rerun += len(turn.deliveries)

    def _kill(self, worker: Child) -> None:
        worker.kill()
        self.killed += 1
        worker.start()

    def _open(self) -> int:
        return int(
            self.ask("SELECT count(*) FROM deliveries WHERE finished_at IS NULL OR status = 'failed'")[0][0]
        )

    def states(self) -> list[tuple[Any, ...]]:
        """Return how many deliveries are in each state."""
        return self.ask("SELECT handler, status, waits_for, count(*) FROM deliveries GROUP BY 1, 2, 3")

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.app.runtime.engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def check(self) -> None:
        """Check that every key's effects are those of its commits, in their order, each once."""
        moves: dict[str, list[int]] = defaultdict(list)
        for key, number in self.ask("SELECT key, number FROM moves ORDER BY position"):
            moves[key].append(number)
        counted = dict(self.ask("SELECT key, number FROM counters"))  # type: ignore[arg-type]
        assert sum(counted.values()) == self.events // SENDERS * SENDERS
        for key, last in counted.items():
            assert moves[key] == list(range(1, last + 1)), f"{key}: {moves[key]}"
