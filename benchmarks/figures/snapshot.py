"""What a held snapshot costs: a backup or a forgotten transaction keeps every dead row since it began."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import psycopg2

from benchmarks import stock
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers.ours_solo import solo
from benchmarks.peers.peer import database_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn, take_turn
from messaging.postgres.announcements import Announcements
from messaging.postgres.low_water import LowWater
from tasks import app

AGAINST = "the same without one"
BATCH = 160  # events, the most in one transaction
SEARCHES = 5
LOAD_FACTOR = 10  # deliveries and events while the snapshot is held, as a multiple of a turn's lines

#: Deliveries that were due and are done, and events that wait to be published.
DONE = """
WITH due AS (
    INSERT INTO deliveries
        (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id)
    SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{}', 'send_out_of_stock_notification',
           now() - interval '1 minute', 15, 'c', 'c'
    FROM generate_series(1, %s)
)
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, at)
SELECT gen_random_uuid(), 'OutOfStock', '{}', 'c', 'c', now() FROM generate_series(1, %s)"""
FINISH = "UPDATE deliveries SET status = 'done', finished_at = now() WHERE status = 'pending'"

Times = dict[str, list[list[float]]]  # by what is measured: with and without a snapshot, by round


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns with a snapshot held and without."""
    times: Times = {what: [[], []] for what in ("commands", "relay", "announce")}
    with crews([solo("snapshot", "this backend, solo processes", 10)], servers, scale.processes) as [crew]:
        for number in range(scale.rounds):
            servers.rows("VACUUM")
            _round(servers, crew, scale, f"free-{number}", [kind[1] for kind in times.values()])
            with _held():
                _round(servers, crew, scale, f"held-{number}", [kind[0] for kind in times.values()])
    commands, relay, announce = times["commands"], times["relay"], times["announce"]
    return [
        Figure(
            "snapshot_commands", "commands/s with a held snapshot, solo processes", AGAINST, 0.9,
            at_least=True, ratios=ratios(*commands),
            measured=per_second(commands[0], commands[1], "commands"),
            why="A batch's row has a version for each line that was allocated since.",
        ),
        Figure(
            "snapshot_relay", "time of a relay's search with a held snapshot", AGAINST, 1.1,
            at_least=False, ratios=ratios(*relay), measured=_ms(relay),
            why="It steps over the deliveries that were finished since; the relay runs every few seconds.",
        ),
        Figure(
            "snapshot_announce", "time per batch of events read and deleted with a held snapshot", AGAINST,
            1.1, at_least=False, ratios=ratios(*announce), measured=_ms(announce),
            why="A run steps once over the events that were published since the snapshot.",
        ),
    ]  # fmt: skip


def _round(servers: Servers, crew: Crew, scale: Scale, name: str, into: list[list[float]]) -> None:
    """Measure after some load: it is what leaves dead rows."""
    count = LOAD_FACTOR * scale.lines
    servers.rows(DONE, (count, count))
    servers.rows(FINISH)
    take_turn(crew, stock.lines(f"{name}-load", scale.lines))
    announcements, outbox = app.runtime.announcements, app.runtime.outbox
    batches = list(_publish(announcements))
    into[0].append(sized_turn(crew, name, scale).rate)
    into[1].append(median(_timed_ms(lambda: outbox.take_due(500, 600.0)) for _ in range(SEARCHES)))
    into[2].append(median(batches[len(batches) // 2 :]))  # what comes after many dead rows


def _publish(announcements: Announcements) -> Iterator[float]:
    """Publish all events; yield the milliseconds of each batch."""
    published, low = True, LowWater()
    while published:
        start = time.perf_counter()
        with announcements.take(BATCH, low) as events:
            published = bool(events)
        yield (time.perf_counter() - start) * 1000


@contextmanager
def _held() -> Iterator[None]:
    """Hold a snapshot, like a backup."""
    connection = psycopg2.connect(database_url())
    try:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as run:
            run.execute("SELECT FROM products LIMIT 1")
        yield
    finally:
        connection.close()


def _timed_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _ms(times: list[list[float]]) -> str:
    return f"{median(times[0]):.2f} : {median(times[1]):.2f} ms"
