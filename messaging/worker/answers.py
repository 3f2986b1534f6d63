"""What carrying out a command returns, and what the log says about an unexpected error."""

from __future__ import annotations

import logging

from messaging.delivery import Delivery
from messaging.errors import MessagingError
from messaging.postgres.inbox import Answer, CommandJob
from messaging.project.runtime import Runtime

logger = logging.getLogger("messaging.worker.commands")

Answered = tuple[Answer, list[Delivery]]  # with the deliveries to send now


def log_unexpected(runtime: Runtime, job: CommandJob, error: Exception) -> None:
    """Log an error that has become a command's answer, with its traceback, unless it is a refusal."""
    if not isinstance(error, (MessagingError, *runtime.project.refusals)):
        logger.error("Unexpected error while handling %r", job.command, exc_info=error)
