"""`manage.py relay_commands`: the relay with Django's settings."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from messaging.client import tool
from messaging.client.django import configured


class Command(BaseCommand):
    """Send what was committed and hand the answers to the app, until SIGTERM."""

    help = "Send the commands that this app's transactions have committed, and hand their answers to it."

    def add_arguments(self, parser: Any) -> None:
        """Add two ways to end at once."""
        parser.add_argument("--status", action="store_true", help="print what waits, and end")
        parser.add_argument(
            "--once", action="store_true", help="work until nothing waits, a minute at most, and end"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Run."""
        relay = configured.relay()
        if options["status"]:
            tool.show_status(relay)
        else:
            tool.run(relay, once=options["once"])
