"""The benchmark's arithmetic, input and output."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import report
from benchmarks.figure import Figure, percentile, ratios
from benchmarks.peers.peer import Peer
from benchmarks.pgbench import parse_tps
from benchmarks.plots import goals_svg, share_of_goal


def _figure(value: float, goal: float = 1.3, at_least: bool = True, why: str = "") -> Figure:
    return Figure("key", "commands/s", "plain <Celery>", goal, at_least, (value,), "2 : 1", why)


def test_a_ratio_is_computed_within_a_round_and_the_figure_is_their_median():
    """One disturbed round changes nothing."""
    figure = Figure("key", "x", "y", 1.3, True, ratios([20, 30, 1], [10, 10, 10]), "")

    assert figure.ratios == (2, 3, 0.1)
    assert figure.value == 2


@pytest.mark.parametrize(
    ("value", "at_least", "met"), [(1.3, True, True), (1.2, True, False), (1.4, False, False)]
)
def test_a_goal_is_a_floor_or_a_ceiling(value: float, at_least: bool, met: bool):
    """More is not always better."""
    assert _figure(value, at_least=at_least).met is met


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.2, 1.4, 1.4, 1.5, 1.5), "met"),
        ((1.0, 1.2, 1.4, 1.5, 1.5), "undecided"),
        ((1.0, 1.1, 1.2, 1.2, 1.5), "missed"),
    ],
)
def test_a_goal_counts_only_where_three_quarters_of_the_rounds_agree(ratios: tuple[float, ...], verdict: str):
    """The median alone would call the second one met."""
    assert Figure("key", "x", "y", 1.3, True, ratios, "").verdict == verdict


def test_a_peer_is_shown_with_its_settings_and_what_it_lacks():
    """A reader must not have to know that a faster peer promises less."""
    peer = Peer("huey", "Huey", lambda _cores: [], list, settings="4 processes", lacks="acknowledges nothing")

    assert peer.shown == "Huey (4 processes, acknowledges nothing)"


def test_a_better_figure_has_a_larger_share_of_its_goal():
    """Half the allowed time is twice as good."""
    assert share_of_goal(_figure(0.55, 1.1, at_least=False)) == pytest.approx(2)
    assert share_of_goal(_figure(2.6, 1.3)) == pytest.approx(2)


def test_a_percentile_is_one_of_the_values():
    """At most the last one."""
    assert percentile(range(1, 101), 0.99) == 100
    assert percentile([7], 0.5) == 7


def test_the_rate_is_read_from_the_output_of_pgbench():
    """Its last line has it, without the time to connect."""
    printed = (
        "latency average = 0.556 ms\ninitial connection time = 3.061 ms\ntps = 3597.122302 (without …)\n"
    )

    assert parse_tps(printed) == pytest.approx(3597.122302)
    with pytest.raises(ValueError, match="no tps"):
        parse_tps("pgbench: error")


def test_the_plot_shows_every_figure():
    """Well-formed XML with a bar per figure and escaped text."""
    picture = ET.fromstring(goals_svg([_figure(2.0), _figure(0.5)]))  # noqa: S314  our own text

    bars = [bar for bar in picture.iter("{http://www.w3.org/2000/svg}rect") if bar.get("x")]
    assert len(bars) == 2


def test_a_page_says_which_goal_was_missed_and_why():
    """Every miss is listed."""
    run = report.Run(
        "make bench", datetime(2026, 1, 2, tzinfo=UTC), [_figure(2.0), _figure(0.5, why="Since.")], 0.1, 5
    )

    page = report.markdown(run)

    assert "`make bench` on 02 January 2026" in page
    assert "0.50 × where ≥ 1.3 × was wanted. Since." in page  # noqa: RUF001
    assert page.count("**missed**") == 1


def test_a_part_that_is_measured_again_takes_its_place_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The page says which run each row is of; writing the same part twice changes nothing."""
    page, data = tmp_path / "page.md", tmp_path / "page.json"
    page.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "JSON_FILE", data)
    monkeypatch.setattr(report, "PLOT", tmp_path / "page.svg")
    day = datetime(2026, 1, 2, tzinfo=UTC)
    others = replace(_figure(2.0), key="others", what="others/s")
    report.write_docs(report.Run("make bench-full", day, [_figure(0.5), others], 0.1, 60), in_part=False)

    part = report.Run("make part", day + timedelta(days=1), [_figure(1.5)], 0.2, 5)
    for _ in range(2):
        report.write_docs(part, in_part=True)

    text = page.read_text()
    assert "`make bench-full` on 02 January" in text
    assert text.count("`make part` on 03 January") == 1
    assert ("others/s" in text, "0.50 ×" in text, "1.50 ×" in text) == (True, False, True)  # noqa: RUF001
    assert text.startswith("before")
    assert text.endswith("after\n")
