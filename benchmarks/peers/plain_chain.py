"""Plain Celery: a command that finds no stock, and after its commit a task that notifies the stock team."""

from __future__ import annotations

import logging
from typing import Any

from benchmarks.peers.job import allocate
from benchmarks.peers.plain_celery import app
from messaging.adapters.mail import SmtpServer, compose
from tasks import app as our_app

logger = logging.getLogger("benchmarks.peers.plain_celery")


@app.task(name="plain.allocate_or_tell", bind=True)
def allocate_or_tell(task: Any, orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line; notify the stock team if there is no stock."""
    batchref = allocate(task.request.id, orderid, sku, qty)
    if batchref is None:
        tell.apply_async((sku,), ignore_result=True)
    return batchref


@app.task(name="plain.tell", bind=True, ignore_result=True)
def tell(task: Any, sku: str) -> None:
    """Send the same mail as our handler."""
    logger.info("Handling %s", sku)
    settings = our_app.runtime.settings
    mail = compose(
        task.request.id, settings.mail_from, "stock@example.com", f"Out of stock for {sku}", "None."
    )
    SmtpServer(settings.smtp_url, settings.smtp_timeout_s).send(mail)
