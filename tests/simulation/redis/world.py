"""One schedule of the Redis world: its plan, its processes, and what must hold after each step."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from local.servers.redis_server import Redis
from tests.simulation.choices import Choices
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.redis.processes import QUEUE, Sender, Worker
from tests.simulation.redis.wire import Server, in_place
from tests.simulation.scheduler import Broken, Crash, Odds, Process, Scheduler, current
from tests.simulation.world import Outcome, _sleep

STEPS = 4000
NAME = re.compile(rb'"id": "([^"]+)"')
KEYS = ("unacked", "unacked_index", "unacked_later", "unacked_leases")


@dataclass(frozen=True)
class Plan:
    """What is sent, and how wild the schedule is."""

    senders: dict[str, list[float]]  # the delay of each message
    odds: Odds
    workers: int
    prefetch: int
    leases: bool  # else only the visibility timeout
    freezes: float
    stops: float
    requeues: float

    def without(self, left_out: Iterable[int]) -> Plan:
        """Leave messages out, by their number in the whole plan."""
        out, numbers = set(left_out), count()
        senders = {
            name: [delay for delay in delays if next(numbers) not in out]
            for name, delays in self.senders.items()
        }
        return replace(self, senders=senders)

    @property
    def size(self) -> int:
        """Return how many messages there are."""
        return sum(len(delays) for delays in self.senders.values())


def random_plan(seed: int) -> Plan:
    """Make a plan: few messages for few workers."""
    random = Random(seed)
    senders = {
        name: [random.choice((0.0, 0.0, 0.0, 0.7, 4.0)) for _ in range(random.randint(1, 4))]
        for name in ("shop", "office")[: random.randint(1, 2)]
    }
    odds = Odds(
        go_on=random.choice((0.9, 0.6, 0.3)),
        slow=random.choice((0.001, 0.02)),
        fault=random.choice((0.0, 0.03, 0.08)),
        faults=random.randint(0, 5),
    )
    wild = random.choice((0.0, 0.0, 0.01))
    return Plan(
        senders,
        odds,
        workers=random.randint(1, 3),
        prefetch=random.choice((1, 2, 4)),
        leases=random.random() < 0.75,
        freezes=wild,
        stops=random.choice((0.0, 0.1)),
        requeues=random.choice((0.0, 0.25)),
    )


@dataclass
class Books:
    """What was sent, received and handled, and where Redis has each message."""

    server: Server
    plan: Plan
    workers: dict[str, Worker] = field(default_factory=dict)  # alive, by process
    due: dict[str, float] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)  # perhaps sent twice, or not at all
    done: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    troubles: int = 0  # deaths, lost connections, and processes that stood still

    def process_name(self) -> str:
        """Return who runs."""
        process = current()
        return process.name if process else "·"

    def sent(self, name: str, due: float) -> None:
        """Remember a message that is about to be sent."""
        self.due[name] = due

    def received(self, worker: Worker, name: str) -> None:
        """Check that nobody else who is alive has it."""
        if name not in self.unsure:
            for other in self.workers.values():
                if other is not worker and name in other.holds and self.has_lease(other):
                    self.wrong.append(f"{name} was given to {worker.name}, and {other.name} has it")
        delivered = worker.channel.qos._delivered
        if len(delivered) - len(worker.channel.qos._dirty) > self.plan.prefetch:
            self.wrong.append(f"{worker.name} has {len(delivered)} messages at once")

    def has_lease(self, worker: Worker) -> bool:
        """Tell whether Redis takes a worker for alive."""
        until = self.server.client.zscore("unacked_leases", worker.prefix) if worker.prefix else None
        return until is not None and until > self.server.clock.at + 1

    def began(self, name: str) -> None:
        """Check that it is due."""
        if self.server.clock.at < self.due.get(name, 0.0):
            self.wrong.append(f"{name} was handled {self.due[name] - self.server.clock.at:.3f} s too early")

    def handled(self, name: str) -> None:
        """Remember a task that came to its end, and check that it is the first where nothing went wrong."""
        if name in self.done and not self.troubles and name not in self.unsure:
            self.wrong.append(f"{name} was handled twice, and nothing went wrong")
        self.done.add(name)

    def check(self) -> None:
        """Compare with what Redis has."""
        with self.server.client.pipeline(transaction=True) as pipe:
            pipe.lrange(QUEUE, 0, -1).hgetall(KEYS[0]).zrange(KEYS[1], 0, -1).zrange(KEYS[2], 0, -1)
            waiting, held, index, later = pipe.execute()
        lists = {name.decode() for item in waiting for name in NAME.findall(item)}
        tags = {tag: name.decode() for tag, value in held.items() for name in NAME.findall(value)}
        if lost := self.accepted - self.done - lists - set(tags.values()):
            self.wrong.append(f"lost: {sorted(lost)}")
        put_off = {entry.split(b" ")[0] for entry in later}
        if stuck := tags.keys() - set(index) - put_off:
            self.wrong.append(f"registered where nobody looks: {sorted(tags[tag] for tag in stuck)}")
        if self.wrong:
            raise Broken("; ".join(self.wrong[:2]))

    def is_settled(self) -> bool:
        """Tell whether every message was handled and nothing is left of it in Redis."""
        client = self.server.client
        left = client.llen(QUEUE) + client.hlen(KEYS[0]) + client.zcard(KEYS[1]) + client.zcard(KEYS[2])
        return self.accepted <= self.done and not left


class RedisWorld:
    """A Redis server; plays one schedule after the other."""

    def __init__(self, url: str) -> None:
        logging.disable(logging.CRITICAL)
        self.url = url
        self.clock = Clock(_sleep)
        self.server = Server(url, self.clock)

    def plan_of(self, seed: int) -> Plan:
        """Return the plan that a seed makes."""
        return random_plan(seed)

    def play(self, plan: Plan, choices: Choices, seed: int) -> Outcome:
        """Play one schedule."""
        self.clock.at = EPOCH
        self.server.empty()
        scheduler = Scheduler(choices, plan.odds, self.clock)
        books = Books(self.server, plan)
        scheduler.check = books.check
        scheduler.abandon = lambda process, _slowly: _close(process)
        state = random.getstate()
        random.seed(seed)
        failure: BaseException | None = None
        with in_place(self.server, self.clock, seed):
            try:
                self._start(plan, scheduler, books)
                scheduler.run(STEPS)
                scheduler.calm = True
                scheduler.tell("from here on nothing breaks")
                scheduler.start("end", lambda: self._wait(scheduler, books))
                scheduler.run(STEPS)
            except Exception as error:  # noqa: BLE001  told as what the schedule came to
                failure = error
            finally:
                for process in list(scheduler.processes):
                    process.dead = True
                    _close(process)
                    if process.greenlet:
                        process.greenlet.throw(Crash)
        random.setstate(state)
        return Outcome(scheduler.steps, scheduler.story, list(choices.taken), failure)

    def _start(self, plan: Plan, scheduler: Scheduler, books: Books) -> None:
        for name, orders in plan.senders.items():
            scheduler.start(name, Sender(self.url, scheduler, books, orders).run)
        for number in range(1, plan.workers + 1):
            self._start_worker(f"worker {number}", plan, scheduler, books)

    def _start_worker(self, name: str, plan: Plan, scheduler: Scheduler, books: Books) -> None:
        worker = Worker(self.url, scheduler, books, plan, name)
        process = scheduler.start(name, worker.run, background=True)
        books.workers[name] = worker

        def come_back() -> None:
            scheduler.sleep(0.5)
            self._start_worker(name, plan, scheduler, books)

        def died() -> None:
            books.troubles += 1
            del books.workers[name]
            scheduler.start(f"{name} again", come_back, background=True)

        process.on_crash.append(died)

    def _wait(self, scheduler: Scheduler, books: Books) -> None:
        for _ in range(300):  # one worker may have to run every task, the longest ones too
            if books.is_settled():
                return
            scheduler.sleep(1.0)
        scheduler.break_off(
            f"not at its end: {sorted(books.accepted - books.done)} wait, or are left in Redis"
        )


def _close(process: Process) -> None:
    """Close the sockets of a dead process, as its system does."""
    for connection in process.connections:
        connection.disconnect()


@contextmanager
def redis_world() -> Iterator[RedisWorld]:
    """Give a world on a Redis of its own."""
    with (
        TemporaryDirectory(prefix="allocation-simulation-") as folder,
        Redis(Path(folder) / "redis") as server,
    ):
        world = RedisWorld(server.url_of(0))
        try:
            yield world
        finally:
            world.server.close()
            logging.disable(logging.NOTSET)
