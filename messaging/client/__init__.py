"""Send commands from a Python app and hear what came of them; needs Celery and the message classes alone.

`client` sends at once. `outbox` sends from inside the app's own database transaction.
"""

from messaging.client.answers import Answer, CommandFailed, NotAnswered, Outcome
from messaging.client.app import close_app
from messaging.client.client import Client

__all__ = ["Answer", "Client", "CommandFailed", "NotAnswered", "Outcome", "close_app"]
