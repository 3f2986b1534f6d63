"""One set of variables, or one `.env`, configures both the local servers and the tools."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from allocation.config import Settings
from local.hints import metrics_hint, next_steps
from local.settings import LocalSettings
from local.stack import Stack, addresses_of

DOTENV = """
ALLOCATION_REDIS_PORT=8390
ALLOCATION_POSTGRES_PORT=8490
ALLOCATION_SMTP_PORT=8025
ALLOCATION_RESULT_BACKEND_URL=
"""


def shown(settings: Settings) -> dict[str, str]:
    """Return the addresses by their variables."""
    names = ("broker_url", "database_url", "result_backend_url", "smtp_url")
    return {f"ALLOCATION_{name.upper()}": getattr(settings, name) for name in names}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore this machine's variables."""
    for name in ("BROKER_URL", "DATABASE_URL", "RESULT_BACKEND_URL", "SMTP_URL"):
        monkeypatch.delenv(f"ALLOCATION_{name}", raising=False)


def test_make_up_gives_each_worker_an_address_for_its_metrics():
    settings = LocalSettings(metrics_address="127.0.0.1:9540")

    assert settings.metrics_addresses == ("127.0.0.1:9540", "127.0.0.1:9541")
    assert "http://127.0.0.1:9541/metrics" in metrics_hint(settings.metrics_addresses)
    assert LocalSettings(metrics_address=None).metrics_addresses is None


def test_a_postgresql_that_is_served_here_is_not_reached_with_the_settings_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Such as those that a cloud database needs; libpq would obey them."""
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.1")
    asked = dict(os.environ)
    elsewhere = LocalSettings(_env_file=None, data_dir=tmp_path, database_url="postgresql+psycopg2://db/x")
    assert Stack(elsewhere).commands.env["PGSSLMODE"] == "require"
    assert "unset" not in next_steps(elsewhere, asked)

    here = LocalSettings(_env_file=None, data_dir=tmp_path)
    started = Stack(here).commands.env

    assert not [name for name in (*started, *os.environ) if name.startswith("PG")]
    assert "unset PGHOSTADDR PGSSLMODE" in next_steps(here, asked)


def test_one_dotenv_file_with_ports_configures_servers_and_tools(tmp_path: Path):
    file = tmp_path / ".env"
    file.write_text(DOTENV)

    tools, servers = Settings(_env_file=file), LocalSettings(_env_file=file)

    assert shown(tools) == addresses_of(servers).environment()
    assert tools.broker_url == "redis://127.0.0.1:8390/0"
    assert tools.database_url == "postgresql+psycopg2://allocation@127.0.0.1:8490/allocation"


def test_without_ports_both_have_the_same_defaults():
    assert shown(Settings(_env_file=None)) == addresses_of(LocalSettings(_env_file=None)).environment()


def test_an_address_that_is_set_overrides_the_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALLOCATION_REDIS_PORT", "8390")
    monkeypatch.setenv("ALLOCATION_BROKER_URL", "amqp://rabbitmq.example.com//")

    settings = Settings(_env_file=None)

    assert settings.broker_url == "amqp://rabbitmq.example.com//"
    assert settings.result_backend_url == "redis://127.0.0.1:8390/1"
