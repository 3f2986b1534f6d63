"""The app: `celery -A examples.plain_celery.app worker`; the variable CONFIG names its settings."""

from __future__ import annotations

import os
import signal
from typing import Any

import redis
from celery import Celery, signals

BROKER = os.environ.get("BROKER", "redis://127.0.0.1:6379/0")

app = Celery("shop", broker=BROKER)
app.config_from_object(os.environ.get("CONFIG", "examples.plain_celery.reliable"))

shop = redis.Redis.from_url(BROKER)
name: str = app.conf.task_default_queue


@signals.worker_ready.connect
def clock_in(**_: Any) -> None:
    """Note in Redis that this worker is ready."""
    shop.sadd(f"{name}.workers", os.getpid())


@app.task(name="shop.pay", ignore_result=True)
def pay(order: int) -> None:
    """Note in Redis that this order was paid once more."""
    shop.hincrby(f"{name}.paid", str(order), 1)


@app.task(name="shop.crash")
def crash() -> None:
    """Kill the worker, as a fault in a C library does, or the kernel when the memory is used up."""
    shop.incr(f"{name}.crashes")
    os.kill(os.getpid(), signal.SIGKILL)
