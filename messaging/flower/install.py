"""Called from `flowerconfig.py`, before Flower builds its application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flower import command
from flower.urls import handlers, settings
from prometheus_client import REGISTRY

from messaging.flower import order_page
from messaging.flower.guard import GuardedFlower
from messaging.flower.loader import PageLoader
from messaging.flower.metrics import DeliveryCollector
from messaging.flower.pages import PAGES
from messaging.flower.shown import shown_task
from messaging.worker.app import MessagingApp


def install(app: MessagingApp) -> Callable[[Any], Any]:
    """Guard the Flower of this process, add metrics and pages; return its option `format_task`."""
    command.Flower = GuardedFlower  # `celery flower` creates it after reading the configuration
    # `current_app` stands for another app in another thread.
    own: MessagingApp = getattr(app, "_get_current_object", lambda: app)()
    REGISTRY.register(DeliveryCollector(own).start())
    handlers[-1:-1] = [
        *PAGES,
        *order_page.PAGES,
    ]  # the last one is Flower's "not found", which matches everything
    settings["template_loader"] = PageLoader(settings["template_path"])

    def format_task(task: Any) -> Any:
        return shown_task(app.runtime.project, task)

    return format_task
