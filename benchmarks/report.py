"""The benchmark's outputs: a table, JSON, a plot, and the figures in docs/explanation/performance.md."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.figure import Figure
from benchmarks.plots import goals_svg
from local import ROOT

DOCS = ROOT / "docs" / "explanation"
PAGE = DOCS / "performance.md"
JSON_FILE = DOCS / "performance.json"
PLOT = DOCS / "performance.svg"
COLOURS = {"met": "green", "missed": "red", "undecided": "yellow", "shown": "default"}
BEGIN, END = "<!-- figures: written by the benchmark -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Run:
    """One run of the benchmark."""

    command: str
    began: datetime
    figures: list[Figure]
    load_before: float  # the machine's load before the run
    minutes: float
    #: How some of the figures were measured again later, by when that began.
    again: dict[str, str] = field(default_factory=dict)

    @property
    def how(self) -> str:
        """Return the command and the circumstances."""
        return (
            f"`{self.command}` on {self.began:%d %B %Y, %H:%M} UTC in {self.minutes:.0f} minutes,\n"
            f"with a load average of {self.load_before:.1f} before it began"
        )


def machine() -> str:
    """Describe the machine."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, {platform.system()}, "
        f"Python {platform.python_version()}; servers and workers share the cores"
    )


def show(figures: list[Figure]) -> None:
    """Print the table."""
    table = Table(title="Measured in turns; the figure is the median of the rounds")
    for column in ("figure", "against", "measured (medians)", "goal", "ratio", "quartiles", ""):
        table.add_column(column, justify="right" if column in ("goal", "ratio") else "left")
    for figure in figures:
        verdict = f"[{COLOURS[figure.verdict]}]{figure.verdict}[/]"
        table.add_row(
            figure.what, figure.against, figure.measured, figure.goal_text, f"{figure.value:.2f} ×",
            figure.spread, verdict,
        )  # fmt: skip
    Console(width=None if os.isatty(1) else 170).print(table)


def write_json(run: Run, path: Path) -> None:
    """Write all measurements."""
    facts = {
        "command": run.command,
        "began": run.began.isoformat(timespec="seconds"),
        "minutes": round(run.minutes, 1),
        "load_before": run.load_before,
        "machine": machine(),
        "again": run.again,
        "figures": [
            {**asdict(figure), "value": round(figure.value, 4), "verdict": figure.verdict}
            for figure in run.figures
        ],
    }
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def write_docs(run: Run, *, in_part: bool) -> None:
    """Replace the figures in docs/explanation/performance.md, and the JSON and the plot beside it.

    Those of a run `in_part` take their places among the figures of the last whole one.
    """
    run = _among_the_last(run) if in_part else run
    write_json(run, JSON_FILE)
    PLOT.write_text(goals_svg(run.figures))
    put_between(BEGIN, END, markdown(run))


def _among_the_last(part: Run) -> Run:
    last = json.loads(JSON_FILE.read_text())
    names = {one.name for one in fields(Figure)}
    figures = {
        one["key"]: Figure(**{name: one[name] for name in one if name in names}) for one in last["figures"]
    }
    figures |= {figure.key: figure for figure in part.figures}
    return Run(
        last["command"],
        datetime.fromisoformat(last["began"]),
        list(figures.values()),
        last["load_before"],
        last["minutes"],
        {**last.get("again", {}), part.began.isoformat(timespec="seconds"): part.how},
    )


def put_between(begin: str, end: str, text: str) -> None:
    """Replace what stands between two marks on docs/explanation/performance.md."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def markdown(run: Run) -> str:
    """Return the generated part of the page."""
    rows = "\n".join(
        f"| {figure.what} | {figure.against} | {figure.measured} | {figure.goal_text} |"
        f" {figure.value:.2f} × | {figure.spread} | {_marked(figure.verdict)} |"
        for figure in run.figures
    )
    again = "".join(f" Some rows were measured again by\n{how}." for how in run.again.values())
    return f"""Printed by {run.how} (above 1, others were working on the machine).{again}

Machine: {machine()}.

| figure | against | measured, medians | goal | ratio | lower to upper quartile | |
|---|---|---|---|---|---|---|
{rows}

![Every figure as a share of its goal](performance.svg)

{_missed(run.figures)}"""


def _marked(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "missed" else verdict


def _missed(figures: list[Figure]) -> str:
    missed = [figure for figure in figures if not figure.met]
    if not missed:
        return "Every goal was reached in this run.\n"
    lines = (
        f"- **{figure.what}** against {figure.against}: {figure.value:.2f} × where {figure.goal_text} was"
        f" wanted. {figure.why}".rstrip()
        for figure in missed
    )
    return "Goals that this run missed, or could not decide on this machine:\n\n" + "\n".join(lines) + "\n"


def now() -> datetime:
    """Return the time with its zone."""
    return datetime.now(UTC)
