"""Kill workers under load, on stock Celery and with `reliable_celery`, and count the messages that are lost.

    python -m examples.plain_celery --broker redis://127.0.0.1:6379/0 --kills 12

Its messages and counts are under keys that begin with `plain-celery-` in that database, and deleted first.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import redis
from celery import Celery

WORKERS = 3
ORDERS = 1_000  # sent to the workers at most before they are killed
PATIENCE_S = 120.0


@dataclass
class Shop:
    """One app with its workers: `kind` names its settings."""

    kind: str
    broker: str
    client: redis.Redis
    sent: int = 0
    kills: int = 0
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the name of its queue; the keys of its messages and counts begin with it."""
        return f"plain-celery-{self.kind}"

    def send(self, orders: int) -> None:
        """Send orders to be paid, as any Celery app would."""
        with (
            Celery(broker=self.broker, set_as_current=False) as app,
            app.producer_pool.acquire() as producer,
            producer.batch(100),  # quicker than the workers, so that these are in full work
        ):
            for _ in range(orders):
                app.send_task("shop.pay", (self.sent,), queue=self.name, producer=producer)
                self.sent += 1

    def send_crash(self) -> None:
        """Send the message that kills its worker."""
        with Celery(broker=self.broker, set_as_current=False) as app:
            app.send_task("shop.crash", queue=self.name, ignore_result=True)

    def employ(self, workers: int) -> None:
        """Start workers until there are so many, and wait until each is ready, or dead already."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        self.workers += [self._start() for _ in range(workers - len(self.workers))]
        wait(lambda: all(self._has_begun(worker) for worker in self.workers), "ready workers")

    def _has_begun(self, worker: subprocess.Popen[bytes]) -> bool:
        is_ready = self.client.sismember(f"{self.name}.workers", str(worker.pid))
        return bool(is_ready) or worker.poll() is not None

    def _start(self) -> subprocess.Popen[bytes]:
        command = "-m celery -A examples.plain_celery.app worker -l ERROR --without-mingle --without-gossip"
        name = f"{self.kind}-{time.monotonic_ns()}@shop"
        return subprocess.Popen(
            [sys.executable, *command.split(), "-n", name],
            env=os.environ | {"CONFIG": f"examples.plain_celery.{self.kind}", "BROKER": self.broker},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill_all(self) -> None:
        """SIGKILL every worker, as a power cut would."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.kills += len(self.workers)
        self.workers.clear()

    def unfinished(self) -> int:
        """Return how many messages wait or are held by a worker."""
        return int(self.client.llen(self.name)) + int(self.client.hlen(f"{self.name}.unacked"))

    def has_fewer_than(self, messages: int) -> bool:
        """Return whether fewer messages than that are unfinished."""
        return self.unfinished() < messages

    def lost(self) -> int:
        """Return how many orders were never paid."""
        return self.sent - int(self.client.hlen(f"{self.name}.paid"))

    def repeated(self) -> int:
        """Return how many orders were paid more than once: redelivery is at least once, everywhere."""
        return sum(int(times) > 1 for times in self.client.hvals(f"{self.name}.paid"))

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.kills} kills, {self.sent} messages, {self.lost()} lost, "
            f"{self.repeated()} ran more than once"
        )


@contextmanager
def opened(kind: str, broker: str) -> Iterator[Shop]:
    """A shop with nothing left of an earlier run, whose workers are gone afterwards."""
    with redis.Redis.from_url(broker) as client:
        shop = Shop(kind, broker, client)
        for key in client.scan_iter(f"{shop.name}*"):
            client.delete(key)
        try:
            yield shop
        finally:
            shop.kill_all()


def kill_under_load(shop: Shop, kills: int, dice: random.Random) -> None:
    """Kill all workers at random moments in full work, again and again; then let others finish."""
    for _ in range(0, kills, WORKERS):
        shop.employ(WORKERS)
        shop.send(dice.randrange(ORDERS // 2, ORDERS))
        shop.kill_all()
    shop.employ(WORKERS)
    while left := shop.unfinished():  # a busy machine takes long, but gets on
        wait(partial(shop.has_fewer_than, left), "a broker with fewer messages")


def wait(until: Callable[[], bool], what: str) -> None:
    """Look until it is true; raise TimeoutError when it takes too long."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not until():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.05)


def main() -> None:
    """Play both and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--broker", default="redis://127.0.0.1:6379/0", help="a Redis database")
    parser.add_argument("--kills", type=int, default=12, help="of workers, for each of the two")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the moments")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no worker is left behind
    print(f"seed {options.seed}")
    for kind in ("stock", "reliable"):
        with opened(kind, options.broker) as shop:
            kill_under_load(shop, options.kills, random.Random(options.seed))
            print(shop, flush=True)


if __name__ == "__main__":
    main()
