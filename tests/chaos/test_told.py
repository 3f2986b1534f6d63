"""Tests of the check: it finds every way in which an answer may contradict the database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.sent import Message, Sent
from tests.chaos.told import Books, Row, answers_that_changed, effects_twice, shown, told_wrongly

LINE = {"orderid": "r1-o1", "sku": "r1-s", "qty": 2}
INVALID_SKU = {"exc_type": "InvalidSku", "exc_message": ["Invalid sku r1-s"]}
NOTHING = Books([], set(), set(), {}, set(), set())


def order(name: str = "r1-1", *, qty: int = 2, after: Sent | None = None, **options: Any) -> Sent:
    """An order in its own message, not yet answered."""
    one = Sent("allocate", {**LINE, "qty": qty}, "key", after)
    Message(name, [one], given_key="key", **options)
    return one


def answered(one: Sent, result: Any) -> Sent:
    """The same after its sender got a result or an error."""
    one.message.take("FAILURE" if isinstance(result, dict) else "SUCCESS", result)
    return one


def books_of(one: Sent, result: Any = "b1", **facts: Any) -> Books:
    """The database's state after an order was carried out."""
    row = Row(one.id, one.key, shown(one), result, None, False)
    line = (one.fields["orderid"], one.fields["sku"], one.fields["qty"])
    return replace(NOTHING, rows=[row], lines={line}, **facts)


def refused(one: Sent, error: str = "InvalidSku") -> Row:
    return Row(one.id, one.key, "", None, error, True)


def findings(sent: list[Sent], books: Books) -> str:
    return "\n".join(told_wrongly(sent, books))


def test_answers_that_agree_with_the_database_are_right() -> None:
    first = answered(order(), "b1")
    repeat = answered(order("r1-2", after=first), "b1")
    before = answered(order("r1-0"), INVALID_SKU)
    books = books_of(first)
    books.rows.append(refused(before))

    assert findings([before, first, repeat], books) == ""


@pytest.mark.parametrize(
    ("result", "books", "what"),
    [
        ("b1", NOTHING, "not done"),
        ("b1", books_of(order(), "b2"), "but the result is 'b2'"),
        ("b1", books_of(order(qty=3)), "but what was done is"),
        ("b1", replace(books_of(order()), lines=set()), "without an effect"),
        (INVALID_SKU, books_of(order()), "yet it was done"),
        (INVALID_SKU, replace(NOTHING, causes={"r1-1"}), "yet it was done"),
        (INVALID_SKU, replace(NOTHING, rows=[refused(order(), "Expired")]), "but Expired is recorded"),
        ({"exc_type": "Expired", "exc_message": [""]}, NOTHING, "for no reason"),
        ({"exc_type": "BatchAlreadyExists", "exc_message": [""]}, NOTHING, "for no reason"),
    ],
)
def test_an_answer_that_contradicts_the_database_is_found(result: Any, books: Books, what: str) -> None:
    assert what in findings([answered(order(), result)], books)


def test_a_refusal_of_a_command_that_succeeded_before_is_found() -> None:
    first = answered(order(), "b1")
    repeat = answered(order("r1-2", after=first), INVALID_SKU)

    assert "although it repeats what was told 'b1'" in findings([first, repeat], books_of(first))


def test_an_unknown_sku_is_found_if_a_sender_knew_that_the_product_exists() -> None:
    purchase = Sent("create_batch", {"ref": "b", "sku": "r1-s", "qty": 5, "eta": None})
    Message("r1-0", [purchase])
    row = Row("r1-0", "r1-0", shown(purchase), None, None, False)
    books = replace(NOTHING, rows=[row], batches={"b": ("r1-s", 5)})
    answered(purchase, None)

    assert "for no reason" in findings([purchase, answered(order(), INVALID_SKU)], books)


def test_a_success_with_another_commands_key_is_found() -> None:
    first = answered(order(), "b1")
    other = answered(order("r1-2", qty=3, after=first), "b1")

    assert "its key was used for another command" in findings([first, other], books_of(first))


def test_a_command_that_is_carried_out_after_its_expiry_is_found() -> None:
    late = answered(order(expires_s=-5.0), "b1")

    assert "had expired when it was sent" in findings([late], books_of(late))


def test_an_effect_without_an_answer_is_found() -> None:
    known = order()

    assert "that nobody sent" in findings([], books_of(known))
    assert "nobody was told" in findings([known], replace(books_of(known), rows=[]))
    assert "has 4 pieces" in findings([], replace(NOTHING, batches={"b1": ("r1-s", 4)}))


def test_an_answer_that_changes_later_is_found() -> None:
    told = answered(order(), INVALID_SKU)

    assert list(answers_that_changed(told.message.changes("SUCCESS", "b1")))
    assert not list(answers_that_changed(told.message.changes("FAILURE", INVALID_SKU)))


def test_two_effects_of_one_key_are_found() -> None:
    books = books_of(order())
    books.rows.append(replace(books.rows[0], task_id="r1-2"))

    assert list(effects_twice(books))
