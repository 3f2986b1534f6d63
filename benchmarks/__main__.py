"""`python -m benchmarks [--full] [--write-docs] [--only NAME …]`: measure, print the table, keep it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks import report, stock
from benchmarks.figure import Figure
from benchmarks.scale import FULL, QUICK, TINY, Scale
from benchmarks.servers import Servers, servers

#: In this order: the relay's ten million rows come last.
MEASUREMENTS = (
    "commands",
    "events",
    "latency",
    "hot",
    "scaling",
    "memory",
    "flat",
    "settings",
    "brokers",
    "transactional",
    "relay",
)
Measure = Callable[[Servers, Scale], list[Figure]]


def main() -> None:
    """Run what was asked for; every process ends with this one, also on SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    options = _options()
    scale = FULL if options.full else TINY if options.tiny else QUICK
    if options.lines:
        scale = replace(scale, lines=options.lines)
    command = " ".join(["python -m benchmarks", *_without_json(sys.argv[1:])])
    began, start, load = report.now(), time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    broken: list[str] = []
    with servers() as its_servers:
        for name in options.only or MEASUREMENTS:
            try:
                figures += _measure(name, its_servers, scale)
            except Exception:  # noqa: BLE001  half an hour of other figures is worth keeping
                traceback.print_exc()
                broken.append(name)
            # After each part, so that a run that is stopped leaves what it found.
            _keep(report.Run(command, began, figures, load, (time.monotonic() - start) / 60), options)
    report.show(figures)
    if broken:
        sys.exit(f"not measured: {', '.join(broken)}")


def _without_json(arguments: list[str]) -> list[str]:
    """Return what decides the figures: where they are written besides is nobody's business."""
    at = arguments.index("--json") if "--json" in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]


def _stop(*_: object) -> None:
    """End in order; a second signal must not break into that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _keep(run: report.Run, options: argparse.Namespace) -> None:
    """Write what was asked for."""
    if options.json:
        report.write_json(run, options.json)
    if options.write_docs and run.figures:
        report.write_docs(run)


def _measure(name: str, its_servers: Servers, scale: Scale) -> list[Figure]:
    """Measure on empty servers, so that no measurement inherits another's rows and messages."""
    start = time.monotonic()
    its_servers.empty()
    stock.fill(its_servers)
    # Peers read their addresses when they are imported, hence so late.
    measure: Measure = import_module(f"benchmarks.figures.{name}").measure
    figures = measure(its_servers, scale)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="more rounds, more rows: about half an hour")
    size.add_argument("--tiny", action="store_true", help="only see that everything runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, help="measure a part")
    parser.add_argument("--lines", type=int, help="order lines a turn, where the size's own are too many")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--write-docs", action="store_true", help="write the page on performance")
    return parser.parse_args()


if __name__ == "__main__":
    main()
