"""The files for Grafana and Prometheus, without a server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
