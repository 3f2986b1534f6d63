"""One round: orders are taken and sent while something is killed; at the end the books are compared."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from local.processes.child import Child
from local.waiting import eventually
from tests.transactional_send import shop
from tests.transactional_send.tracing import lines
from tests.transactional_send.world import World

DEADLINE_S = 120.0
ORDERS = 12
#: Processes in a round that end at a point between two statements.
AIMED = 4
FEW = 4


@dataclass
class Round:
    """What happened, and what was found wrong."""

    number: int
    seed: int
    shop: str
    killed: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of committed orders
    rolled_back: int = 0
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def play(world: World, number: int, seed: int, *, kill_broker: bool) -> Round:
    """Play one round and compare."""
    began = time.monotonic()
    rng = random.Random(f"{seed} {number} kills")
    kind = "sqlite" if number % 2 == 0 else "postgresql"
    one = Round(number, seed, kind)
    _Play(world, one, rng, kill_broker=kill_broker).run()
    one.findings += compare(world, one)
    one.seconds = time.monotonic() - began
    return one


def open_points(folder: Path) -> list[str]:
    """Return the points at which no process was killed yet."""
    return sorted(lines(folder / "passed") - lines(folder / "killed"))


class _Play:
    def __init__(self, world: World, one: Round, rng: random.Random, *, kill_broker: bool) -> None:
        self._world, self._one, self._rng = world, one, rng
        self._database = world.shops[one.number % 2]
        self._kill_broker = kill_broker
        self._late = False
        #: In every fifth round nobody ends at a point.
        self._aimed = AIMED if one.number % 5 else 0
        self._app = self._program("app")
        # What is passed only where relays race needs more of them.
        rare = 0 < len(self._open("relay")) <= FEW
        self._relays = [self._program("relay") for _ in range(3 if rare else 2 if one.number % 3 == 0 else 1)]
        self._broker_back_at: float | None = None
        kills = rng.randint(0, 1) if self._aimed else rng.randint(1, 3)
        self._kill_at = sorted(time.monotonic() + rng.uniform(0.3, 3) for _ in range(kills))

    def _program(self, role: str) -> Child:
        arguments: list[str] = []
        aims = self._aims(role)
        if aims and self._aimed:
            self._aimed -= 1
            arguments = ["--kill-at", self._rng.choice(aims)]
        if role == "app":
            arguments += ["--seed", str(self._one.seed), "--round", str(self._one.number)]
            arguments += ["--count", str(ORDERS)]
        name = f"{role}-{self._one.number}-{self._rng.randrange(10**9)}"
        return self._world.program(name, role, self._database, *arguments)

    def _aims(self, role: str) -> list[str]:
        """Return the points at which the next process may be made to end."""
        points = self._open(role)
        if role == "relay" and 0 < len(points) <= FEW and self._aimed == AIMED:
            # The last ones are passed only after a relay died with a message in its hands.
            passed = sorted(lines(self._world.folder / "passed"))
            prefix = self._prefix(role)
            return [point for point in passed if point.startswith(prefix) and point.endswith("> PUBLISH")]
        return points

    def _open(self, role: str) -> list[str]:
        """Return the points of this shop at which no process ended yet."""
        prefix = self._prefix(role)
        return [point for point in open_points(self._world.folder) if point.startswith(prefix)]

    def _prefix(self, role: str) -> str:
        return f"{role} on {self._one.shop}: "

    def run(self) -> None:
        for child in (self._app, *self._relays):
            child.start()
        try:
            eventually(self._over, DEADLINE_S, "the end of the round", every=0.03)
        except AssertionError as error:
            self._one.findings.append(f"not at rest: {error}")
        finally:
            for child in (self._app, *self._relays):
                child.kill()
            if not self._world.broker.running:
                self._world.broker.start()

    def _over(self) -> bool:
        self._kill_something()
        self._revive()
        if self._app.running or self._app.exit_code != 0 or not self._late or self._kill_broker:
            return False
        if self._broker_back_at is not None:
            return False
        waiting = shop.rows(self._database, "SELECT count(*) FROM command_outbox WHERE handled_at IS NULL")
        return next(iter(waiting))[0] == 0

    def _kill_something(self) -> None:
        under_way = self._under_way()
        if not self._late and (under_way or not self._app.running) and self._rng.random() < 0.2:
            self._world.stock(f"LATE-{self._one.number}", 100)
            self._late = True
        if self._kill_broker and under_way:
            time.sleep(self._rng.uniform(0, 0.05))
            self._world.broker.kill()
            self._one.killed["broker"] += 1
            self._kill_broker = False
            self._broker_back_at = time.monotonic() + self._rng.uniform(0, 1)
        if self._kill_at and time.monotonic() >= self._kill_at[0]:
            self._kill_at.pop(0)
            child = self._rng.choice([self._app, *self._relays])
            if child.running:
                child.kill()

    def _under_way(self) -> bool:
        sql = (
            f"SELECT count(*) FROM command_outbox WHERE task_id IS NOT NULL"  # noqa: S608
            f" AND idempotency_key LIKE 'order-{self._one.number}-%'"
        )
        return bool(next(iter(shop.rows(self._database, sql)))[0])

    def _revive(self) -> None:
        """Start again what was killed."""
        self._world.keep_worker()
        if not self._app.running and self._app.exit_code != 0:
            self._note_end("app", self._app)
            self._app = self._program("app")
            self._app.start()
        for position, relay in enumerate(self._relays):
            if not relay.running:
                self._note_end("relay", relay)
                self._relays[position] = self._program("relay")
                self._relays[position].start()
        if self._broker_back_at is not None and time.monotonic() >= self._broker_back_at:
            self._world.broker.start()
            self._broker_back_at = None

    def _note_end(self, role: str, child: Child) -> None:
        self._one.killed[role] += 1
        if child.exit_code != -9:
            self._one.findings.append(f"the {role} ended by itself: {child.log_tail()}")


def compare(world: World, one: Round) -> list[str]:
    """Return what is wrong: each committed order has one allocation or one refusal, and no other has any."""
    like = f"order-{one.number}-%"
    database = world.shops[one.number % 2]
    committed = {row[0] for row in shop.rows(database, f"SELECT id FROM orders WHERE id LIKE '{like}'")}  # noqa: S608
    told: dict[str, list[str]] = {}
    for key, what in shop.rows(database, f"SELECT order_id, what FROM told WHERE order_id LIKE '{like}'"):  # noqa: S608
        told.setdefault(key, []).append(what)
    allocated: dict[str, list[str]] = {}
    for key, batch in world.sql(
        "SELECT orderid, batch_reference FROM allocations WHERE orderid LIKE %s", like
    ):
        allocated.setdefault(key, []).append(batch)
    effects = Counter(
        key for (key,) in world.sql(
            "SELECT idempotency_key FROM inbox WHERE error IS NULL AND idempotency_key LIKE %s", like
        )
    )  # fmt: skip
    known = {
        key for (key,) in world.sql("SELECT idempotency_key FROM inbox WHERE idempotency_key LIKE %s", like)
    }
    planned = shop.plan(one.seed, one.number, ORDERS)
    one.rolled_back = sum(order.rolled_back for order in planned)
    findings = [f"{key} was rolled back or never committed, yet sent" for key in sorted(known - committed)]
    findings += [
        f"{order.id} is there, rolled back"
        for order in planned
        if order.rolled_back and order.id in committed
    ]
    for key in sorted(committed):
        answers, batches = told.get(key, []), allocated.get(key, [])
        if len(answers) != 1:
            findings.append(f"{key} was told {answers}")
            continue
        one.outcomes[_kind(answers[0])] += 1
        if batches != ([answers[0]] if answers[0].startswith("batch-") else []):
            findings.append(f"{key} was told {answers[0]}, allocated are {batches}")
        if effects[key] > 1:
            findings.append(f"{key} has {effects[key]} effects")
    return findings + _out_of_order(world, committed, planned, like)


def _out_of_order(world: World, committed: set[str], planned: list[shop.Order], like: str) -> list[str]:
    """Return which commands of a group were carried out before the one that precedes them."""
    at = dict(
        world.sql("SELECT idempotency_key, max(at) FROM inbox WHERE idempotency_key LIKE %s GROUP BY 1", like)
    )
    times = [at[order.id] for order in planned if order.group and order.id in committed and order.id in at]
    return [] if times == sorted(times) else ["the commands of a group were carried out of order"]


def _kind(answer: str) -> str:
    if answer.startswith("batch-"):
        return "allocated"
    return "out of stock" if answer == "out of stock" else "refused"
