"""The types of a message's fields: what can be written can be read, and every limit counts."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType

import pytest
from typing_extensions import TypeAliasType

from messaging.bus import MessageBus
from messaging.client.outbox import Outbox
from messaging.client.table import Entry
from messaging.errors import InvalidMessage, UnknownMessage
from messaging.messages import Command, Event, Message, Name, Text, Whole, task_name, to_dict
from messaging.operator.loading import from_text, read_lines
from messaging.wire.replay import parse_line, same_message
from messaging.wire.validation import from_dict, model

if TYPE_CHECKING:
    from fractions import Fraction

Sku = NewType("Sku", str)
Day = NewType("Day", date)
#: As Python 3.12 has them: `type Due = date | None`.
Due = TypeAliasType("Due", Annotated[date | None, "by when"])
Amount = TypeAliasType("Amount", int | None)
UNSTORABLE = "must not have the character U+0000 or half of a surrogate pair"
SOON = dt.datetime(2031, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


@dataclass(frozen=True)
class Rich(Command):
    """One field of each type."""

    name: Name | None = None
    number: Annotated[int, Whole(1)] | None = None
    distributed: Annotated[str | None, Text()] = None
    sku: Sku = Sku("LAMP")
    weight: float = 0.5
    fragile: bool = False
    colour: Literal["red", "green"] | None = None
    floor: Literal[-1, 0, 1] = 0
    ref: int | str = 0
    day: date | None = None
    due: Day | None = None
    paid: Due = None
    dues: tuple[Due, ...] = ()
    amount: Amount = None
    at: dt.datetime | None = None
    tags: tuple[Name, ...] = ()
    line: tuple[str, int] = ("LAMP", 1)
    lines: list[tuple[Name, Annotated[int, Whole(1)]]] = field(default_factory=list)
    days: dict[str, date] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    other: Any = None
    plain: list = field(default_factory=list)  # type: ignore[type-arg]  # of anything


RICH = [
    Rich(),
    Rich(name="a", number=1, distributed="x", sku=Sku("CHAIR"), weight=2, fragile=True, colour="red"),
    Rich(ref="LAMP", floor=-1, day=date(2031, 1, 2), due=Day(date(2031, 1, 3)), at=SOON),
    Rich(paid=date(2031, 1, 4), dues=(date(2031, 1, 5), None), amount=7),
    Rich(at=SOON.astimezone(timezone(timedelta(hours=-3, minutes=-30)))),
    Rich(at=dt.datetime(2031, 1, 2)),  # noqa: DTZ001  without a zone it stays without one
    Rich(tags=("a", "b"), lines=[("LAMP", 1), ("CHAIR", 2)], line=("CHAIR", 2)),
    Rich(days={"first": date(2031, 1, 2)}, facts={"a": [1, {"b": None}]}, other=[1.5], plain=["x", 1]),
]


def written(message: Message) -> Any:
    return json.loads(json.dumps(to_dict(message)))


@pytest.mark.parametrize("message", RICH)
def test_what_can_be_written_can_be_read(message: Message):
    assert from_dict(type(message), written(message)) == message


@pytest.mark.parametrize("message", RICH)
def test_the_repr_of_every_type_is_read_back(message: Rich):
    bus = MessageBus({Rich: lambda _message, _uow: None}, {})

    assert parse_line(bus, f"Handling {message!r} with somebody") == message


@pytest.mark.parametrize("message", RICH)
def test_the_outcome_in_a_senders_outbox_has_the_command_as_it_was_sent(message: Rich):
    outbox = Outbox("shop", [Rich])
    entry = Entry(
        position=1, key="a", task=task_name("shop", Rich), fields=json.dumps(to_dict(message)),
        answer='{"result": null}', attempts=1,
    )  # fmt: skip

    assert outbox.outcome_of(entry).command == message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": ""}, "name must have at least 1 character"),
        ({"name": "x" * 256}, "name must have at most 255 characters"),
        ({"name": "a\nb"}, "name must have printable characters only"),
        ({"distributed": ""}, "distributed must have at least 1 character"),
        ({"number": 0}, "number must be at least 1"),
        ({"number": True}, "number must be a whole number"),
        ({"tags": ["a", ""]}, "tags.1 must have at least 1 character"),
        ({"tags": "ab"}, "tags must be a list"),
        ({"line": ["LAMP"]}, "line.1 is missing"),
        ({"lines": [["LAMP", 0]]}, "lines.0.1 must be at least 1"),
        ({"lines": [["LAMP", "1"]]}, "lines.0.1 must be a whole number"),
        ({"lines": {}}, "lines must be a list"),
        ({"facts": []}, "facts must be an object"),
        ({"days": {"first": "2031-02-30"}}, "days must be a date of the calendar, as YYYY-MM-DD"),
        ({"colour": "blue"}, "colour must be 'red' or 'green'"),
        ({"fragile": 1}, "fragile must be true or false"),
        ({"weight": "2"}, "weight must be a number"),
        ({"weight": float("nan")}, "weight must be a finite number"),
        ({"weight": float("-inf")}, "weight must be a finite number"),
        ({"sku": "LAMP\0"}, f"sku {UNSTORABLE}"),
        ({"sku": "\ud800"}, f"sku {UNSTORABLE}"),
        ({"facts": {"a": [{"b\0": 1}]}}, f"facts {UNSTORABLE}"),
        ({"other": "\0"}, f"other {UNSTORABLE}"),
        ({"plain": ["x", [float("inf")]]}, "plain.1 must not have a number that is not finite"),
        ({"ref": True}, "ref must be a whole number"),
        ({"at": "2031-01-02"}, "at must be a time as YYYY-MM-DDThh:mm:ss+hh:mm"),
        ({"at": "20310102T030405"}, "at must be a time as YYYY-MM-DDThh:mm:ss+hh:mm"),
        ({"at": "2031-01-02T25:00:00Z"}, "at must be a time of the calendar, as YYYY-MM-DDThh:mm:ss+hh:mm"),
        ({"day": "2031-01-02T00:00:00"}, "day must be a date as YYYY-MM-DD"),
    ],
)
def test_limits_count_wherever_the_type_stands(change: dict[str, Any], text: str):
    with pytest.raises(InvalidMessage) as caught:
        from_dict(Rich, change)

    assert str(caught.value) == text


def test_the_schema_shows_the_limits_of_an_optional_field():
    properties = model(Rich).model_json_schema()["properties"]

    name, number = properties["name"]["anyOf"], properties["number"]["anyOf"]
    assert name == [{"type": "string", "minLength": 1, "maxLength": 255}, {"type": "null"}]
    assert number[0] == {"type": "integer", "minimum": 1, "maximum": 2_147_483_647}
    assert {"type": "string", "format": "date-time"} in properties["at"]["anyOf"]


def test_a_time_may_be_written_with_a_z_or_an_offset():
    for text in ("2031-01-02T03:04:05.6789Z", "2031-01-02T05:04:05.678900+02:00"):
        assert from_dict(Rich, {"at": text}).at == SOON


def test_a_field_with_a_default_factory_may_be_missing():
    first, second = from_dict(Rich, {}), from_dict(Rich, {})

    assert first.facts == {}
    assert first.facts is not second.facts


class Colour(StrEnum):
    """Cannot be told from a text."""

    RED = "red"


@dataclass(frozen=True)
class Nested:
    """No plain value."""

    sku: str


@pytest.mark.parametrize(
    ("hint", "problem"),
    [
        (Colour, "Colour does not survive JSON"),
        (Decimal, "Decimal does not survive JSON"),
        (bytes, "bytes does not survive JSON"),
        (set[str], r"set\[str\] does not survive JSON"),
        (Nested, "Nested does not survive JSON"),
        (dict[int, str], r"dict\[int, str\] does not survive JSON"),
        (list[Decimal], "Decimal does not survive JSON"),
        (Decimal | None, "Decimal does not survive JSON"),
        (Literal[Colour.RED], "does not survive JSON"),
        (date | str, "two of the types date, str look the same in JSON"),
        (list[str] | tuple[int, ...] | None, "two of the types list, tuple, NoneType look the same"),
        (Annotated[int, Text()], r"Text\(min_length=1, max_length=255\) is not a limit for int"),
        (Annotated[list[str], Text()], r"Text\(.*\) is not a limit for list"),
        (Annotated[int | str, Whole(1)], r"Whole\(.*\) is not a limit for str"),
    ],
)
def test_a_type_that_does_not_survive_json_is_refused_with_its_field(hint: Any, problem: str):
    kind = make_dataclass("Odd", [("fact", hint)], bases=(Event,), frozen=True)

    with pytest.raises(ValueError, match=f"The field fact of Odd: .*{problem}"):
        model(kind)


def test_a_type_that_is_imported_for_type_checkers_only_is_refused():
    @dataclass(frozen=True)
    class Odd(Event):
        share: Fraction

    with pytest.raises(ValueError, match="The types of Odd cannot be read: NameError: name 'Fraction'"):
        model(Odd)


def test_a_field_that_is_not_an_argument_is_refused():
    @dataclass(frozen=True)
    class Odd(Event):
        total: int = field(init=False, default=0)

    with pytest.raises(ValueError, match="The field total of Odd has init=False"):
        model(Odd)


@dataclass(frozen=True)
class Book(Command):
    """Checks its own fields."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("the last day is before the first")
        if self.last > 366:
            raise UnknownMessage("no year is so long")


