"""What senders want of the backend in one schedule; a seed makes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command
from messaging.options import HandlerOptions
from tests.simulation.scheduler import Odds

#: Handlers of events.
FAILING = ("tally_allocation", "reallocate", "send_out_of_stock_notification")

#: What kinds of workers there are: with a pool, or of one process, which forms groups or does not.
GROUPS = (), (), (3, 0, 2), (2, 4, 3), (1, 4, 4), (4, 4, 4)

#: A command of this SKU kills whoever carries it out.
POISON = "POISON"


@dataclass(frozen=True)
class Order:
    """One wish of a sender: a command under a key, or several in one message."""

    key: str
    commands: tuple[Command, ...]
    expires_s: float | None = None
    bulk: bool = False
    again: bool = False  # in a message of its own, where the same key was sent before

    def __str__(self) -> str:
        shown = ", ".join(repr(command) for command in self.commands)
        extra = "" if self.expires_s is None else f", expires in {self.expires_s} s"
        return f"{'many: ' if self.bulk else ''}{shown} under {self.key}{extra}"


@dataclass(frozen=True)
class Plan:
    """All wishes by sender, and how wild the schedule is."""

    senders: dict[str, list[Order]]
    odds: Odds = field(default_factory=Odds)
    duplicates: int = 0
    forgets: int = 0  # how often the broker loses everything
    workers: int = 2
    groups: tuple[int, ...] = ()  # the most commands of a group, by worker; 0: it has a pool; 1: no groups
    prefork: int = 0  # the most commands of a group of the workers with a pool; 0: its child is not simulated
    at_once: bool = False  # whether senders wait for answers only when they have sent everything
    late_s: float = 0.0  # until workers begin
    refusals: float = 0.0  # how likely a command's handler fails when it has written everything
    operators: int = 1
    relays: int = 2
    failing: str = ""  # a handler of events that always fails
    failing_for_s: float = 0.0
    deadly: str = ""  # a handler of events that kills its worker
    deadly_for_s: float = 0.0
    slowly: bool = False  # whether the sessions of those workers stay for a while
    paused: str = ""  # a handler that is paused when it begins
    gated: str = ""  # a handler of events that has these options
    options: HandlerOptions | None = None
    postpones: float = 0.0  # how likely that handler asks to be called again later
    hangs: float = 0.0  # how likely a handler that fails does it only when its session is gone
    stays_s: float = 0.0  # how long the schedule goes on when all is done
    prepared: tuple[Order, ...] = ()  # carried out before the schedule begins
    copies: int = 0  # of each of their deliveries, whose messages wait; 0: those are made before too
    fails_before: int = 0  # how often `failing` has failed until then; the last time another attempt lasts
    ends_late: bool = False  # whether that one is still under way, and fails later
    favourite: str = "rerun"  # what operators do mostly
    bulk: bool = False  # whether a re-run of all that failed is under way
    hurries: int = 0  # how often operators, and beat, do the next thing at once
    lasts_s: float = 0.0  # for how long things may break at least, where nobody sends
    waiting: tuple[Order, ...] = ()  # sent before it begins; the same wish twice is two copies of a message

    def without(self, left_out: Iterable[int]) -> Plan:
        """Leave wishes out, by their number in the whole plan."""
        out, number, senders = set(left_out), 0, {}
        for name, orders in self.senders.items():
            kept = []
            for order in orders:
                if number not in out:
                    kept.append(order)
                number += 1
            senders[name] = kept
        return replace(self, senders=senders)

    @property
    def is_scene(self) -> bool:
        """Tell whether all begins with what is there, and nobody sends."""
        return bool(self.waiting or self.copies or self.fails_before)

    @property
    def size(self) -> int:
        """Return how many wishes there are."""
        return sum(len(orders) for orders in self.senders.values())


def random_plan(seed: int) -> Plan:
    """Make a plan: a few senders that work on the same little stock."""
    random = Random(seed)
    senders: dict[str, list[Order]] = {}
    skus = ["LAMP"] if random.random() < 0.7 else ["LAMP", "RUG"]
    first = (
        [Order("k0", (CreateBatch("b1", skus[0], random.randint(3, 12)),))] if random.random() < 0.6 else []
    )
    used: list[Order] = []
    for number in range(random.randint(1, 3)):
        name = ("shop", "office", "store")[number]
        orders = first if number == 0 else []
        used += orders
        for count in range(random.randint(1, 3)):
            order = _order(random, f"{name}{count}", skus)
            if used and random.random() < 0.35:  # the same once more, or another command under a used key,
                other = random.choice(used)
                same, another = other.commands[:1], order.commands[:1]
                # or the same under a new key.
                order = random.choice(
                    (Order(other.key, same), Order(other.key, another), Order(order.key, same))
                )
            used.append(order)
            orders = [*orders, order]
        senders[name] = orders
    if random.random() < 0.22:
        senders = _rush(random)
    crowded, prepared = random.random() < 0.3, ()
    if crowded:
        prepared, senders = _crowd(random)
    for_good = random.random() < 0.3
    odds = Odds(
        go_on=random.choice((0.95, 0.8, 0.5, 0.3)),
        slow=random.choice((0.001, 0.01, 0.03)),
        fault=random.choice((0.0, 0.01, 0.03, 0.08)),
        faults=random.randint(0, 6),
        hold=random.choice((0.0, 0.0, 0.05, 0.2)),
        focus=random.choice(("", "", "tells", "acknowledges", "COMMIT", "sends")),
        focused=0.1,
    )
    return Plan(
        senders,
        odds,
        duplicates=random.choice((0, 1, 3, 4) if crowded else (0, 0, 1, 2)),
        forgets=random.choice((0, 0, 0, 1)),
        operators=random.choice((0, 1, 2, 2)) if for_good else random.choice((0, 0, 1)),
        workers=random.choice((2, 2, 3)),
        relays=random.choice((1, 2)),
        failing=FAILING[0] if for_good else random.choice(("", "", *FAILING)),
        failing_for_s=1000.0 if for_good else random.choice((1.0, 8.0, 40.0)),
        hangs=random.choice((0.0, 0.2, 0.4)),
        deadly=FAILING[0] if random.random() < 0.18 else "",
        deadly_for_s=random.choice((15.0, 1000.0)),
        stays_s=random.choice((15.0, 40.0)) if for_good else 0.0,
        groups=random.choice(GROUPS[2:] if crowded else GROUPS),
        prefork=random.choice((0, 0, 4)),
        at_once=crowded or random.random() < 0.3,
        late_s=0.3 if crowded else 0.0,
        refusals=random.choice((0.0, 0.3, 0.3) if crowded else (0.0, 0.0, 0.1)),
        prepared=prepared,
    )


def _rush(random: Random) -> dict[str, list[Order]]:
    """Have everybody want the same new product at once."""
    orders = [Order(f"rush{number}", (Allocate(f"o{number}", "LAMP", number + 1),)) for number in range(4)]
    stock = [Order("stock", (CreateBatch("b1", "LAMP", random.randint(3, 12)),))]
    return {"shop": stock + orders[:1], "office": orders[1:3], "store": orders[3:]}


def _crowd(random: Random) -> tuple[tuple[Order, ...], dict[str, list[Order]]]:
    """Have so many wishes at once that messages arrive together; return what comes before, and these."""
    skus = ["LAMP", "RUG", "BED"][: random.choice((1, 2, 3, 3))]
    stock = [
        Order(f"stock{number}", (CreateBatch(f"b{number + 1}", sku, random.randint(2, 8)),))
        for number, sku in enumerate(skus)
    ]
    orders = [
        _order(random, f"crowd{number}", skus)
        if random.random() < 0.4
        else Order(f"crowd{number}", (Allocate(f"o{number}", skus[number % len(skus)], 2),))
        for number in range(random.randint(3, 6))
    ]
    if random.random() < 0.15:
        orders.insert(0, Order("poison", (Allocate("o9", POISON, 1),)))
    senders = {"shop": orders[:2], "office": orders[2:4], "store": orders[4:]}
    if random.random() < 0.3:
        return (), {**senders, "shop": stock + orders[:2]}
    return tuple(stock), senders


def _order(random: Random, key: str, skus: list[str]) -> Order:
    if random.random() < 0.03:
        return Order(key, (Allocate(f"order-{key}", POISON, 1),))
    if random.random() < 0.12:
        return Order(key, tuple(_command(random, skus) for _ in range(random.randint(2, 3))), bulk=True)
    expires = random.choice((-1.0, 0.05, 3.0)) if random.random() < 0.1 else None
    return Order(key, (_command(random, skus),), expires)


def _command(random: Random, skus: list[str]) -> Command:
    sku, ref = random.choice(skus), f"b{random.randint(1, 3)}"
    kind: Any = random.choices((Allocate, CreateBatch, ChangeBatchQuantity), (5, 2, 3))[0]
    if kind is Allocate:
        return Allocate(f"o{random.randint(1, 4)}", sku, random.choice((1, 2, 3, 5)))
    if kind is CreateBatch:
        return CreateBatch(ref, sku, random.randint(2, 12))
    return ChangeBatchQuantity(ref, random.randint(0, 8))
