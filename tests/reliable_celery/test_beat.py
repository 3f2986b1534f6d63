"""Beat goes on when the clock is set back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.chaos.clock import Clock, can_be_built
from tests.programs import missing

TWO_HOURS = 7200  # seconds


def make_beat(server: Redis, folder: Path, clock: Clock) -> Child:
    """Return beat with one task, each second."""
    config = {
        "broker_url": server.url,
        "beat_scheduler": "reliable_celery.beat:Scheduler",
        "beat_max_loop_interval": 1,
        "beat_schedule": {"often": {"task": "fixture.mark", "schedule": 1.0, "args": [1]}},
    }
    command = ["-m", "celery", "-A", "tests.reliable_celery.celery_fixtures.worker_app", "beat"]
    options = [f"--schedule={folder / 'schedule'}", "--pidfile=", "--loglevel=INFO"]
    env = {**os.environ, **clock.environment(), "FIXTURE_CONFIG": json.dumps(config)}
    return Child("beat", [sys.executable, *command, *options], log=folder / "beat.log", env=env)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_tasks_are_sent_although_the_clock_was_ahead(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, restarted: bool
):
    """Its file has the times of the last runs, which are in the future now."""
    if not can_be_built():
        missing("cc", "a C compiler on Linux, such as Debian's package build-essential")
    clock = Clock(tmp_path)
    clock.jump_to(TWO_HOURS)
    beat = make_beat(redis_server, tmp_path, clock)
    try:
        beat.start()
        eventually(lambda: broker.llen("celery") > 0, 60, "a task while the clock is ahead")
        if restarted:
            beat.stop()
        clock.jump_to(0)
        if restarted:
            beat.start()
        before = broker.llen("celery")

        eventually(lambda: broker.llen("celery") > before + 1, 30, "tasks after the clock was set back")
    finally:
        beat.kill()
        print(beat.log_text())
