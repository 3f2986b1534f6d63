"""Recording an order kills the worker, like a fault in a C library."""

import os
import signal

from examples.vip_customers import model


def _crash(_history: model.History, _orderid: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


model.History.record_order = _crash  # type: ignore[assignment,method-assign]

from examples.vip_customers.tasks import app  # noqa: E402

__all__ = ["app"]
