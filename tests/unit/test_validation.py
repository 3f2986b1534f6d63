"""Validation: untrusted arguments become messages, or an error that names the field and the rule."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property

import pytest

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.events import BatchCreated
from messaging.errors import InvalidMessage
from messaging.messages import Event, Name, to_dict
from messaging.wire.validation import from_dict, parse

GOOD = {"orderid": "o1", "sku": "LAMP", "qty": 3}


def test_fields_by_name_position_or_both_make_the_same_command():
    by_name = parse(Allocate, [], GOOD)
    by_place = parse(Allocate, ["o1", "LAMP", 3], {})
    mixed = parse(Allocate, ["o1"], {"sku": "LAMP", "qty": 3})

    assert by_name == by_place == mixed == Allocate("o1", "LAMP", 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"qty": True}, "qty must be a whole number"),
        ({"qty": "3"}, "qty must be a whole number"),
        ({"qty": 3.0}, "qty must be a whole number"),
        ({"qty": None}, "qty must be a whole number"),
        ({"qty": 0}, "qty must be at least 1"),
        ({"qty": -1}, "qty must be at least 1"),
        ({"qty": 2_147_483_648}, "qty must be at most 2147483647"),
        ({"qty": 10**5000}, "qty must be at most 2147483647"),
        ({"sku": ""}, "sku must have at least 1 character"),
        ({"sku": "x" * 256}, "sku must have at most 255 characters"),
        ({"sku": "LA\nMP"}, "sku must have printable characters only"),
        ({"sku": "LAMP\x00"}, "sku must have printable characters only"),
        ({"sku": "\x1b[31mred"}, "sku must have printable characters only"),
        ({"sku": "\ud800"}, "sku must have printable characters only"),
        ({"sku": 7}, "sku must be a text"),
        ({"sku": ["LAMP"]}, "sku must be a text"),
        ({"colour": "red"}, "colour is not a field of this message"),
        ({"__class__": "x"}, "__class__ is not a field of this message"),
    ],
)
def test_an_error_names_the_field_and_the_broken_rule(change, text):
    with pytest.raises(InvalidMessage) as caught:
        parse(Allocate, [], {**GOOD, **change})

    assert str(caught.value) == text


def test_a_missing_field_is_named():
    with pytest.raises(InvalidMessage, match=r"^sku is missing$"):
        parse(Allocate, ["o1"], {"qty": 3})


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (["o1", "LAMP", 3, 4], {}, "args has 4 values, Allocate has 3 fields"),
        (["o1"], GOOD, "orderid is given twice"),
        ({}, {}, "args must be a list"),
        ("o1", {}, "args must be a list"),
        ([], ["o1"], "kwargs must be an object"),
        ([], None, "kwargs must be an object"),
    ],
)
def test_arguments_of_the_wrong_shape_are_refused(args, kwargs, text):
    with pytest.raises(InvalidMessage) as caught:
        parse(Allocate, args, kwargs)

    assert str(caught.value) == text


def test_an_untrusted_field_name_cannot_break_a_log_line():
    with pytest.raises(InvalidMessage) as caught:
        parse(Allocate, [], {**GOOD, "a\nb" + "x" * 500: 1})

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", ["2026-01-31", date(2026, 1, 31)])
def test_a_date_is_iso_text_or_a_date(value):
    assert parse(CreateBatch, ["b1", "LAMP", 1, value], {}).eta == date(2026, 1, 31)


@pytest.mark.parametrize(
    "value",
    [
        "31.01.2026",
        "2026-1-31",
        "2026-01-31T00:00:00",
        1767225600,
        "",
        True,
        "\uff12\uff10\uff12\uff16-01-31",
    ],
)
def test_anything_else_is_not_a_date(value):
    with pytest.raises(InvalidMessage, match=r"^eta must be a date as YYYY-MM-DD$"):
        parse(CreateBatch, ["b1", "LAMP", 1, value], {})


def test_a_day_that_does_not_exist_is_refused():
    with pytest.raises(InvalidMessage, match=r"^eta must be a date of the calendar, as YYYY-MM-DD$"):
        parse(CreateBatch, ["b1", "LAMP", 1, "2026-02-30"], {})


def test_a_batch_may_shrink_to_zero_but_not_be_created_empty():
    assert parse(ChangeBatchQuantity, ["b1", 0], {}).qty == 0
    with pytest.raises(InvalidMessage, match=r"^qty must be at least 1$"):
        parse(CreateBatch, ["b1", "LAMP", 0], {})


def test_an_error_is_rebuilt_from_its_arguments_on_the_senders_side():
    error = InvalidMessage("qty", "must be a whole number")

    rebuilt = InvalidMessage(*error.args)

    assert (str(rebuilt), rebuilt.field, rebuilt.rule) == (str(error), "qty", "must be a whole number")


def test_a_message_survives_a_round_trip_through_json():
    event = BatchCreated("b1", "LAMP", 3, date(2026, 1, 31))

    assert to_dict(event) == {"ref": "b1", "sku": "LAMP", "qty": 3, "eta": "2026-01-31"}
    assert from_dict(BatchCreated, to_dict(event)) == event


def test_an_event_stored_by_an_older_release_can_be_read():
    stored = {"ref": "b1", "sku": "LAMP", "qty": 3, "since_removed": 1}

    assert from_dict(BatchCreated, stored, ignore_unknown=True) == BatchCreated("b1", "LAMP", 3, None)


@dataclass(frozen=True, slots=True)
class Slotted(Event):
    """Without a `__dict__` of its own fields."""

    sku: Name
    qty: int = 1


@dataclass(frozen=True)
class Remembering(Event):
    """Keeps a value in its `__dict__` that is no field."""

    sku: Name

    @cached_property
    def shelf(self) -> str:
        return self.sku[:1]


def test_an_event_with_slots_is_written_with_its_fields():
    assert to_dict(Slotted("LAMP")) == {"sku": "LAMP", "qty": 1}
    assert from_dict(Slotted, to_dict(Slotted("LAMP", 2))) == Slotted("LAMP", 2)


def test_only_the_fields_of_a_message_are_written():
    event = Remembering("LAMP")
    assert event.shelf == "L"

    assert to_dict(event) == {"sku": "LAMP"}
