"""The tool's output is readable on a narrow terminal, and cannot control the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from messaging.operator.cli.output import age, laid_out, printable

ID = "01a20586-5162-7f44-b68f-9df892530fd4"


ERROR = "ConnectionRefusedError: [Errno 111] Connection refused"
WHAT = f"OutOfStock(sku='LAMP') for send_out_of_stock_notification, 6 tries\n{ERROR}"
COLUMNS = ("id", "status", "since", "what")
ROWS = [(ID, "failed", "2026-11-22 23:10:18Z", WHAT)]


def printed(width: int, columns=COLUMNS, rows=ROWS) -> list[str]:
    """Return the lines shown on a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width).print(laid_out(columns, rows, width))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_id_can_be_copied_from_a_terminal_of_any_width(width: int):
    assert ID in "\n".join(printed(width))


@pytest.mark.parametrize("width", [60, 80])
def test_a_row_takes_few_lines_on_a_narrow_terminal(width: int):
    lines = printed(width)

    assert len(lines) <= 6
    assert ERROR in "\n".join(lines)


def test_a_table_of_short_words_stays_a_table_on_a_narrow_terminal():
    header, row = printed(40, ("count", "status", "handler"), [("3", "failed", "send_mail")])

    assert header.split() == ["count", "status", "handler"]
    assert row.split() == ["3", "failed", "send_mail"]


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mred\nß\ttab") == "a\\x1b[31mred\nß\ttab"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (86400 * 3, "3.0 d")]
)
def test_durations_are_shown_in_their_largest_unit(seconds: float, shown: str):
    assert age(seconds) == shown
