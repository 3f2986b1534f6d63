"""What `inspect stats`, and so Flower's page of a worker, say of the worker's broker.

Celery sends every option of the transport. One that is no JSON, as for RabbitMQ and for Sentinel, costs the
answer, and the worker's control queue with what waits there; another may be the password of the Sentinels.

Setting: comes with `reliable_celery.consumer:Consumer`.
"""

# mypy: disable-error-code="no-untyped-call, no-untyped-def"
# Celery is untyped.

from __future__ import annotations

from typing import Any

from celery import bootsteps
from celery.worker.consumer.connection import Connection

#: Neither an operator's business nor always JSON.
LEFT_OUT = ("password", "transport_options", "ssl", "credential_provider")


class BrokerInfo(bootsteps.StartStopStep):
    """Replaces the part of Celery's own step, which comes before it."""

    requires = (Connection,)

    def info(self, c: Any) -> dict[str, Any]:
        """Return where and how the worker is connected, without options and secrets."""
        [connection] = (step for step in c.steps if isinstance(step, Connection))
        broker = connection.info(c)["broker"]
        if isinstance(broker, dict):  # else it is not connected
            broker = {name: value for name, value in broker.items() if name not in LEFT_OUT}
        return {"broker": broker}
