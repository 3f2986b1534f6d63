"""The operator's tool without a required server: one line, and an exit status for scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from local import ROOT
from local.ports import LOOPBACK
from local.servers.redis_server import Redis

ALLOCATE = ("allocate", "o1", "LAMP", "3", "--timeout", "1")


def tool(*arguments: str, broker: str, results: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the tool with these servers."""
    addresses = {"ALLOCATION_BROKER_URL": broker, "ALLOCATION_RESULT_BACKEND_URL": results}
    return subprocess.run(
        [sys.executable, "-m", "allocation", *arguments],
        env={**os.environ, **addresses, "PYTHONPATH": str(ROOT)}, cwd=folder, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def nobody(free_port: int) -> str:
    """An address at which no Redis listens."""
    return f"redis://{LOOPBACK}:{free_port}/0"


@pytest.mark.parametrize("away", ["broker", "result backend"])
def test_a_command_without_its_broker_or_results_ends_with_one_line_and_status_3(
    nobody: str, redis_server: Redis, away: str
):
    there = redis_server.url_of(0)
    broker, results = (nobody, there) if away == "broker" else (there, nobody)

    done = tool(*ALLOCATE, broker=broker, results=results)

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"Error: The {away} is unavailable")


def test_a_load_without_its_broker_ends_with_one_line_and_status_3(nobody: str, tmp_path: Path):
    file = tmp_path / "orders.csv"
    file.write_text("orderid,sku,qty\no1,LAMP,1\n")

    done = tool("load", str(file), broker=nobody, results=nobody)

    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "0 of 1 lines are answered" in done.stderr


def test_a_command_that_no_worker_answers_ends_with_one_line_and_status_3(redis_server: Redis):
    done = tool(*ALLOCATE, broker=redis_server.url_of(4), results=redis_server.url_of(5))

    assert done.returncode == 3
    assert done.stderr.startswith("Error: No answer in 1 s. The command is queued under the id")
    assert done.stderr.count("\n") == 1
    with redis.Redis.from_url(redis_server.url_of(4)) as client:
        client.flushdb()
