"""What `make up` prints besides the addresses: who serves each, and lines to paste into another terminal."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from local import ROOT
from local.settings import LocalSettings

#: Variables that move addresses, which the operator's tool has to be given as well.
PORTS = ("redis_port", "postgres_port", "smtp_port")


def server_of(what: str, settings: LocalSettings) -> str:
    """Return who serves an address."""
    return f"elsewhere, by {settings.given[what]}" if what in settings.given else "make up"


def elsewhere(settings: LocalSettings) -> str:
    """Return a line about addresses that are not served here; empty if all are."""
    if not settings.given:
        return ""
    return (
        f"Not started here because its address is set: {', '.join(settings.given)}."
        " To serve one here on another port, set its port instead of its address."
    )


def next_steps(settings: LocalSettings, environment: Mapping[str, str] = os.environ) -> str:
    """Return lines for another terminal: the settings that only this one has, and commands to try."""
    lines = [
        f"cd {shlex.quote(str(ROOT))}",
        *_exports(settings, environment),
        f"{tool()} check                            # is everything there?",
        f"{tool()} create-batch batch-1 LAMP 100",
        f"{tool()} allocate order-1 LAMP 3          # batch-1",
        f"{tool()} stock LAMP",
        f"{tool()} deliveries list                  # what failed",
    ]
    return (
        "Try in another terminal:\n\n"
        + "".join(f"  {line}\n" for line in lines)
        + (f"\n{_RESTART}" if settings.smtp_url else f"\n{_DRILL}\n{_RESTART}")
    )


def tool() -> str:
    """Return how the operator's tool is called in the project's folder."""
    return f"{shlex.quote(_python())} -m allocation"


_DRILL = "`make drill` there stops the mail server, to practise a failure with docs/how-to/operating.md."
_RESTART = "Workers run the code that they started with: after a change, Ctrl-C and `make up` again."


def _exports(settings: LocalSettings, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield what is set in this terminal alone; the tool also reads a file .env."""
    hidden = sorted(name for name in environment if name.startswith("PG"))
    if hidden and settings.database_url is None:
        yield f"unset {' '.join(hidden)}  # they are about another PostgreSQL"
    for name in PORTS:
        variable = f"ALLOCATION_{name.upper()}"
        if environment.get(variable):
            yield f"export {variable}={getattr(settings, name)}"
    if environment.get("ALLOCATION_DATA_DIR"):
        yield f"export ALLOCATION_DATA_DIR={shlex.quote(str(settings.data_dir))}"
    for variable in settings.given.values():
        if environment.get(variable):
            yield f"# export {variable}=…, as in this one"


def _python() -> str:
    """Return the running Python, as a relative path if it is the project's own."""
    python = Path(sys.executable)
    return str(python.relative_to(ROOT)) if python.is_relative_to(ROOT) else str(python)


def metrics_hint(addresses: tuple[str, str]) -> str:
    """Say where Prometheus finds what, and where its files are."""
    workers = ", ".join(f"http://{address}/metrics" for address in addresses)
    return (
        f"metrics: {workers} and Flower's /metrics; docs/prometheus-alerts.yml has alerts for Prometheus,"
        " docs/grafana-dashboard.json a dashboard for Grafana"
    )