def test_what_a_message_says_about_its_own_fields_is_an_invalid_message():
    with pytest.raises(
        InvalidMessage, match=r"^message cannot be built: ValueError: the last day is before the first$"
    ):
        from_dict(Book, {"first": 2, "last": 1})


def test_a_message_may_name_its_own_error_of_the_bus():
    with pytest.raises(UnknownMessage, match="no year is so long"):
        from_dict(Book, {"first": 2, "last": 400})


def test_a_line_of_a_file_that_its_own_class_refuses_stops_no_other(tmp_path: Path):
    file = tmp_path / "books.csv"
    file.write_text("first,last\n1,400\n1,2\n")

    refused, taken = read_lines(Book, file)

    assert refused.refused == "UnknownMessage: no year is so long"
    assert taken.command == Book(1, 2)


def test_a_stored_command_that_its_own_class_refuses_by_now_is_another_one():
    bus = MessageBus({Book: lambda _message, _uow: None}, {})

    assert not same_message(bus, "Book(first=1, last=400)", Book(1, 2))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "5", "5"),
        ("name", "None", None),
        ("number", "5", 5),
        ("sku", "LAMP", "LAMP"),
        ("weight", "2.5", 2.5),
        ("fragile", "true", True),
        ("colour", "red", "red"),
        ("floor", "-1", -1),
        ("ref", "5", 5),
        ("ref", "LAMP", "LAMP"),
        ("day", "2031-01-02", date(2031, 1, 2)),
        ("at", "2031-01-02T03:04:05.6789Z", SOON),
        ("amount", "5", 5),
        ("amount", "None", None),
        ("tags", '["a", "b"]', ("a", "b")),
        ("line", '["LAMP", 1]', ("LAMP", 1)),
        ("days", '{"first": "2031-01-02"}', {"first": date(2031, 1, 2)}),
        ("other", "[1]", "[1]"),
        ("plain", "[1]", [1]),
    ],
)
def test_an_operator_can_write_every_type(name: str, text: str, value: object):
    """In `deliveries edit`, in a file, and as an option of a command."""
    assert getattr(from_dict(Rich, {name: from_text(Rich, name, text)}), name) == value
