"""A plain Celery task around the job by hand: our Celery settings, Celery's own transport and backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

import celeryconfig
from allocation.bootstrap import project
from benchmarks.peers.job import allocate, allocate_line, connection
from benchmarks.peers.ours import celery_worker, prefork_choices
from benchmarks.peers.peer import Line, Peer, redis_url

QUEUE, SOLO_QUEUE = "plain", "plain_solo"


def plain_app(name: str, queues: Sequence[str], broker: int, results: int) -> Celery:
    """Return a Celery app with this project's settings, without this project's own parts."""
    app = Celery(name)
    app.config_from_object(celeryconfig)
    app.conf.update(celeryconfig.of_project(project))
    app.conf.update(
        broker_url=redis_url(broker),
        result_backend=redis_url(results),
        broker_transport=None,
        worker_consumer="celery.worker.consumer:Consumer",
        task_queues=[Queue(queue, Exchange("", type="direct"), routing_key=queue) for queue in queues],
        task_default_queue=queues[0],
        task_default_routing_key=queues[0],
        beat_schedule={},
    )
    return app


app = plain_app("plain", [QUEUE, SOLO_QUEUE], 2, 3)


@app.task(name="plain.allocate", bind=True)
def allocate_task(task: Any, orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line."""
    return allocate(task.request.id, orderid, sku, qty)


@app.task(name="plain.reallocate", ignore_result=True)
def reallocate_task(orderid: str, sku: str, qty: int) -> None:
    """Allocate one line, without writing an answer or a delivery."""
    with connection() as opened, opened.cursor() as run:
        allocate_line(run, orderid, sku, qty)


def workers(processes: int) -> list[list[str]]:
    """One worker with a pool of child processes."""
    return [celery_worker("benchmarks.peers.plain_celery", "plain", QUEUE, "prefork", processes)]


def publish(lines: Sequence[Line], queue: str = QUEUE) -> None:
    """Send by task name."""
    for line in lines:
        app.send_task("plain.allocate", (line.orderid, line.sku, line.qty), queue=queue)


peer = Peer(
    "plain_celery",
    "plain Celery, psycopg2 by hand",
    workers,
    publish,
    choices=prefork_choices("benchmarks.peers.plain_celery", "plain", QUEUE),
)
