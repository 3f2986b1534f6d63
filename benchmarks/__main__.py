"""`python -m benchmarks [--full] [--write-docs] [--only NAME …]`: measure, print and save the figures."""

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
    "options",
    "latency",
    "hot",
    "idle",
    "scaling",
    "snapshot",
    "memory",
    "flat",
    "large",
    "settings",
    "telemetry",
    "brokers",
    "transactional",
    "relay",
)
Measure = Callable[[Servers, Scale], list[Figure]]


def main() -> None:
    """Run the requested parts; every process ends with this one, even on SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    options = _options()
    scale = FULL if options.full else TINY if options.tiny else QUICK
    if options.lines:
        scale = replace(scale, lines=options.lines, turn_s=0, search_s=0)
    command = " ".join(["python -m benchmarks", *_without_json(sys.argv[1:])])
    began, start, load = report.now(), time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    broken: list[str] = []
    with servers() as its_servers:
        for name in options.only or MEASUREMENTS:
            try:
                figures += _measure(name, its_servers, scale)
            except Exception:  # noqa: BLE001  keep half an hour of other figures
                traceback.print_exc()
                broken.append(name)
            # After each part, so that an interrupted run keeps its figures.
            _keep(report.Run(command, began, figures, load, (time.monotonic() - start) / 60), options)
    report.show(figures)
    if broken:
        sys.exit(f"not measured: {', '.join(broken)}")


def _without_json(arguments: list[str]) -> list[str]:
    """Return the options that affect the figures, without the output file."""
    at = arguments.index("--json") if "--json" in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]


def _stop(*_: object) -> None:
    """Shut down cleanly; ignore a second signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _keep(run: report.Run, options: argparse.Namespace) -> None:
    """Write the requested outputs."""
    if options.json:
        report.write_json(run, options.json)
    if options.write_docs and run.figures:
        report.write_docs(run, in_part=bool(options.only))


def _measure(name: str, its_servers: Servers, scale: Scale) -> list[Figure]:
    """Measure on empty servers, so that no measurement sees another's rows and messages."""
    start = time.monotonic()
    its_servers.empty()
    stock.fill(its_servers)
    # Imported late, since peers read their addresses at import.
    measure: Measure = import_module(f"benchmarks.figures.{name}").measure
    figures = measure(its_servers, scale)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="more rounds, more rows: about an hour")
    size.add_argument("--tiny", action="store_true", help="only check that everything runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, help="measure a part")
    parser.add_argument("--lines", type=int, help="order lines per turn, instead of its time")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--write-docs", action="store_true", help="write the performance page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
