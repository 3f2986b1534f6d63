"""One line of the log for each message that a worker handles."""

from __future__ import annotations

import logging
from typing import Any

from celery import signals

from messaging.project.runtime import Runtime
from messaging.telemetry.json_lines import JsonLines
from messaging.telemetry.whole_lines import is_pipe, process_lock
from messaging.telemetry.work import Kind, Outcome, Work
from messaging.texts import cut, one_line

logger = logging.getLogger(__name__)

#: Characters of a result in the log.
SHOWN_RESULT = 200

WORDS = {
    Outcome.DONE: "Handled",
    Outcome.REFUSED: "Refused",
    Outcome.RETRIED: "Failed",
    Outcome.FAILED: "Failed for good:",
    Outcome.ERROR: "Could not handle",
}


#: Celery's loggers of the lines "received" and "succeeded", which ours replaces.
REPLACED = ("celery.worker.strategy", "celery.app.trace")


class Lines:
    """Writes the line when the work has ended; the message in it can be replayed."""

    def __init__(self, runtime: Runtime) -> None:
        self._commands = runtime.project.bus.commands
        self._slow_s = runtime.settings.log_slow_s

    def begin(self, work: Work) -> None:
        """Write nothing yet."""

    def end(self, work: Work, _begun: None) -> None:
        """Write the line: a warning if somebody may have to look."""
        if work.kind not in (Kind.COMMAND, Kind.DELIVERY):
            return
        slow = work.seconds >= self._slow_s
        level = logging.WARNING if slow or work.error is not None else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s", self._line(work, slow), extra={"work": work})

    def _line(self, work: Work, slow: bool) -> str:
        name = one_line(f"{work.task}[{work.task_id}]")
        if work.outcome is Outcome.SKIPPED:
            return f"{name} Delivery {work.task_id} is done or has to wait, or another worker has it"
        taken = f"{'slowly, ' if slow else ''}in {work.seconds:.3f} s"
        line = f"{name} {WORDS[work.outcome]} {self._shown(work)} {taken}"
        if work.delivery is not None:
            line += f", attempt {work.attempt_number}"
        if work.error is not None:
            line += f": {work.why}"
            if work.claim is not None and work.claim.failure is not None:
                line += f"\n{work.claim.failure.traceback}"
        elif work.answer is not None:
            line += f": {cut(repr(work.answer.result), SHOWN_RESULT)}"
        return line

    def _shown(self, work: Work) -> str:
        if work.kind is Kind.COMMAND:
            handler = self._commands.get(type(work.message))  # type: ignore[arg-type]
            return f"{work.message!r} with {handler.__name__}" if handler else "an unreadable command"
        delivery = work.delivery
        if delivery is None:
            return f"delivery {work.task_id}"
        event = delivery.event or f"{delivery.event_type}(**{delivery.payload!r})"
        return f"{event} with {delivery.handler}"


def set_up(service: str, as_json: bool) -> None:
    """Write the log of a worker or of beat in the chosen format, and without the lines that ours replaces."""

    def choose(logger: logging.Logger, loglevel: int | None = None, **_: Any) -> None:
        for name in REPLACED if (loglevel or logging.INFO) >= logging.INFO else ():
            logging.getLogger(name).setLevel(logging.WARNING)
        for handler in logger.handlers:
            if as_json:
                handler.setFormatter(JsonLines(service))
            if isinstance(handler, logging.StreamHandler) and is_pipe(handler.stream):
                handler.lock = process_lock()  # type: ignore[assignment]  # as a lock is used there

    signals.after_setup_logger.connect(choose, weak=False)
    signals.after_setup_task_logger.connect(choose, weak=False)
