"""`python -m benchmarks.soak [--minutes N] [--write-docs]`: hours at four fifths of the highest rate.

A sender keeps its pace whatever the workers do, so the time that a command waits to be sent counts. One in
`SOLD_OUT_EVERY` finds no stock and raises an event, whose handler sends a mail. Housekeeping runs as always,
with retentions so short that what it deletes equals what is added.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count

import psutil
import redis

from allocation.client import AllocationClient
from benchmarks import report, stock
from benchmarks.crew import family, unshared_mib
from benchmarks.figure import percentile
from benchmarks.pace import Listener, sending
from benchmarks.peers.peer import redis_url
from benchmarks.plots import Panel, lines_svg
from benchmarks.servers import Servers, servers
from local.processes import programs
from local.processes.child import Child
from local.processes.readiness import workers_answer
from local.servers.mail_server import MailSink
from local.waiting import eventually

SHARE = 0.8  # of the highest rate
RAMP_S, STEP, LATE_MS = 20.0, 1.15, 100.0  # while the highest rate is looked for
GROUP_MAX = 16  # as in the race
SOLD_OUT, SOLD_OUT_EVERY = "SOLD-OUT", 20
SKUS = [f"SKU-{number:04}" if number % SOLD_OUT_EVERY else SOLD_OUT for number in range(stock.SKUS)]
PLOT = report.DOCS / "soak.svg"
JSON_FILE = report.DOCS / "soak.json"
BEGIN, END = "<!-- soak: written by the benchmark -->", "<!-- end of soak -->"
#: Ten minutes after its start, a run deletes as much as it adds.
SETTINGS = {
    "ALLOCATION_GROUP_MAX": str(GROUP_MAX),
    "ALLOCATION_PRUNE_INTERVAL_S": "60",
    "ALLOCATION_RELAY_GRACE_MAX_S": "300",
    "ALLOCATION_DONE_RETENTION_S": "600",
    "ALLOCATION_DEAD_LETTER_RETENTION_S": "300",
    "ALLOCATION_MESSAGE_MAX_ETA_S": "120",
    "ALLOCATION_INBOX_RETENTION_S": "600",
    "ALLOCATION_RESULT_EXPIRES_S": "300",
}
#: All tables but those of the shop itself, which keep every order.
SIZES = """
SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
AND relname NOT IN ('products', 'batches', 'allocations')"""


@dataclass(frozen=True)
class Minute:
    """One minute: milliseconds from when a command was due to be sent to its result; sizes in MiB."""

    answers: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    workers: float  # not shared with others
    housekeeping: float
    redis: float
    tables: float
    indexes: float


@dataclass(frozen=True)
class Soak:
    """A run: its rate in commands a second, the highest rate before, and its minutes."""

    began: str
    load_before: float
    highest: float
    rate: float
    minutes: list[Minute]


@cache
def _client() -> AllocationClient:
    return AllocationClient(redis_url(0), redis_url(1))


def send_one(task_id: str, sku: str) -> None:
    """Enqueue a line under an id of its own with the typed client, since a plain sender hangs in the end."""
    _client().app.send_task(
        "allocation.allocate", (task_id, sku, 1), task_id=task_id, queue="allocation.commands", declare=()
    )


def highest_rate(its_servers: Servers, listener: Listener) -> float:
    """Return the highest rate at which the queue stays short, with everything on this machine."""
    highest, waiting = 0.0, redis.Redis.from_url(its_servers.redis.url_of(0))
    for step in count():
        rate = 300 * STEP**step
        listener.take()
        with sending(send_one, SKUS, rate, int(rate * RAMP_S)) as sender:
            sender.join()
            left = int(str(waiting.llen("allocation.commands")))
            eventually(lambda: not waiting.llen("allocation.commands"), 120, "an empty queue")
        late = percentile(listener.take() or [1e9], 0.5)
        print(f"{rate:,.0f}/s: {left} wait at the end, {late:,.0f} ms in the middle", flush=True)
        if left > rate / 5 or late > LATE_MS:
            return highest
        highest = rate
    raise AssertionError("unreachable")


def run(
    its_servers: Servers,
    minutes: int,
    highest: float,
    listener: Listener,
    children: list[Child],
) -> Soak:
    """Send for so many minutes; print each of them."""
    began, load = report.now().isoformat(timespec="seconds"), psutil.getloadavg()[0]
    rate = SHARE * highest
    seen: list[Minute] = []
    mails = MailSink(its_servers.folder / "mail").mails
    commands = int(rate * (minutes * 60 + 5))
    with sending(send_one, SKUS, rate, commands), redis.Redis.from_url(its_servers.redis.url) as client:
        listener.take()
        start = time.monotonic()
        for number in range(1, minutes + 1):
            time.sleep(max(0.0, start + number * 60 - time.monotonic()))
            seen.append(_minute(its_servers, client, listener.take(), children))
            mails.clear()
            print(number, json.dumps(asdict(seen[-1])), flush=True)
    return Soak(began, load, highest, rate, seen)


def _minute(its_servers: Servers, client: redis.Redis, times: list[float], children: list[Child]) -> Minute:
    tables, indexes = its_servers.rows(SIZES)[0]
    return Minute(
        answers=len(times),
        p50_ms=round(percentile(times, 0.5), 1),
        p99_ms=round(percentile(times, 0.99), 1),
        worst_ms=round(max(times), 1),
        workers=round(unshared_mib(family(children[:1])), 1),
        housekeeping=round(unshared_mib(family(children[1:])), 1),
        redis=_mib(int(client.info("memory")["used_memory"])),
        tables=_mib(int(str(tables))),
        indexes=_mib(int(str(indexes))),
    )


def _mib(size: float) -> float:
    return round(size / 2**20, 1)


def write_docs(soak: Soak) -> None:
    """Write the picture, the measurements, and the paragraph on the page of figures."""
    JSON_FILE.write_text(json.dumps(asdict(soak), indent=1) + "\n")
    PLOT.write_text(lines_svg(_panels(soak.minutes)))
    report.put_between(BEGIN, END, markdown(soak))


def markdown(soak: Soak) -> str:
    """Return the generated part of the page: the second quarter of the run against its last."""
    quarter = max(1, len(soak.minutes) // 4)
    early, late = soak.minutes[quarter : 2 * quarter] or soak.minutes, soak.minutes[-quarter:]
    rows = "\n".join(
        f"| {what} | {_mean(early, name):,.1f} | {_mean(late, name):,.1f} |" for what, name in ROWS.items()
    )
    answers = sum(minute.answers for minute in soak.minutes)
    return f"""Printed by `python -m benchmarks.soak`, begun {soak.began} (load {soak.load_before:.1f}):
{len(soak.minutes)} minutes at {soak.rate:,.0f} commands a second ({answers:,} in all),
in groups of up to {GROUP_MAX}, four fifths of the {soak.highest:,.0f}
that this machine sustains with sender and listener on it.

