"""The shop's checkout: another app, which knows a task's name and the broker's address."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from celery import Celery
from celery.result import AsyncResult

from examples.vip_customers.demo.purchases import Order

#: Orders in one message, and messages in flight at once: the workers stay busy, and memory stays bounded.
BATCH, WINDOW = 50, 10
ANSWER_TIMEOUT = 300.0  # seconds


@dataclass
class Checkout:
    """Sends orders and reports which were taken."""

    app: Celery
    on_taken: Callable[[Order], object]
    refusals: Counter[str] = field(default_factory=Counter)  # by reason

    def send(self, orders: Iterable[Order], advance: Callable[[int], object]) -> None:
        """Send all orders; `advance` is called with the number answered."""
        under_way: deque[tuple[list[Order], AsyncResult]] = deque()
        for batch in _batches(orders):
            commands = [["vip.create_order", order] for order in batch]
            # declare=(): the shop declares the queue; a different declaration would be rejected.
            sent = self.app.send_task("vip.many", (commands,), queue="vip.commands", declare=())
            under_way.append((batch, sent))
            if len(under_way) == WINDOW:
                advance(self._collect(*under_way.popleft()))
        while under_way:
            advance(self._collect(*under_way.popleft()))

    def _collect(self, batch: list[Order], sent: AsyncResult) -> int:
        """Collect the answers to a message, then forget it: neither this process nor Redis keeps it."""
        for order, answer in zip(batch, sent.get(timeout=ANSWER_TIMEOUT), strict=True):
            if "error" in answer:
                self.refusals["{type}: {message}".format(**answer["error"])] += 1
            else:
                self.on_taken(order)
        sent.forget()
        return len(batch)


def _batches(orders: Iterable[Order]) -> Iterator[list[Order]]:
    remaining = iter(orders)
    while batch := list(islice(remaining, BATCH)):
        yield batch
