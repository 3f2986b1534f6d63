"""`make demo` with a user's own files: its output is right, and it leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy import create_engine

from examples.demo.shop import connect
from local import ROOT
from local.data_folder import hold
from local.ports import free_port
from local.processes import programs
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from messaging.client import close_app
from messaging.delivery import new_id
from tests.integration.outbox import INSERT, USUAL
from tests.unread import unread

BATCHES = """ref,sku,qty,eta
b1,LAMP,3,
b2,LAMP,2,2026-01-31
b3,CHAIR,0,
"""
ORDERS = """at,orderid,sku,qty
2026-01-01T10:00:00,o1,LAMP,2
2026-01-01T10:00:01,o2,LAMP,2
2026-01-01T10:00:02,o3,LAMP,2
2026-01-01T10:00:03,o4,LAMP,0
2026-01-01T10:00:04,o5,SOFA,1
"""


@pytest.fixture
def environment(server_folder):
    """Free ports and the test's own data folder, without addresses."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATION_")}
    ports = {f"ALLOCATION_{name}_PORT": str(free_port()) for name in ("REDIS", "POSTGRES", "FLOWER", "SMTP")}
    return {**kept, **ports, "ALLOCATION_DATA_DIR": tempfile.mkdtemp(prefix="demo-", dir=server_folder)}


@pytest.fixture
def failed_mail(environment):
    """What a demo leaves that was interrupted: a mail that failed."""
    folder = Path(environment["ALLOCATION_DATA_DIR"])
    with hold(folder), Postgres(folder / "postgres", int(environment["ALLOCATION_POSTGRES_PORT"])) as server:
        programs.migrate(server.url)
        engine = create_engine(server.url)
        with engine.begin() as connection:
            connection.execute(INSERT, {**USUAL, "id": new_id(), "age_s": 1.0})
        engine.dispose()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_plays_other_files_and_stops_everything_it_started(environment, failed_mail, tmp_path):
    (tmp_path / "batches.csv").write_text(BATCHES)
    (tmp_path / "orders.csv").write_text(ORDERS)

    ran = subprocess.run(
        [sys.executable, "-m", "examples.demo",
         "--batches", str(tmp_path / "batches.csv"), "--orders", str(tmp_path / "orders.csv")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stdout + ran.stderr
    for what, count in {
        "allocated": 2,
        "out of stock": 1,
        "refused: InvalidMessage: qty must be at least 1": 1,
        "refused: InvalidSku: Invalid sku SOFA": 1,
    }.items():
        assert any(what in line and f" {count} " in line for line in ran.stdout.splitlines()), ran.stdout
    assert "1 mails arrived, each once" in ran.stdout
    assert not _left_over(environment["ALLOCATION_DATA_DIR"])


def test_the_demos_shop_leaves_nothing_unread(redis_server: Redis):
    """It looks for its answers; what it left unread would stop a large file in the end."""
    app = connect(redis_server.url_of(5), redis_server.url_of(6))
    before = unread()
    for number in range(50):
        app.send_task("shop.ask", (number,), queue="nobody")
    after = unread()

    close_app(app)
    with redis.Redis.from_url(redis_server.url_of(5)) as client:
        client.flushdb()
    assert after - before < 1000


def _left_over(folder: str) -> list[str]:
    """Return the command lines of processes that still name the data folder."""
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if folder in line]
