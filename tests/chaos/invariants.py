"""Invariants of the database after each round, whatever broke."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.chaos import in_order
from tests.chaos.told import Books, answers_that_changed, effects_twice, told_wrongly
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

#: Each returns the rows that break the rule.
RULES = {
    "a batch holds more than was purchased": """
        SELECT reference FROM batches WHERE NOT allocated_quantity BETWEEN 0 AND purchased_quantity""",
    "a batch's allocated quantity is not the sum of its lines": """
        SELECT reference, allocated_quantity FROM batches LEFT JOIN allocations ON batch_reference = reference
        GROUP BY reference HAVING allocated_quantity <> coalesce(sum(qty), 0)""",
    "a line is allocated to a batch of another sku": """
        SELECT orderid FROM allocations JOIN batches ON reference = batch_reference
        WHERE allocations.sku <> batches.sku""",
    "a delivery is still pending or waiting": "SELECT id FROM deliveries WHERE finished_at IS NULL",
    "a delivery has failed": """
        SELECT id, last_error FROM deliveries WHERE status = 'failed' AND handler <> 'swallow_poison'""",
    "a re-run has not ended": "SELECT * FROM bulk_reruns",
    "an attempt was not counted": """
        SELECT id, attempts, count(number), max(number) FROM deliveries
        LEFT JOIN attempts failed ON delivery_id = id AND run = reruns GROUP BY id
        HAVING count(number) <> attempts - (status = 'done')::int OR max(number) <> count(number)""",
    "a command was answered out of stock without a notification": """
        SELECT task_id FROM inbox WHERE command LIKE 'Allocate(%' AND result = 'null' AND NOT EXISTS
        (SELECT FROM deliveries WHERE causation_id = task_id AND event_type = 'OutOfStock')""",
    "a line was deallocated and never allocated again or reported": """
        SELECT payload FROM deliveries gone
        WHERE handler = 'reallocate' AND status = 'done'
        AND NOT EXISTS (SELECT FROM allocations WHERE orderid = payload->>'orderid'
                        AND sku = payload->>'sku' AND qty = (payload->>'qty')::int)
        AND NOT EXISTS (SELECT FROM deliveries later WHERE later.event_type = 'OutOfStock'
                        AND later.causation_id = gone.id::text)
        AND NOT EXISTS (SELECT FROM deliveries later WHERE later.event_type = 'Deallocated'
                        AND later.payload = gone.payload AND later.created_at > gone.created_at)""",
}
#: Each returns a row per effect that happened twice.
DOUBLES = {
    "an event was raised twice by one message": """
        SELECT causation_id, event_type, payload FROM deliveries
        GROUP BY causation_id, event_type, payload, handler HAVING count(*) > 1""",
    "a line is allocated twice": """
        SELECT orderid, sku, qty FROM allocations GROUP BY orderid, sku, qty HAVING count(*) > 1""",
}


@dataclass
class Verdict:
    """The findings of a check; all but the repeated mails must be empty."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    told_wrongly: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    repeated_mails: int = 0

    @property
    def findings(self) -> list[str]:
        """Return everything that is wrong, the most important first."""
        return [*self.told_wrongly, *self.broken, *self.lost, *self.doubled]


def check(world: World, traffic: Traffic, *, forgets: bool) -> Verdict:
    """Check everything that the round left behind; if the broker `forgets`, messages may be lost."""
    verdict = Verdict()
    for rule, query in {**RULES, **in_order.RULES}.items():
        verdict.broken += [f"{rule}: {row}" for row in world.ask(query)]
    for rule, query in {**DOUBLES, **in_order.DOUBLES}.items():
        verdict.doubled += [f"{rule}: {row}" for row in world.ask(query)]
    _check_answers(world, traffic, verdict, forgets)
    _check_mails(world, verdict)
    if world.neighbour is not None:
        verdict.lost += world.neighbour.lost()
        verdict.doubled += world.neighbour.doubled()
    return verdict


def _check_answers(world: World, traffic: Traffic, verdict: Verdict, forgets: bool) -> None:
    """Every command has an answer, and each answer matches the database."""
    books, sent = Books.of(world, traffic.prefix), traffic.sent
    verdict.lost += [f"no answer to {one.commands[0]}" for one in traffic.open]
    if not forgets:
        late = [one for one in traffic.messages if one.timed_out]
        verdict.lost += [f"sent again after no answer: {one.commands[0]}" for one in late]
    verdict.doubled += effects_twice(books)
    verdict.told_wrongly += told_wrongly(sent, books)
    verdict.told_wrongly += answers_that_changed(traffic.changed_answers())


def _check_mails(world: World, verdict: Verdict) -> None:
    """Every delivered notification is a mail, and there are no other mails."""
    done = world.ask(
        "SELECT id::text FROM deliveries WHERE handler = 'send_out_of_stock_notification' AND status = 'done'"
    )
    wanted = {f"<{delivery}.1@example.com>" for (delivery,) in done}
    mails: list[Any] = world.mail.mails.message_ids()
    verdict.lost += [f"no mail {missing}" for missing in wanted - set(mails)]
    verdict.broken += [f"a mail without a delivery: {extra}" for extra in set(mails) - wanted]
    verdict.repeated_mails = len(mails) - len(set(mails))
