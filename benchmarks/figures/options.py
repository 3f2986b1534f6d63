"""What each option of an event handler costs where nothing has to wait, in deliveries per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import celeryconfig
from allocation.bootstrap import project
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from messaging.bus import MessageBus
from messaging.delivery import new_id
from messaging.messages import Event
from messaging.options import Breaker, handler
from messaging.postgres.transaction import Transaction
from messaging.retry import RetryPolicy
from messaging.unit_of_work import Raised
from messaging.worker.app import MessagingApp, make_app
from messaging.worker.events import deliver
from messaging.worker.gates import attempt_at, wake_next

#: Deliveries in each round, of as many keys.
DELIVERIES = 200

OPTIONS: dict[str, dict[str, Any]] = {
    "without options": {},
    "in_order_by": {"in_order_by": "key"},
    "breaker": {"breaker": Breaker()},
    "max_concurrent": {"max_concurrent": 4},
    "rate": {"rate": "100000000/s"},
    "all options": {
        "in_order_by": "key", "breaker": Breaker(), "max_concurrent": 4, "rate": "100000000/s",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Measured(Event):
    """An event of the benchmark."""

    key: str


def measure(_servers: Servers, scale: Scale) -> list[Figure]:
    """Deliver the same number with each option, in turns."""
    app, handlers = _app()
    try:
        rates: dict[str, list[float]] = {name: [] for name in OPTIONS}
        for number in range(scale.rounds + 1):
            for name, one in handlers.items():
                rate = _rate(app, one, number)
                if number:  # the first round prepares the statements
                    rates[name].append(rate)
    finally:
        app.close()
        app.runtime.engine.dispose()
    [(plain, base), *others] = rates.items()
    return [
        Figure(
            f"option_{name}".replace(" ", "_"), f"deliveries/s of one process, {name}", f"a handler {plain}",
            None, at_least=True, ratios=ratios(found, base), measured=per_second(found, base, "deliveries"),
        )
        for name, found in others
    ]  # fmt: skip


def _app() -> tuple[MessagingApp, dict[str, Callable[..., Any]]]:
    """Return an app with one handler for each set of options."""

    def handler_of(name: str, options: dict[str, Any]) -> Callable[..., Any]:
        def run(_event: Measured, _uow: Any) -> None:
            """Do nothing."""

        run.__name__ = f"measured_{name.replace(' ', '_')}"
        return handler(**options)(run)

    handlers = {name: handler_of(name, options) for name, options in OPTIONS.items()}
    bus = MessageBus(project.bus.commands, {Measured: list(handlers.values())})
    return make_app(replace(project, bus=bus), celeryconfig), handlers


def _rate(app: MessagingApp, one: Callable[..., Any], number: int) -> float:
    """Commit events, deliver them to one handler, and return how many per second."""
    runtime = app.runtime
    outbox = replace(runtime.outbox, handlers_of=lambda _event: [one.__name__], announced=False)
    with Transaction(runtime.engine) as transaction:
        raised = [Raised(Measured(f"{number}-{position}")) for position in range(DELIVERIES)]
        deliveries = outbox.write(transaction, raised, new_id(), new_id())
        transaction.commit()
    began = time.perf_counter()
    for row in deliveries:
        attempt = attempt_at(runtime, one, row.id, "benchmark", redelivered=False)
        deliver(runtime, one, RetryPolicy(), attempt)
        wake_next(app.dispatcher, attempt)
    return len(deliveries) / (time.perf_counter() - began)
