"""Small scenes, each around one place where processes meet: few steps, in which much goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command
from messaging.options import Breaker, HandlerOptions
from tests.simulation.plan import FAILING, POISON, Order, Plan
from tests.simulation.scheduler import Fault, Odds

#: Steps at which most of a scene's faults happen; the empty one is any.
OF_ANSWERS = ("tells", "tells", "tells", "acknowledges", "COMMIT", "")
OF_DELIVERIES = ("COMMIT", "deliveries", "sends", "")

#: What a lost connection does to a step.
ERRORS = (Fault.ERROR_BEFORE, Fault.ERROR_AFTER)
ALL = tuple(Fault)

#: Workers with a pool, and of one process.
POOLS: tuple[tuple[int, ...], ...] = ((), (1, 0, 1))

#: Those, and workers that form groups: of one process, and those whose child is simulated.
KINDS: tuple[tuple[tuple[int, ...], int], ...] = (
    *((some, 0) for some in (*POOLS, (4, 4, 4), (3, 0, 2))),
    *((some, 4) for some in ((), (), (2, 0, 4))),
)


#: How many of the scenes are `gates` and `crossings`, and what makes deliveries wait there.
GATES, CROSSINGS = 0.15, 0.02
BREAKER = Breaker(failures=2, pause_s=4, pause_max_s=8, trials=1)
OPTIONS = (
    *(HandlerOptions(breaker=BREAKER),) * 2,
    *(HandlerOptions(breaker=BREAKER, max_concurrent=2), HandlerOptions(breaker=BREAKER, rate="1/s")),
    *(HandlerOptions(max_concurrent=1), HandlerOptions(max_concurrent=2)),
    *(HandlerOptions(rate="30/min"), HandlerOptions(rate="1/s")),
    HandlerOptions(max_concurrent=1, rate="1/s"),
)


def scene(seed: int) -> Plan:
    """Make the plan of a scene."""
    drawn = Random(f"gates {seed}").random()
    if drawn < GATES:
        return gates(Random(f"scene {seed}"))
    if drawn > 1 - CROSSINGS:
        return crossings(Random(f"scene {seed}"))
    random = Random(f"scene {seed}")
    return random.choice(SCENES)(random)


def _odds(random: Random, focus: tuple[str, ...]) -> Odds:
    at = random.choice(focus)
    return Odds(
        go_on=random.choice((0.8, 0.5, 0.3)),
        slow=random.choice((0.0, 0.01)),
        fault=random.choice((0.0, 0.02)) if at else 0.04,
        faults=random.choice((0, 1, 2, 3)),
        focus=at,
        focused=random.choice((0.3, 0.8)),
        hold=random.choice((0.1, 0.3, 0.5)),
    )


def _without_faults(random: Random) -> Odds:
    return Odds(go_on=random.choice((0.8, 0.5)), slow=0.0, faults=0, hold=random.choice((0.3, 0.5)))


def _kinds(random: Random, kinds: Sequence[tuple[tuple[int, ...], int]] = KINDS) -> dict[str, Any]:
    groups, prefork = random.choice(kinds)
    return {"groups": groups, "prefork": prefork}


def _before(commands: Sequence[Command]) -> tuple[Order, ...]:
    return tuple(Order(f"before{number}", (one,)) for number, one in enumerate(commands))


def new_product(random: Random) -> Plan:
    """Products are created, ordered and corrected at the same time."""
    skus = random.choice((("LAMP",), ("LAMP",), ("LAMP", "RUG")))
    commands: list[Command] = [
        CreateBatch(f"b{number}", sku, random.randint(2, 9)) for number, sku in enumerate(skus, 1)
    ]
    commands += [
        Allocate(f"o{number}", random.choice(skus), random.choice((1, 2, 3))) for number in (1, 2, 3)
    ]
    if random.random() < 0.4:
        commands.append(ChangeBatchQuantity("b1", random.randint(0, 4)))
    random.shuffle(commands)
    return Plan(
        {},
        replace(_without_faults(random), holds=(1, 1, 2)),
        waiting=tuple(Order(f"key{number}", (one,)) for number, one in enumerate(commands)),
        workers=3,
        groups=random.choice((*POOLS, *POOLS, (2, 2, 2))),
        relays=random.choice((1, 2)),
        operators=0,
        hurries=random.choice((0, 6, 6)),
    )


def announcements(random: Random) -> Plan:
    """Events of two products are committed and published at the same time."""
    skus = ("LAMP", "RUG")
    return Plan(
        {},
        replace(_without_faults(random), hold=0.5, holds=(1, 2, 3)),
        prepared=tuple(Order(f"stock of {sku}", (CreateBatch(f"b of {sku}", sku, 9),)) for sku in skus),
        waiting=tuple(
            Order(f"key{number}", (Allocate(f"o{number}", skus[number % 2], 1),)) for number in range(6)
        ),
        workers=2,
        relays=random.choice((1, 1, 2)),
        operators=0,
        hurries=8,
    )


def crowd(random: Random) -> Plan:
    """Orders have arrived together, some in two copies, some too late; handlers refuse, answers are lost."""
    skus = ("LAMP", "RUG", "BED")[: random.choice((1, 2, 3))]
    orders = [
        Order(
            f"key{number}",
            (Allocate(f"o{number}", random.choice(skus), random.choice((1, 2, 5))),),
            expires_s=-1.0 if random.random() < 0.15 else None,
        )
        for number in range(random.randint(2, 5))
    ]
    if random.random() < 0.5:
        again, late = random.random() < 0.6, random.choice((None, -1.0))
        some = random.choice(orders)
        orders.append(replace(some, again=True, expires_s=late) if again else some)
    if random.random() < 0.1:
        orders.append(Order("poison", (Allocate("o9", POISON, 1),)))
    return Plan(
        {},
        _odds(random, OF_ANSWERS),
        prepared=tuple(
            Order(f"stock{number}", (CreateBatch(f"b{number}", sku, random.randint(3, 9)),))
            for number, sku in enumerate(skus, 1)
        ),
        waiting=tuple(orders),
        workers=random.choice((1, 2, 2)),
        **_kinds(random),
        relays=random.choice((1, 2)),
        operators=0,
        hurries=random.choice((0, 6)),
        duplicates=random.choice((0, 0, 2)),
        refusals=random.choice((0.0, 0.3, 0.5)),
    )


def answers(random: Random) -> Plan:
    """A few orders are answered together, and answers or acknowledgements are lost."""
    groups, prefork = random.choice((((4,), 0), ((1,), 0), ((), 0), *(((), 4),) * 3))
    focus, kinds = random.choice(
        (*(("tells", (Fault.ERROR_BEFORE,)),) * 3, ("tells", ERRORS), ("tells", ALL), ("acknowledges", ALL))
    )
    odds = Odds(
        go_on=0.8,
        slow=0.0,
        faults=random.choice((1, 2)),
        focus=focus,
        focused=random.choice((0.3, 0.8, 0.8)),
        kinds=kinds,
    )
    return Plan(
        {},
        odds,
        prepared=(Order("stock", (CreateBatch("b1", "LAMP", 9),)),),
        waiting=tuple(
            Order(f"key{number}", (Allocate(f"o{number}", "LAMP", 1),))
            for number in range(random.randint(2, 4))
        ),
        workers=1,
        groups=groups,
        prefork=prefork,
        relays=1,
        operators=0,
    )


def repeats(random: Random) -> Plan:
    """An order arrives several times under its key, in several messages; a handler refuses at random."""
    order = Order("key", (Allocate("o1", "LAMP", 2),))
    other = Order("other", (Allocate("o2", "LAMP", 1),))
    orders = [order, order, replace(order, again=True), *random.choice(((), (other,)))]
    random.shuffle(orders)
    return Plan(
        {},
        _odds(random, OF_ANSWERS),
        prepared=_before([CreateBatch("b1", "LAMP", 9)]),
        waiting=tuple(orders),
        workers=random.choice((2, 3)),
        **_kinds(random, KINDS[2:]),
        relays=1,
        operators=0,
        duplicates=random.choice((0, 0, 1)),
        refusals=random.choice((0.3, 0.5)),
    )


def copies(random: Random) -> Plan:
    """Deliveries wait, each in several messages; those of one product are in order."""
    sku, failing = "LAMP", random.choice(("", "", *FAILING[:2]))
    commands: list[Command] = [CreateBatch("b1", sku, 9)]
    commands += [Allocate(f"o{number}", sku, 2) for number in range(random.randint(1, 3))]
    if random.random() < 0.5:
        commands += [ChangeBatchQuantity("b1", random.choice((3, 8)))]
    return Plan(
        {},
        _odds(random, OF_DELIVERIES),
        prepared=_before(commands),
        copies=random.choice((1, 2, 2)),
        workers=random.choice((2, 2, 3)),
        **_kinds(random),
        relays=random.choice((1, 2)),
        hurries=random.choice((0, 3)),
        operators=0,
        duplicates=random.choice((0, 1, 2)),
        failing=failing,
        failing_for_s=random.choice((1.0, 20.0)),
        hangs=random.choice((0.0, 0.3)),
    )


def failures(random: Random) -> Plan:
    """Deliveries have failed, and operators and the schedule look after them at the same time."""
    orders = [Allocate(f"o{number}", "LAMP", 1) for number in range(random.randint(1, 3))]
    commands = [CreateBatch("b1", "LAMP", 9), *orders]
    for_good = random.random() < 0.7
    return Plan(
        {},
        _odds(random, ("COMMIT", "deliveries", "bulk_reruns", "")),
        prepared=_before(commands),
        fails_before=3 if for_good else 1,
        ends_late=not for_good or random.random() < 0.5,
        bulk=random.random() < 0.5,
        favourite=random.choice(("rerun", "rerun", "begin", "pause")) if for_good else "pause",
        failing=FAILING[0],
        failing_for_s=random.choice((0.0, 3.0, 1000.0)),
        hangs=random.choice((0.0, 0.0, 0.4)),
        workers=2,
        groups=random.choice((*POOLS, (4, 0))),
        relays=random.choice((1, 2)),
        operators=2,
        hurries=random.choice((2, 3)),
        lasts_s=random.choice((1.0, 12.0, 20.0)),
    )


def stops(random: Random) -> Plan:
    """A re-run of all that failed is under way, and operators stop it while the relays go on with it."""
    orders = [Allocate(f"o{number}", "LAMP", 1) for number in range(random.randint(1, 3))]
    return Plan(
        {},
        _without_faults(random),
        prepared=_before([CreateBatch("b1", "LAMP", 9), *orders]),
        fails_before=3,
        bulk=True,
        favourite="stop",
        failing=FAILING[0],
        failing_for_s=random.choice((0.0, 1000.0)),
        workers=1,
        relays=random.choice((1, 2)),
        operators=random.choice((1, 2)),
        hurries=random.choice((1, 2, 3)),
        lasts_s=1.0,
    )


def shortages(random: Random) -> Plan:
    """A batch shrinks and grows; the same few lines lose their stock, are ordered again and lose it again."""
    lines = [Allocate(f"o{number}", "LAMP", random.choice((2, 3, 4))) for number in (1, 2)]
    before: list[Command] = [CreateBatch("b1", "LAMP", random.choice((4, 7))), *lines]
    if random.random() < 0.7:
        before.append(ChangeBatchQuantity("b1", 0))
    commands: list[Command] = []
    for _ in range(random.choice((1, 2, 2))):
        commands += [ChangeBatchQuantity("b1", random.choice((4, 7))), random.choice(lines)]
        commands.append(ChangeBatchQuantity("b1", random.choice((0, 0, 2))))
    return Plan(
        {},
        replace(_odds(random, OF_DELIVERIES), hold=0.1),
        prepared=_before(before),
        waiting=tuple(Order(f"key{number}", (one,)) for number, one in enumerate(commands)),
        workers=random.choice((1, 1, 2)),
        **_kinds(random),
        relays=1,
        operators=0,
    )


def lanes(random: Random) -> Plan:
    """The first delivery of a lane has failed: others wait behind it, or one follows before anybody looks."""
    follows = random.random() < 0.5
    corrections = [] if follows else [ChangeBatchQuantity("b1", qty) for qty in (8, 7)]
    return Plan(
        {},
        _odds(random, ("COMMIT", "deliveries", "")),
        prepared=_before([CreateBatch("b1", "LAMP", 9), *corrections]),
        waiting=(Order("key", (ChangeBatchQuantity("b1", 5),)),),
        fails_before=3,
        favourite=random.choice(("rerun", "edit", "edit", "discard")),
        failing="list_correction",
        failing_for_s=0.0 if follows else random.choice((0.0, 3.0, 1000.0)),
        workers=2,
        groups=random.choice(POOLS),
        relays=random.choice((1, 2)),
        operators=0 if follows else random.choice((1, 2)),
        hurries=0 if follows else random.choice((2, 3)),
        lasts_s=random.choice((1.0, 12.0)),
    )


def paused(random: Random) -> Plan:
    """Orders arrive while a handler of what they raise is paused; two operators may be at it at once."""
    count, operators = random.randint(2, 4), random.choice((1, 1, 2))
    return Plan(
        {},
        _odds(random, OF_DELIVERIES),
        prepared=(Order("stock", (CreateBatch("b1", "LAMP", 9),)),),
        waiting=tuple(Order(f"key{number}", (Allocate(f"o{number}", "LAMP", 1),)) for number in range(count)),
        paused=FAILING[0],
        late_s=1.5,
        workers=random.choice((1, 2)),
        **_kinds(random, KINDS[2:]),
        relays=1,
        operators=operators,
        favourite="resume" if operators == 1 else "change",
        hurries=random.choice((0, 1)) if operators == 1 else 4,
    )


def killers(random: Random) -> Plan:
    """Deliveries kill each worker that makes them; its session stays for a while, or ends at once."""
    return Plan(
        {},
        replace(_odds(random, ("deliveries", "")), faults=random.choice((0, 1))),
        prepared=(
            Order("stock", (CreateBatch("b1", "LAMP", 9),)),
            *(Order(f"before{number}", (Allocate(f"o{number}", "LAMP", 1),)) for number in range(2)),
        ),
        copies=random.choice((1, 2)),
        deadly=FAILING[0],
        deadly_for_s=1000.0,
        slowly=random.random() < 0.7,
        workers=random.choice((1, 2)),
        prefork=random.choice((4, 4, 0)),
        relays=1,
        operators=0,
    )


def crossings(random: Random) -> Plan:
    """Products that share nothing raise events of the same lanes at the same time."""
    skus, qty = ("LAMP", "RUG", "BED"), random.choice((3, 4))
    commands: list[Command] = [CreateBatch(f"b{number}", sku, qty) for number, sku in enumerate(skus, 1)]
    commands += [ChangeBatchQuantity(f"b{number}", qty - 1) for number in random.sample((1, 2, 3), 2)]
    split = random.choice((0, 3))
    return Plan(
        {},
        replace(_without_faults(random), holds=(1, 1, 2)),
        prepared=_before(commands[:split]),
        waiting=tuple(Order(f"key{number}", (one,)) for number, one in enumerate(commands[split:])),
        gated="list_correction",
        options=HandlerOptions(in_order_by="qty"),
        workers=3,
        groups=random.choice(POOLS),
        relays=1,
        operators=0,
    )


def gates(random: Random) -> Plan:
    """Deliveries wait for a breaker, a place or a time of their handler, which fails for a while."""
    in_order = random.random() < 0.4
    commands: list[Command] = [CreateBatch("b1", "LAMP", 1), CreateBatch("b2", "RUG", 1)]
    for number in range(random.randint(2, 4)):
        ref, sku = random.choice((("b1", "LAMP"), ("b2", "RUG")))
        commands.append(
            ChangeBatchQuantity(ref, number + 2) if in_order else Allocate(f"o{number}", sku, 5)
        )  # no batch has room
    gated = "list_correction" if in_order else FAILING[2]
    options = random.choice(OPTIONS)
    failing_for_s = random.choice((0.0, 2.0, 2.0) if options.breaker is None else (2.0, 9.0, 9.0))
    plan = Plan(
        {},
        _odds(random, OF_DELIVERIES),
        prepared=_before(commands),
        copies=random.choice((1, 2, 2)),
        gated=gated,
        options=replace(options, in_order_by="sku" if in_order else None),
        postpones=random.choice((0.0, 0.0, 0.3)),
        failing=gated if failing_for_s else "",
        failing_for_s=failing_for_s,
        workers=random.choice((2, 3)),
        prefork=random.choice((0, 0, 4)),
        relays=2 if options.breaker else random.choice((1, 2)),  # each wakes one to try it
        operators=0,
        hurries=random.choice((0, 3)),
        duplicates=random.choice((0, 0, 1)),
    )
    if options.breaker is None or random.random() < 0.6:
        return plan
    # Its trials fail too, some only when their session is gone.
    return replace(plan, failing=gated, failing_for_s=40.0, lasts_s=40.0, hangs=random.choice((0.0, 0.5)))


#: Those that have the most to choose are drawn more often.
SCENES: tuple[Callable[[Random], Plan], ...] = (
    *(crowd, failures, new_product, announcements) * 3,
    *(announcements, answers, shortages, shortages, lanes, lanes),
    *(copies, answers, repeats, paused, killers, stops),
)
