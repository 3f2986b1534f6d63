"""The app."""

from django.apps import AppConfig


class CommandOutboxConfig(AppConfig):
    """Commands that wait to be sent, and their answers."""

    name = "messaging.client.django"
    label = "command_outbox"
    verbose_name = "Commands"
