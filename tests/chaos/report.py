"""A run's output: a line per round, and a table of faults at the end."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import Round

SHOWN = 8  # findings of a bad round


def show_round(one: Round) -> None:
    """Print one round and its findings."""
    print(
        f"{'ok ' if one.good else 'BAD'} {one.fault:24} seed {one.seed}: {one.commands} commands, "
        f"{one.repeats} repeats, {_counts([one])}, sent again {one.sent_again}; "
        f"next answer {one.next_answer_s:.2f} s, all answered {one.all_answered_s:.1f} s, "
        f"calm {one.calm_s:.1f} s, took {one.took_s:.1f} s",
        flush=True,
    )
    for finding in one.verdict.findings[:SHOWN]:
        print(f"    {finding}", flush=True)


def _counts(rounds: list[Round]) -> str:
    return ", ".join(f"{name} {count}" for name, count in _found(rounds).items())


def _found(rounds: list[Round]) -> dict[str, int]:
    """Return the number of findings of each kind."""
    kinds = {"lost": "lost", "doubled": "doubled", "told wrongly": "told_wrongly", "broken": "broken"}
    return {name: sum(len(getattr(one.verdict, kind)) for one in rounds) for name, kind in kinds.items()}


def show_table(rounds: Iterable[Round]) -> None:
    """Print a row per fault, the times as median / worst."""
    rounds = list(rounds)
    times = ("next answer s", "all answered s", "round s")
    table = Table("fault", "rounds", "commands", "repeats", *_found([]), *times)
    for name, fault in FAULTS.items():
        some = [one for one in rounds if one.fault == name]
        if some:
            table.add_row(fault.what, *_figures(some))
    if rounds:
        table.add_row("all", *_figures(rounds))
    Console(width=190).print(table)


def _figures(some: list[Round]) -> list[str]:
    counts = [len(some), sum(one.commands for one in some), sum(one.repeats for one in some)]
    times = (
        [one.next_answer_s for one in some],
        [one.all_answered_s for one in some],
        [one.took_s for one in some],
    )
    shown = (f"{median(values):.1f} / {max(values):.1f}" for values in times)
    return [*map(str, [*counts, *_found(some).values()]), *shown]
