"""`make docs`: write docs/grafana-dashboard.json, the dashboard of what workers and Flower measure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[1] / "docs" / "grafana-dashboard.json"
WIDTH, HEIGHT = 24, 7
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """One picture: queries, each with its legend."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    help: str = ""


def rate(metric: str, *by: str) -> tuple[str, str]:
    """Return how often a second, and its legend."""
    return f"sum by ({', '.join(by)}) (rate({metric}[$__rate_interval]))", " ".join(
        f"{{{{{b}}}}}" for b in by
    )


def quantile(share: float, metric: str, by: str) -> tuple[str, str]:
    """Return the time within which a share of cases ends, and its legend."""
    inner = f"sum by (le, {by}) (rate({metric}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, {inner})", f"p{share * 100:g} {{{{{by}}}}}"


def stat(title: str, query: str, unit: str = "short", explained: str = "") -> Panel:
    """Return a number."""
    return Panel(title, [(query, "")], unit, 4, "stat", explained)


ROWS: dict[str, Sequence[Panel]] = {
    "Is anything wrong?": [
        stat("Failed deliveries", 'sum(allocation_deliveries{state="failed"})', explained="deliveries list"),
        stat("Oldest pending delivery", "max(allocation_deliveries_oldest_pending_seconds)", "s"),
        stat(
            "Dead letters",
            "sum(allocation_dead_letters) or 0 * max(allocation_database_up == 1)",
            explained="dead-letters list",
        ),
        stat("Relay last ran", 'max(allocation_housekeeping_age_seconds{task="relay"})', "s"),
        stat("Sessions that wait for a lock", "max(allocation_database_blocked_sessions)", explained="check"),
        stat("Database", "min(allocation_database_up)", explained="1 while it answers"),
    ],
    "Commands": [
        Panel("Commands a second", [rate("allocation_command_seconds_count", "command", "outcome")], "ops"),
        Panel(
            "Time to handle",
            [quantile(share, "allocation_command_seconds", "command") for share in (0.5, 0.95)],
            "s",
        ),
        Panel(
            "Time from sending to the answer",
            [quantile(share, "allocation_command_answer_seconds", "command") for share in (0.5, 0.95)],
            "s",
        ),
        Panel("Refusals a second", [rate("allocation_refusals_total", "command", "error")], "ops", 24),
    ],
    "Events": [
        Panel("Attempts a second", [rate("allocation_handler_seconds_count", "handler", "outcome")], "ops"),
        Panel("Time of an attempt", [quantile(0.95, "allocation_handler_seconds", "handler")], "s"),
        Panel(
            "From commit to first attempt",
            [quantile(0.95, "allocation_handler_start_seconds", "handler")],
            "s",
        ),
        Panel(
            "Deliveries that are open",
            [
                (
                    'sum by (state, handler) (allocation_deliveries{state=~"pending|waiting|failed"})',
                    "{{state}} {{handler}}",
                )
            ],
        ),
        Panel(
            "What waits, and why",
            [("sum by (handler, why) (allocation_deliveries_waiting)", "{{why}} {{handler}}")],
        ),
        Panel("Re-runs of the last hour", [("sum by (by) (allocation_reruns_last_hour)", "{{by}}")]),
    ],
    "Queues and housekeeping": [
        Panel("Messages that wait", [("max by (queue) (allocation_queue_messages)", "{{queue}}")]),
        Panel("Age of the oldest", [("max by (queue) (allocation_queue_oldest_seconds)", "{{queue}}")], "s"),
        Panel(
            "Lags",
            [
                ("max(allocation_relay_lag_seconds)", "relay"),
                ("max(allocation_announcements_oldest_seconds)", "announcements"),
            ],
            "s",
        ),
        Panel("Unpublished events", [("max(allocation_announcements)", "events")]),
        Panel("Last run", [("max by (task) (allocation_housekeeping_age_seconds)", "{{task}}")], "s"),
        Panel("Time of a job", [quantile(0.95, "allocation_housekeeping_seconds", "task")], "s"),
    ],
    "Workers and database": [
        Panel(
            "Workers in use",
            [("sum(allocation_worker_busy)", "busy"), ("sum(allocation_worker_pool_size)", "all")],
            width=6,
        ),
        Panel(
            "Connections in use", [("sum(allocation_worker_database_connections)", "connections")], width=6
        ),
        Panel("Oldest snapshot", [("max(allocation_database_oldest_snapshot_seconds)", "snapshot")], "s", 6),
        Panel("Dead rows", [("max by (table) (allocation_database_dead_rows)", "{{table}}")], width=6),
    ],
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    return {
        "uid": "allocation",
        "title": "Allocation",
        "tags": ["allocation"],
        "timezone": "utc",
        "schemaVersion": 36,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": list(_placed()),
    }


def _placed() -> Any:
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        }  # fmt: skip
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            number += 1
            yield _panel(number, panel, x, y)
            x += panel.width
        y += HEIGHT


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def written() -> str:
    """Return the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(written(), encoding="utf-8")