| mean of | second quarter | last quarter |
|---|---|---|
{rows}

![Minute by minute](soak.svg)
"""


ROWS = {
    "p50 of a minute, ms": "p50_ms",
    "p99 of a minute, ms": "p99_ms",
    "memory of the workers, MiB": "workers",
    "memory of housekeeping and beat, MiB": "housekeeping",
    "memory of Redis, MiB": "redis",
    "tables of the backend, MiB": "tables",
    "their indexes, MiB": "indexes",
}


def _mean(minutes: list[Minute], name: str) -> float:
    return sum(float(getattr(minute, name)) for minute in minutes) / len(minutes)


def _panels(minutes: list[Minute]) -> list[Panel]:
    def series(*names: str) -> dict[str, list[float]]:
        return {name: [float(getattr(minute, name)) for minute in minutes] for name in names}

    return [
        Panel("Milliseconds from due to answered", series("p50_ms", "p99_ms")),
        Panel("Memory (MiB)", series("workers", "housekeeping", "redis")),
        Panel("The backend's tables (MiB)", series("tables", "indexes")),
    ]


def main() -> None:
    """Run it; every process ends with this one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--rate", type=float, help="the highest rate, if it is known")
    parser.add_argument("--write-docs", action="store_true", help="write the picture and the page")
    options = parser.parse_args()
    with servers() as its_servers:
        stock.fill(its_servers)
        its_servers.rows("INSERT INTO products (sku) VALUES (%s)", (SOLD_OUT,))
        children = [
            programs.commands_worker(its_servers.folder, SETTINGS, 2),
            programs.housekeeping_worker(its_servers.folder, SETTINGS),
            programs.beat(its_servers.folder, SETTINGS),
        ]
        try:
            for child in children:
                child.start()
            names = [child.name for child in children[:2]]
            eventually(lambda: workers_answer(its_servers.redis.url_of(0), *names), 60, "the workers")
            with Listener(its_servers.redis.url_of(1)) as listener:
                highest = options.rate or highest_rate(its_servers, listener)
                soak = run(its_servers, options.minutes, highest, listener, children)
        finally:
            for child in children:
                child.stop()
    print(markdown(soak))
    if options.write_docs:
        write_docs(soak)


if __name__ == "__main__":
    main()
