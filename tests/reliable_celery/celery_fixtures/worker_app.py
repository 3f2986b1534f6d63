"""The app that test workers run: `celery -A tests.reliable_celery.celery_fixtures.worker_app worker`.

FIXTURE_CONFIG is a JSON table of Celery settings, FIXTURE_LETTERS the file of dead letters, and FIXTURE_MARKS
the address of the tasks' counts. While a file named like the letters plus `.refuse` exists, none is stored.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import redis
from celery import Celery, Task
from celery.exceptions import Reject

from reliable_celery.dead_letters import DeadLetter
from reliable_celery.groups.member import Member


class LetterFile:
    """Dead letters as JSON lines; a body is in hex."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, letter: DeadLetter) -> None:
        if self.path.with_suffix(".refuse").exists():
            raise OSError("disk full")
        line = dataclasses.asdict(letter) | {"body": letter.body.hex()}
        with self.path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


app = Celery("fixture")
app.conf.update(json.loads(os.environ["FIXTURE_CONFIG"]))
if not app.conf.get("dead_letter_store"):
    letters = LetterFile(Path(os.environ.get("FIXTURE_LETTERS", "letters.jsonl")))
    app.conf.dead_letter_store = lambda _app: letters


@app.task(name="fixture.mark")
def mark(number: int, seconds: float = 0.0) -> None:
    """Count a run of `number` in the table `marks`, after `seconds`."""
    time.sleep(seconds)
    with redis.Redis.from_url(os.environ["FIXTURE_MARKS"]) as client:
        client.hincrby("marks", str(number), 1)


@app.task(name="fixture.die")
def die(number: int, whole_worker: bool = False) -> None:
    """Count a run of `number`, then kill its process, or the worker's main process."""
    with redis.Redis.from_url(os.environ["FIXTURE_MARKS"]) as client:
        client.hincrby("marks", str(number), 1)
    if whole_worker:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)  # a child that outlives its worker would store a result


@app.task(name="fixture.reject", bind=True)
def reject(task: Task, number: int, times: int, seconds: float = 0.0) -> None:
    """Count a run of `number`; after `seconds` it is redelivered, until it has run this many times."""
    with redis.Redis.from_url(os.environ["FIXTURE_MARKS"]) as client:
        runs = client.hincrby("marks", str(number), 1)
    time.sleep(seconds)
    if runs < times:
        raise Reject("again", requeue=True)


@app.task(name="fixture.exhaust")
def exhaust() -> None:
    """Fail for want of memory."""
    raise MemoryError("all is taken")


@app.task(name="fixture.add")
def add(x: int, y: int) -> int:
    """Return the sum."""
    return x + y


class Sharing:
    """The shared work of `fixture.share`: notes the numbers and waits; a negative one kills the process."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def prepare(self, members: Sequence[Member]) -> set[str]:
        numbers = [member.kwargs["number"] for member in members]
        with redis.Redis.from_url(os.environ["FIXTURE_MARKS"]) as client:
            client.rpush("groups", json.dumps(numbers))
        time.sleep(max(member.kwargs.get("seconds", 0) for member in members))
        if min(numbers) < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if 0 in numbers:
            raise ValueError("no group with 0")
        self.done = {member.context.id for member in members if member.kwargs["number"] % 2}
        return self.done


sharing = Sharing()


@app.task(name="fixture.share", bind=True, together=sharing)
def share(task: Task, number: int, seconds: float = 0, exits: bool = False) -> str:
    """Return whether a group has done the work, which takes `seconds`; or exit."""
    if task.request.id in sharing.done:
        return "together"
    if exits:
        sys.exit("no more")
    die(number) if number < 0 else mark(number)
    return "alone"


@app.task(name="fixture.collect_garbage")
def collect_garbage() -> float:
    """Collect garbage; return by how many MiB that increased this process's unshared memory."""
    before = _private_mib()
    gc.collect()
    return _private_mib() - before


def _private_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
