"""The acceptance criteria, in the words of the user story."""

from itertools import permutations

import pytest

from examples.vip_customers.messages import CustomerBecameVIP, OrderCreated
from examples.vip_customers.model import History
from messaging.errors import InvalidMessage
from tests.vip_customers.shops import FakeShop, Shop, order


def test_given_two_orders_in_the_history_when_the_third_is_placed_then_flagged_as_vip(shop: Shop):
    shop.place(order(1), order(2))
    assert not shop.is_vip("harry")

    shop.place(order(3))

    assert shop.is_vip("harry")


def test_when_a_customer_first_becomes_a_vip_then_one_congratulation(shop: Shop):
    shop.place(order(1), order(2))
    assert shop.congratulated() == []

    shop.place(order(3))

    assert shop.congratulated() == ["harry"]


def test_further_orders_send_no_further_congratulation(shop: Shop):
    shop.place(*(order(number) for number in range(1, 10)))

    assert shop.congratulated() == ["harry"]


def test_each_customer_has_a_history_of_their_own(shop: Shop):
    shop.place(order(1), order(2), order(1, "sally"), order(3), order(2, "sally"))

    assert (shop.is_vip("harry"), shop.is_vip("sally")) == (True, False)
    assert shop.congratulated() == ["harry"]


def test_an_order_that_is_sent_again_counts_once(shop: Shop):
    shop.place(order(1), order(2), order(2), order(2))

    assert not shop.is_vip("harry")


def test_an_event_that_is_delivered_again_counts_once(shop: Shop):
    shop.place(order(1), order(2))

    shop.tell(OrderCreated("harry-2", "harry"))

    assert not shop.is_vip("harry")


def test_a_vip_is_congratulated_once_whatever_is_delivered_again(shop: Shop):
    shop.place(order(1), order(2), order(3))

    for number in (3, 1, 2, 3):
        shop.tell(OrderCreated(f"harry-{number}", "harry"))

    assert shop.is_vip("harry")
    assert shop.congratulated() == ["harry"]


def test_an_order_id_that_was_used_for_another_order_is_refused(shop: Shop):
    shop.place(order(1))

    with pytest.raises(InvalidMessage, match="orderid was used before, for another order"):
        shop.place(order(1, items=2))


def test_a_history_raises_one_event_about_a_vip_in_whatever_order_events_arrive():
    for sequence in permutations((1, 1, 2, 3, 3, 4)):
        history = History("harry")

        for number in sequence:
            history.record_order(f"harry-{number}")

        assert history.events == [CustomerBecameVIP("harry")]


def test_an_order_is_accepted_while_the_mail_server_is_down():
    shop = FakeShop()
    shop.mails.down = True

    shop.place(order(1), order(2), order(3))

    assert list(shop.orders.stored) == ["harry-1", "harry-2", "harry-3"]
    assert shop.is_vip("harry")
    assert shop.congratulated() == []


def test_an_order_is_accepted_although_the_vip_rule_has_a_bug(monkeypatch):
    monkeypatch.setattr(History, "record_order", lambda history, orderid: 1 / 0)
    shop = FakeShop()

    shop.place(order(1), order(2), order(3))

    assert len(shop.orders.stored) == 3
    assert shop.histories.stored == {}
