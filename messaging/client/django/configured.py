"""What Django's settings say: `COMMAND_OUTBOX`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from messaging.client.databases import DjangoDatabase
from messaging.client.outbox import Outbox
from messaging.client.pace import Pace
from messaging.client.relay import Relay


def outbox() -> Outbox:
    """Return the project's outbox."""
    found: Outbox = import_string(_setting("OUTBOX"))
    return found


def relay() -> Relay:
    """Return a relay as the settings want it."""
    options: Mapping[str, Any] = settings.COMMAND_OUTBOX
    on_answer = _setting("ON_ANSWER")
    return outbox().relay(
        DjangoDatabase(options.get("DATABASE", "default")),
        _setting("BROKER_URL"),
        _setting("RESULTS_URL"),
        on_answer=import_string(on_answer) if on_answer else None,
        keep_answers=not on_answer,
        pace=Pace(**options.get("PACE", {})),
        **options.get("CLIENT", {}),
    )


def _setting(name: str) -> Any:
    options = getattr(settings, "COMMAND_OUTBOX", {})
    if name not in options:
        raise ImproperlyConfigured(f"COMMAND_OUTBOX[{name!r}] is missing from the settings")
    return options[name]
