"""A log line is read as data, whatever it contains."""

from __future__ import annotations

from datetime import date

import pytest

from allocation.domain.commands import Allocate, CreateBatch
from allocation.domain.events import OutOfStock
from allocation.service_layer.messagebus import bus
from messaging.errors import InvalidMessage
from messaging.messages import Message
from messaging.wire.replay import parse_line

BATCH = CreateBatch("b1", "LAMP", 10, date(2031, 1, 2))


@pytest.mark.parametrize(
    "message",
    [
        Allocate("o1", "LAMP", 3),
        BATCH,
        CreateBatch("b1", "LAMP", 10),
        OutOfStock("LAMP"),
        Allocate('it\'s "quoted" (and bracketed)', "ÄÖÜ 灯", 1),
        OutOfStock("OutOfStock(sku='x')"),
        Allocate("back\\slash", "'", 1),
    ],
)
def test_the_repr_of_a_message_is_read_back(message: Message):
    assert parse_line(bus, repr(message)) == message
    assert parse_line(bus, f"2026-01-01 INFO [x] Handling {message!r} with some_handler (pid 3)\n") == message


@pytest.mark.parametrize(
    "line",
    [
        'Allocate(orderid="o1", sku="LAMP", qty=3)',
        'Allocate("o1", "LAMP", 3)',
        'Allocate("o1", sku="LAMP", qty=3,)',
        "Refused Allocate(orderid='o1', sku='LAMP', qty=3): InvalidSku: Invalid sku LAMP",
    ],
)
def test_arguments_and_quotes_may_be_written_as_in_python(line: str):
    assert parse_line(bus, line) == Allocate("o1", "LAMP", 3)


def test_a_date_may_be_written_without_its_module():
    assert parse_line(bus, "CreateBatch('b1', 'LAMP', 10, date(2031, 1, 2))") == BATCH


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "must show a message"),
        ("Unknown(sku='x')", "must show a message"),
        ("my.Allocate('o1', 'LAMP', 3)", "must show a message"),
        ("NotAllocate('o1', 'LAMP', 3)", "must show a message"),
        ("Allocate(orderid='o1', sku='LA", "is cut off"),
        ("Allocate(orderid='o1', sku=('LAMP', qty=3)", "cut off"),
        ("Allocate(orderid='o1', sku='LAMP', qty=2+)", "not written as Python"),
        ("Allocate(orderid='o1', sku='LAMP', qty=__import__('os').system('true'))", "call nothing but"),
        ("Allocate(orderid='o1', sku='LAMP', qty=open('x'))", "call nothing but"),
        ("Allocate(orderid='o1', sku=name, qty=3)", "plain text, number"),
        ("Allocate(orderid='o1', sku='a' if 1 else 'b', qty=3)", "plain text, number"),
        ("Allocate(**{'orderid': 'o1'})", "may not have"),
        ("CreateBatch('b1', 'LAMP', 10, datetime.date(2031, 13, 2))", "is not a valid date"),
        ("CreateBatch('b1', 'LAMP', 10, datetime.date(*[1]*3))", "is not a valid date"),
        ("CreateBatch('b1', 'LAMP', 10, datetime.datetime(2031, 1, 2))", "eta must be a date"),
        ("CreateBatch('b1', 'LAMP', 10, datetime.datetime(2031, 1, 2, tzinfo=name))", "is not a valid date"),
        ("CreateBatch('b1', 'LAMP', 10, datetime.datetime.now())", "call nothing but"),
        ("CreateBatch('b1', 'LAMP', 10, {[1]: 2})", "plain text, number"),
        ("CreateBatch('b1', 'LAMP', 10, [open('x')])", "call nothing but"),
        ("Allocate('o1', 'LAMP', 0)", "qty must be at least 1"),
        ("Allocate('o1', 'LAMP', True)", "qty must be a whole number"),
        ("Allocate('o1', 'LAMP')", "qty is missing"),
        ("Allocate('o1', 'LAMP', 3, colour='red')", "colour is not a field"),
        ("Allocate(" + "(" * 5000 + ")" * 5000 + ")", "not written as Python|plain text|cut off"),
        ("OutOfStock('" + "x" * 200_000 + "')", "longer than"),
    ],
)
def test_anything_else_is_refused_and_never_executed(line: str, problem: str):
    with pytest.raises(InvalidMessage, match=problem):
        parse_line(bus, line)
