"""One task per event handler: it fails and is retried apart from the command and from other handlers."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from celery import Task

from messaging.bus import Handler
from messaging.delivery import Delivery, Failure, Status
from messaging.errors import (
    AttemptsUsedUp,
    MessagingError,
    RetryAfter,
    UnknownMessage,
    WorkerCrashed,
    describe,
)
from messaging.postgres.attempts import Attempt
from messaging.postgres.transaction import DATABASE_ERRORS, Transaction
from messaging.postgres.unit_of_work import PostgresUnitOfWork
from messaging.project.runtime import Runtime
from messaging.retry import RetryPolicy, policy_of
from messaging.telemetry.work import ENDS
from messaging.wire.validation import from_dict
from messaging.worker.delivery_group import DeliveryGroup, as_id, takes_part, work_of
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.gates import attempt_at, wake_next
from messaging.worker.handler_task import HandlerTask

logger = logging.getLogger(__name__)


class AttemptFailed(MessagingError):
    """A handler failed and will be retried. Celery shows and sends this error, so it is short."""


def add_handler_tasks(dispatcher: Dispatcher) -> None:
    """Register a task for every event handler of the project, and for each name that it had before.

    Messages of an earlier release are on their way under those.
    """
    group, project = DeliveryGroup(dispatcher.runtime, dispatcher.watch), dispatcher.project
    for handler in project.bus.event_handlers.values():
        for name in project.handler_names(handler.__name__):
            _add_handler_task(dispatcher, group, handler, f"{project.name}.{name}")


def _add_handler_task(dispatcher: Dispatcher, group: DeliveryGroup, handler: Handler, task_name: str) -> None:
    policy = policy_of(handler, dispatcher.runtime.settings.retry_policy)

    @dispatcher.app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        base=HandlerTask,
        name=task_name,
        typing=False,
        ignore_result=True,
        autoretry_for=(Exception,),
        dont_autoretry_for=ENDS,
        throws=ENDS,
        retry_backoff=policy.backoff_s,
        retry_backoff_max=policy.backoff_max_s,
        retry_jitter=policy.jitter,
        max_retries=policy.max_retries,
        together=group if takes_part(handler) else None,
        __doc__=handler.__doc__,
    )
    def handler_task(task: Task, /, *_args: Any, **_kwargs: Any) -> None:
        # The message's content is only shown: the event is read from the row.
        request, runtime = task.request, dispatcher.runtime
        redelivered = bool((request.delivery_info or {}).get("redelivered"))
        delivery_id = _checked_id(task.name, request.id)
        made = group.take(delivery_id)
        if made is not None:
            with dispatcher.watch.over(made.work):
                made.work.was_done(made.done.seconds)
            dispatcher.after_commit(made.done.outcome)
            return
        attempt = attempt_at(runtime, handler, delivery_id, request.hostname, redelivered=redelivered)
        try:
            with dispatcher.watch.over(work_of(runtime, task.name, request, handler, attempt)):
                deliveries = deliver(runtime, handler, policy, attempt)
            dispatcher.after_commit(deliveries)
        finally:
            wake_next(dispatcher, attempt)


def _checked_id(task: str, delivery_id: object) -> str:
    try:
        return as_id(delivery_id)
    except ValueError:
        error = UnknownMessage(f"{delivery_id!r} is not the id of a delivery")
        logger.warning("%s: %s", task, error)  # nothing else would tell of this message
        raise error from None


def deliver(runtime: Runtime, handler: Handler, policy: RetryPolicy, attempt: Attempt) -> list[Delivery]:
    """Make one delivery: effects, new deliveries and `done` in one transaction; return new deliveries.

    Raises:
        AttemptFailed: the handler failed; Celery retries it.
        AttemptsUsedUp: it failed for the last time; the delivery is failed.
        WorkerCrashed: too many of its workers died; the delivery is failed.
    """
    bus, uow = runtime.project.bus, runtime.unit_of_work(attempt)
    with uow:
        delivery = _claimed(runtime, attempt, uow.transaction, handler)
        if delivery is None:
            return []
        if attempt.is_doubtful and not _look_back(runtime, uow.transaction, attempt, policy):
            return []
        uow.transaction.savepoint()
        try:
            event = from_dict(bus.event_types[delivery.event_type], delivery.payload, ignore_unknown=True)
            attempt.delivery = replace(delivery, event=event)
            _, deliveries = bus.run(handler, event, uow)
        except RetryAfter as told:
            logger.info("Delivery %s waits: %s", attempt.id, told)
            try:
                attempt.postpone(uow.transaction, told.wait_s)
            except Exception as lost:  # noqa: BLE001  left open, the attempt would pass for a worker's death
                _count_failure(runtime, uow, attempt, policy, lost)
            return []
        except BaseException as error:
            _count_failure(runtime, uow, attempt, policy, error)
            raise  # errors that end the process
    return deliveries


def _claimed(
    runtime: Runtime, attempt: Attempt, transaction: Transaction, handler: Handler
) -> Delivery | None:
    """Return the delivery if it is pending, not locked, and for this handler."""
    delivery = attempt.claim(transaction)
    if delivery is None:
        if attempt.redelivered:
            attempt.note_seen(transaction)
        return None
    # By its current name; the message may name any task.
    task_of = runtime.project.handler_task
    if task_of(delivery.handler) != task_of(handler.__name__):
        logger.warning("Delivery %s is not for %s", attempt.id, handler.__name__)
        attempt.delivery = None
        return None
    return delivery


def _look_back(runtime: Runtime, transaction: Transaction, attempt: Attempt, policy: RetryPolicy) -> bool:
    """Count earlier attempts that are missing from the row, and record this one; False if it may not begin.

    Raises:
        AttemptsUsedUp: there were too many, and the delivery is failed.
        WorkerCrashed: it killed too many workers, and the delivery is failed.
    """
    status, deaths = attempt.count_open(transaction, policy.max_retries + 1)
    if status is Status.FAILED:
        transaction.commit()
        raise AttemptsUsedUp(f"Delivery {attempt.id} has used up its attempts")
    if deaths >= runtime.settings.max_crashes:
        error = WorkerCrashed(f"Parked: {deaths} workers died while they handled this event")
        attempt.park(transaction, Failure.of(attempt.worker, error), deaths)
        raise error
    return attempt.begin(transaction)


def _count_failure(
    runtime: Runtime, uow: PostgresUnitOfWork, attempt: Attempt, policy: RetryPolicy, error: BaseException
) -> None:
    """Count a failed attempt, and raise a one-line error for Celery.

    Returns if the caller must raise the error itself, since it ends the process.
    """
    failure, status = Failure.of(attempt.worker, error), None
    attempt.failure = failure
    try:
        status = attempt.fail(uow.transaction, failure, policy, runtime.settings.relay_grace_s, error)
    except Exception as lost:  # noqa: BLE001  the attempt counts, whatever the error
        logger.warning("Delivery %s lost its transaction: %s", attempt.id, describe(lost))
        uow.rollback()
        _note_failure(runtime, attempt, failure)
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return
    raise (AttemptsUsedUp if status is Status.FAILED else AttemptFailed)(failure.error) from None


def _note_failure(runtime: Runtime, attempt: Attempt, failure: Failure) -> None:
    """Record a failure beside the row, for the next claim to count; retry while a server restarts."""
    give_up_at = time.monotonic() + runtime.settings.task_time_limit_s / 6
    while not _noted(attempt, failure) and time.monotonic() < give_up_at:
        time.sleep(0.2)


def _noted(attempt: Attempt, failure: Failure) -> bool:
    try:
        attempt.note_failed(failure)
    except DATABASE_ERRORS as error:
        logger.warning("Could not record that delivery %s failed: %s", attempt.id, describe(error))
        return False
    return True
