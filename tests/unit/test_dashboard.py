"""The files for Grafana and Prometheus, without a server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from scripts.dashboard import PATH, written
from tests.programs import missing

ALERTS = Path(__file__).parents[2] / "docs" / "prometheus-alerts.yml"


def test_the_dashboard_is_up_to_date():
    """`make docs` writes it."""
    assert PATH.read_text(encoding="utf-8") == written()


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield the places of values that Grafana's own types do not keep."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from lost(value, theirs.get(name), f"{path}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, value in enumerate(ours):
            yield from lost(value, theirs[number], f"{path}[{number}]")
    elif ours != theirs and not (ours in ([], "", None, False) and theirs is None):
        yield f"{path}: {ours!r} became {theirs!r}"


def test_grafana_knows_every_field_of_the_dashboard():
    """Read by Grafana's own types and written again, it is the same."""
    ours = json.loads(PATH.read_text(encoding="utf-8"))

    theirs = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(ours)))

    assert list(lost(ours, theirs)) == []


def test_prometheus_accepts_the_alerts():
    promtool = shutil.which("promtool")
    if promtool is None:
        missing("promtool", "Debian's package prometheus")

    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


REFUSALS = 'allocation_refusals_total{command="allocate", error="WorkerCrashed"}'
ATTEMPTS = 'allocation_handler_seconds_count{handler="notify", outcome="%s"}'


@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        ("CommandsFail", {REFUSALS: "0+0x40 1+0x100"}, True),  # one poisoned command, which is answered once
        ("CommandsFail", {REFUSALS: "0+0x140"}, False),
        # Those whose key is blocked are looked at and put aside, again and again.
        ("HandlerFails", {ATTEMPTS % "retried": "0+1x140", ATTEMPTS % "skipped": "0+20x140"}, True),
        ("HandlerFails", {ATTEMPTS % "retried": "0+1x140", ATTEMPTS % "done": "0+20x140"}, False),
    ],
)
def test_an_alert_fires_for_its_cause_and_for_nothing_else(
    tmp_path: Path, alert: str, series: dict[str, str], fires: bool
):
    """As Prometheus plays it: with the time that the alert waits, and a value each 15 seconds."""
    promtool = shutil.which("promtool")
    if promtool is None:
        missing("promtool", "Debian's package prometheus")
    asked = f'count(count_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[35m]))'
    found = [{"labels": "{}", "value": 1}] if fires else []
    played = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": asked, "eval_time": "35m", "exp_samples": found}],
    }
    file = tmp_path / "played.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": [played]}))

    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_of_the_containers():
    promtool = shutil.which("promtool")
    if promtool is None:
        missing("promtool", "Debian's package prometheus")
    command = [promtool, "check", "config", "--syntax-only", str(ALERTS.parent / "monitoring/prometheus.yml")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do():
    for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
