"""What a run prints: a line per round, and a table by fault at the end."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import Round

SHOWN = 8  # findings of a bad round


def show_round(one: Round) -> None:
    """Print one round, and what it found."""
    verdict = one.verdict
    print(
        f"{'ok ' if one.good else 'BAD'} {one.fault:24} seed {one.seed}: {one.commands} commands, "
        f"lost {len(verdict.lost)}, doubled {len(verdict.doubled)}, broken {len(verdict.broken)}, "
        f"sent again {one.sent_again}, tried again {one.tried_again}; next answer {one.next_answer_s:.2f} s, "
        f"all answered {one.all_answered_s:.1f} s, calm {one.calm_s:.1f} s",
        flush=True,
    )
    for finding in [*verdict.lost, *verdict.doubled, *verdict.broken][:SHOWN]:
        print(f"    {finding}", flush=True)


def show_table(rounds: Iterable[Round]) -> None:
    """Print a row per fault, the times as median / worst."""
    rounds = list(rounds)
    headings = ("fault", "rounds", "commands", "lost", "doubled", "broken", "next answer s", "all answered s")
    table = Table(*headings)
    for name, fault in FAULTS.items():
        some = [one for one in rounds if one.fault == name]
        if some:
            table.add_row(fault.what, *_figures(some))
    if rounds:
        table.add_row("all", *_figures(rounds))
    Console(width=150).print(table)


def _figures(some: list[Round]) -> list[str]:
    counts = (
        len(some),
        sum(one.commands for one in some),
        sum(len(one.verdict.lost) for one in some),
        sum(len(one.verdict.doubled) for one in some),
        sum(len(one.verdict.broken) for one in some),
    )
    times = ([one.next_answer_s for one in some], [one.all_answered_s for one in some])
    return [*map(str, counts), *(f"{median(values):.1f} / {max(values):.1f}" for values in times)]
