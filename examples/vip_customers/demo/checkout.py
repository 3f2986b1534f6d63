"""The shop's checkout: another app, which knows a task's name and the broker."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from celery import Celery
from celery.result import AsyncResult

from examples.vip_customers.demo.purchases import Order

#: Commands under way at once: enough to keep the workers busy, little enough to hold in memory.
WINDOW = 500
ANSWER_TIMEOUT = 120.0  # seconds


@dataclass
class Checkout:
    """Sends orders and hears of each whether it was taken."""

    app: Celery
    on_taken: Callable[[Order], object]
    refusals: Counter[str] = field(default_factory=Counter)  # by reason

    def send(self, orders: Iterable[Order], advance: Callable[[], object]) -> None:
        """Send orders as long as they come, and call `advance` at each answer."""
        under_way: deque[tuple[Order, AsyncResult]] = deque()
        for order in orders:
            sent = self.app.send_task("vip.create_order", kwargs=order, queue="vip.commands")
            under_way.append((order, sent))
            if len(under_way) == WINDOW:
                self._hear(*under_way.popleft())
                advance()
        while under_way:
            self._hear(*under_way.popleft())
            advance()

    def _hear(self, order: Order, sent: AsyncResult) -> None:
        """Take one answer, and forget it, so that neither we nor Redis keep what nobody needs any more."""
        error = sent.get(timeout=ANSWER_TIMEOUT, propagate=False)
        if sent.successful():
            self.on_taken(order)
        else:
            self.refusals[f"{type(error).__name__}: {error}"] += 1
        sent.forget()
