"""What a worker does with one message: noted once, then told to the log, the trace and the metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from messaging.delivery import Delivery
from messaging.errors import AttemptsUsedUp, UnknownMessage, WorkerCrashed, describe
from messaging.postgres.attempts import Attempt
from messaging.postgres.inbox import Answer

logger = logging.getLogger(__name__)

M = TypeVar("M")

#: Errors that end a delivery; Celery retries it after all others.
ENDS = (AttemptsUsedUp, WorkerCrashed, UnknownMessage)


class Kind(StrEnum):
    """What a message asks for."""

    COMMAND = "command"
    BATCH = "batch"  # many commands in one message
    DELIVERY = "delivery"
    HOUSEKEEPING = "housekeeping"


class Outcome(StrEnum):
    """What came of it."""

    DONE = "done"
    REFUSED = "refused"  # the answer to a command is an error
    RETRIED = "retried"  # a delivery failed and has attempts left
    FAILED = "failed"  # a delivery failed for the last time
    SKIPPED = "skipped"  # a delivery is done already, or has to wait, or another worker has it
    ERROR = "error"  # something else failed


@dataclass
class Work:
    """One message in a worker, or one command of a message with many."""

    kind: Kind
    task: str
    task_id: str
    queue: str
    correlation_id: str
    causation_id: str | None = None
    handler: str | None = None
    attempt: int = 1
    redelivered: bool = False
    #: The trace that the message belongs to; for a re-run, that of the first run as well.
    traceparent: str | None = None
    rerun_of: str | None = None
    sent_at: float | None = None  # seconds since 1970, by the sender's clock
    count: int | None = None  # commands in a batch
    in_batch: bool = False

    message: object = None  # a command, once it is read
    answer: Answer | None = None  # to a command
    claim: Attempt | None = None  # at a delivery

    outcome: Outcome = Outcome.DONE
    error: BaseException | None = None
    why: str = ""  # the error in a line
    seconds: float = 0.0  # once it has ended
    ahead: Any = None  # what has followed it in a group, before its task
    _began: float = field(default_factory=time.perf_counter)

    @property
    def delivery(self) -> Delivery | None:
        """Return the delivery, once it is claimed."""
        return self.claim.delivery if self.claim else None

    @property
    def waited_s(self) -> float | None:
        """Return the seconds from an event to this attempt; None if it is not the first, or none at all."""
        return self.claim.waited_s if self.claim and self.claim.delivery else None

    @property
    def attempt_number(self) -> int:
        """Return which attempt it is; the row of a delivery knows it better than the message."""
        return self.delivery.attempts + 1 if self.delivery else self.attempt

    def reading(self, read: Callable[[], M]) -> Callable[[], M]:
        """Return `read`; it also notes the message that it returns."""

        def noted() -> M:
            self.message = message = read()
            return message

        return noted

    def was_done(self, seconds: float, message: object = None) -> None:
        """Note how long the work has taken, where it was done beforehand, and the command."""
        self.message = message
        self._began = time.perf_counter() - seconds

    def end(self, error: BaseException | None = None) -> None:
        """Note the end, and the error that ended it."""
        self.seconds = time.perf_counter() - self._began
        failure = self.claim.failure if self.claim else None
        if error is not None:
            # The handler's own error stands behind the one that Celery gets. Its text is read only once: it
            # may take long, and the second time say something else.
            self.error, self.outcome = error.__context__ or error, self._outcome_after(error)
            self.why = failure.error if failure else describe(error)
        elif self.answer is not None and self.answer.error is not None:
            self.error, self.outcome = self.answer.error, Outcome.REFUSED
            self.why = describe(self.error)
        elif self.kind is Kind.DELIVERY and self.delivery is None:
            self.outcome = Outcome.SKIPPED

    def _outcome_after(self, error: BaseException) -> Outcome:
        if self.kind is not Kind.DELIVERY:
            return Outcome.ERROR
        return Outcome.FAILED if isinstance(error, ENDS) else Outcome.RETRIED


class Watcher(Protocol):
    """Follows the work of a worker."""

    def begin(self, work: Work) -> object:
        """Note that work begins; return what `end` needs."""

    def end(self, work: Work, begun: Any) -> None:
        """Note that work has ended, in whatever way."""


class Tracer(Protocol):
    """Follows what is done in a group, before the tasks of its messages."""

    def enter(self, work: Work) -> object:
        """Note that a message is handled; `begin` goes on with it. Return what `leave` needs."""

    def enter_group(self, works: Sequence[Work]) -> object:
        """Note that what these messages share is done; return what `leave` needs."""

    def leave(self, entered: Any) -> None:
        """Note the end of either."""


@dataclass
class Watch:
    """Everything that follows the work of one process."""

    watchers: Sequence[Watcher] = ()
    tracer: Tracer | None = None

    def ahead(self, work: Work) -> AbstractContextManager[None]:
        """Follow work that is done before its task; if `over` does not go on with it, nothing is told."""
        return _entered(self.tracer, self.tracer.enter, work) if self.tracer else nullcontext()

    def together(self, works: Sequence[Work]) -> AbstractContextManager[None]:
        """Follow what is done for several messages at once."""
        return _entered(self.tracer, self.tracer.enter_group, works) if self.tracer else nullcontext()

    @contextmanager
    def over(self, work: Work) -> Iterator[Work]:
        """Follow one piece of work; its errors pass, those of a watcher are only logged."""
        begun = [(watcher, _safely(watcher.begin, work)) for watcher in self.watchers]
        try:
            yield work
        except BaseException as error:
            work.end(error)
            raise
        else:
            work.end()
        finally:
            for watcher, state in reversed(begun):
                _safely(watcher.end, work, state)


NOBODY = Watch()


@dataclass
class Deferred:
    """A watcher that is known later, when a worker starts."""

    real: Watcher | None = None

    def begin(self, work: Work) -> object:
        """Pass it on."""
        return self.real.begin(work) if self.real else None

    def end(self, work: Work, begun: Any) -> None:
        """Pass it on."""
        if self.real:
            self.real.end(work, begun)


@contextmanager
def _entered(tracer: Tracer, enter: Callable[..., object], what: object) -> Iterator[None]:
    entered = _safely(enter, what)
    try:
        yield
    finally:
        if entered is not None:
            _safely(tracer.leave, entered)


def _safely(function: Callable[..., object], *args: object) -> object:
    try:
        return function(*args)
    except Exception:
        logger.exception("Telemetry failed; the work goes on")
        return None
