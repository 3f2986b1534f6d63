"""Histories in PostgreSQL under workers that deliver repeatedly, out of order and concurrently."""

import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from messaging.delivery import Delivery, new_id
from tests.vip_customers.shops import PostgresShop, order

WORKERS = 5  # as many as the engine has connections
CUSTOMERS = [f"c{number}" for number in range(12)]
COPY = """
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id)
SELECT %s, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id
FROM deliveries WHERE id = %s"""


def test_with_several_workers_each_customer_becomes_a_vip_once_at_the_third_order(postgres_shop):
    owed = _shuffled(
        delivery
        for customer in CUSTOMERS
        for number in range(1, 6)
        for delivery in postgres_shop.take(order(number, customer))
    )

    became = _deliver_at_once(postgres_shop, owed + owed)

    assert sorted(delivery.payload["customer_id"] for delivery in became) == sorted(CUSTOMERS)
    assert all(postgres_shop.is_vip(customer) for customer in CUSTOMERS)


def test_two_orders_recorded_concurrently_make_no_vip(postgres_shop):
    owed = _shuffled(
        delivery for number in (1, 2) for delivery in postgres_shop.take(order(number)) * WORKERS
    )

    became = _deliver_at_once(postgres_shop, owed)

    assert became == []
    assert not postgres_shop.is_vip("harry")


def test_the_same_order_under_other_delivery_ids_counts_once(postgres_shop):
    """An operator's edited copy is another delivery of the same event."""
    [delivery] = postgres_shop.take(order(1))
    copies = [_copy(postgres_shop, delivery) for _ in range(6)]

    became = _deliver_at_once(postgres_shop, [delivery, *copies])

    assert became == []
    assert not postgres_shop.is_vip("harry")


def test_the_same_order_placed_concurrently_by_several_senders_is_one_order(postgres_shop):
    with ThreadPoolExecutor(WORKERS) as workers:
        answers = [workers.submit(postgres_shop.take, order(1)) for _ in range(WORKERS)]
        owed = [delivery for answer in answers if answer.exception() is None for delivery in answer.result()]

    assert len(owed) == 1


def _deliver_at_once(shop: PostgresShop, owed: list[Delivery]) -> list[Delivery]:
    """Make deliveries with several workers; one that a copy had locked is made afterwards."""
    with ThreadPoolExecutor(WORKERS) as workers:
        came = [delivery for made in workers.map(shop.deliver, owed) for delivery in made]
    return came + [delivery for late in owed for delivery in shop.deliver(late)]


def _copy(shop: PostgresShop, delivery: Delivery) -> Delivery:
    copy = new_id()
    with shop.runtime.engine.begin() as connection:
        connection.exec_driver_sql(COPY, (copy, delivery.id))
    return Delivery(
        copy, delivery.event_type, delivery.payload, delivery.handler, delivery.correlation_id, delivery.id
    )


def _shuffled(deliveries: Iterable[Delivery]) -> list[Delivery]:
    shuffled = list(deliveries)
    random.Random(7).shuffle(shuffled)
    return shuffled
