"""What must hold in the database after each round, whatever broke."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.traffic import Sent
from tests.chaos.world import World

#: Each returns what breaks the rule.
RULES = {
    "a batch holds more than was purchased": """
        SELECT reference FROM batches WHERE NOT allocated_quantity BETWEEN 0 AND purchased_quantity""",
    "a kept number is not the sum of its lines": """
        SELECT reference, allocated_quantity FROM batches LEFT JOIN allocations ON batch_reference = reference
        GROUP BY reference HAVING allocated_quantity <> coalesce(sum(qty), 0)""",
    "a line is with a batch of another sku": """
        SELECT orderid FROM allocations JOIN batches ON reference = batch_reference
        WHERE allocations.sku <> batches.sku""",
    "a delivery is still pending": "SELECT id FROM deliveries WHERE status = 'pending'",
    "a delivery failed for good": """
        SELECT id, last_error FROM deliveries WHERE status = 'failed' AND handler <> 'swallow_poison'""",
    "a command was answered out of stock and told nobody": """
        SELECT task_id FROM inbox WHERE command LIKE 'Allocate(%' AND result = 'null' AND NOT EXISTS
        (SELECT FROM deliveries WHERE causation_id = task_id AND event_type = 'OutOfStock')""",
    "a line was given back and never looked at again": """
        SELECT payload FROM deliveries gone
        WHERE event_type = 'Deallocated' AND status = 'done'
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
    """What a check found; `lost` and `doubled` must both be empty, and so must `broken`."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    repeated_mails: int = 0

    @property
    def good(self) -> bool:
        """Tell whether everything held."""
        return not (self.lost or self.doubled or self.broken)


def check(world: World, sent: Iterable[Sent]) -> Verdict:
    """Look at everything that the round left behind."""
    verdict = Verdict()
    for rule, query in RULES.items():
        verdict.broken += [f"{rule}: {row}" for row in world.ask(query)]
    for rule, query in DOUBLES.items():
        verdict.doubled += [f"{rule}: {row}" for row in world.ask(query)]
    _check_answers(world, list(sent), verdict)
    _check_mails(world, verdict)
    return verdict


def _check_answers(world: World, sent: list[Sent], verdict: Verdict) -> None:
    """Compare what the sender was told with what was done."""
    done = dict(world.ask("SELECT task_id, result FROM inbox"))
    for one in sent:
        told = f"{one.id} {one.task} {one.fields}"
        if one.answered_at is None:
            verdict.lost.append(f"no answer to {told}")
        elif one.status == "SUCCESS" and one.id not in done:
            verdict.lost.append(f"answered but not done: {told}")
        elif one.status == "SUCCESS" and one.result != done[one.id]:
            verdict.broken.append(f"told {one.result!r}, did {done[one.id]!r}: {told}")
        elif one.error and one.id in done:
            verdict.broken.append(f"told {one.error}, yet it was done: {told}")
        elif one.error not in _allowed_errors(one):
            verdict.broken.append(f"told {one.error}: {told}")


def _allowed_errors(one: Sent) -> set[str]:
    if one.task == "kill_worker":
        return {"WorkerCrashed"}
    if one.fields.get("qty") == 0 and one.task == "allocate":
        return {"InvalidMessage"}
    # The stock may not be there yet: orders and purchases overtake each other while things break.
    return {"", "InvalidSku", "UnknownBatch"}


def _check_mails(world: World, verdict: Verdict) -> None:
    """Every delivered notification is a mail, and no mail is of anything else."""
    done = world.ask(
        "SELECT id::text FROM deliveries WHERE handler = 'send_out_of_stock_notification' AND status = 'done'"
    )
    wanted = {f"<{delivery}.1@example.com>" for (delivery,) in done}
    mails: list[Any] = world.mail.mails.message_ids()
    verdict.lost += [f"no mail {missing}" for missing in wanted - set(mails)]
    verdict.broken += [f"a mail of nothing: {extra}" for extra in set(mails) - wanted]
    verdict.repeated_mails = len(mails) - len(set(mails))
