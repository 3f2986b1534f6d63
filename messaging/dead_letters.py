"""What is kept of a message that no task could read."""

from __future__ import annotations

from reliable_celery.dead_letters import DeadLetter as DeadLetter
from reliable_celery.dead_letters import DeadLetterStore as DeadLetterStore
