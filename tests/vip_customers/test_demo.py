"""`make demo-vip`, on a file with some invalid lines, and its parts."""

import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from examples.vip_customers.demo.picture import draw
from examples.vip_customers.demo.purchases import Count, growth, read
from local import ROOT

PURCHASES = ROOT / "data" / "purchases.csv"
HEADER = "customer_id,orderid,date,cds,amount\n"
CLEAN = "".join(
    f"{customer},{customer}-{number},2026-0{number}-01,1,9.99\n"
    for number in range(1, 5)
    for customer in ("harry", "sally", "a customer with blanks", "Jürgen")
)
DIRTY = """\
harry,harry-1,2026-01-01,1,9.99
tom,tom-1,2026-01-01,1,9.99
tom,tom-1,2026-01-01,2,19.98
tom,tom-2,2026-02-30,1,9.99
tom,tom-3,2026-03-01,none,9.99
tom,tom-4,2026-04-01,0,9.99
tom,tom-5,2026-04-01,1,9.999
tom,tom-6,2026-05-01,1,9.99
"""


def test_the_file_counts_746_customers_with_three_orders_or_more():
    count = Count()

    for order in read(PURCHASES):
        count.add(order)

    assert (count.number_of_orders, len(count.orders), len(count.vips())) == (6919, 2357, 746)
    assert growth(count.vips())[-1] == (date(1998, 6, 30), 746)


def test_a_customer_is_a_vip_from_the_third_order_by_date_however_the_lines_are_sorted(tmp_path: Path):
    file = tmp_path / "purchases.csv"
    file.write_text(HEADER + "".join(sorted(CLEAN.splitlines(keepends=True), reverse=True)))
    count = Count()

    for order in read(file):
        count.add(order)

    assert set(count.vips().values()) == {date(2026, 3, 1)}


def test_the_picture_is_xml_that_ends_at_the_last_number(tmp_path: Path):
    file = tmp_path / "growth.svg"
    steps = [(date(2026, 1, 1), 1), (date(2026, 1, 9), 7)]

    draw(file, steps, steps, "7 <VIPs> & more")

    texts = [element.text for element in _svg(file).iter("{http://www.w3.org/2000/svg}text")]
    assert "7 <VIPs> & more" in texts
    assert {"2026-01-01", "2026-01-09", "6"} <= set(texts)


def test_one_vip_on_one_day_can_be_drawn(tmp_path: Path):
    draw(tmp_path / "growth.svg", [(date(2026, 1, 1), 1)], [(date(2026, 1, 1), 1)], "1 VIP")

    assert len(_svg(tmp_path / "growth.svg"))


def test_a_file_without_the_expected_columns_is_an_error_that_names_them(tmp_path: Path):
    file = tmp_path / "other.csv"
    file.write_text("customer_id,orderid,date\n")

    done = _demo(file, tmp_path / "data")

    assert done.returncode == 1
    assert "has no column cds, amount" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_plays_all_acts_and_succeeds_only_if_the_counts_agree(tmp_path: Path):
    file, data = tmp_path / "purchases.csv", tmp_path / "data"
    file.write_text(HEADER + CLEAN + DIRTY, encoding="utf-8")

    done = _demo(file, data)

    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "refused 1 times: InvalidMessage: orderid was used before, for another order",
        "refused 1 times: InvalidMessage: placed_on must be a date of the calendar, as YYYY-MM-DD",
        "refused 1 times: InvalidMessage: items must be a whole number",
        "refused 1 times: InvalidMessage: items must be at least 1",
        "refused 1 times: InvalidMessage: amount must be a whole number",
        "Only 4 congratulations failed.",
        "answered as the first time, without any effect",
    ):
        assert line in done.stdout
    assert len(_svg(data / "vip" / "growth-of-vips.svg"))


def _svg(file: Path) -> ET.Element:
    return ET.parse(file).getroot()  # noqa: S314  # it is ours


def _demo(purchases: Path, data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.vip_customers.demo", "--purchases", str(purchases)]
    environment = {**os.environ, "ALLOCATION_DATA_DIR": str(data)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=280, check=False
    )
