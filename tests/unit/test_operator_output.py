"""What the operator's tool prints stays whole on a narrow terminal and cannot drive it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from messaging.operator.cli.output import age, printable, table_of

ID = "01a20586-5162-7f44-b68f-9df892530fd4"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_an_id_can_be_copied_from_a_terminal_of_any_width(width: int):
    rows = [
        (ID, "failed", "2026-11-22 23:10:18Z", "OutOfStock(sku='LAMP') for send_out_of_stock_notification")
    ]
    out = io.StringIO()

    Console(file=out, width=width).print(table_of(("id", "status", "since", "what"), rows))

    assert ID in out.getvalue()


def test_control_characters_are_shown_instead_of_obeyed():
    assert printable("a\x1b[31mred\nß\ttab") == "a\\x1b[31mred\nß\ttab"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (86400 * 3, "3.0 d")]
)
def test_durations_are_shown_in_their_largest_unit(seconds: float, shown: str):
    assert age(seconds) == shown
