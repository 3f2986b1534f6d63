"""One task per event handler: it fails, and is tried again, apart from the command and from its sisters."""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

from celery import Celery, Task

from messaging.bus import Handler
from messaging.delivery import Delivery, Failure, Status
from messaging.errors import AttemptsUsedUp, MessagingError, UnknownMessage, WorkerCrashed, describe
from messaging.postgres.deliveries import DeliveryJob
from messaging.postgres.transaction import DATABASE_ERRORS, Transaction
from messaging.postgres.unit_of_work import PostgresUnitOfWork
from messaging.retry import RetryPolicy, policy_of
from messaging.runtime import Runtime
from messaging.validation import from_dict
from messaging.worker.handler_task import HandlerTask
from messaging.worker.sender import after_commit

logger = logging.getLogger(__name__)

#: The row says so too, with the traceback.
ENDS = (AttemptsUsedUp, WorkerCrashed, UnknownMessage)


class AttemptFailed(MessagingError):
    """A handler failed and will be tried again. Celery shows and sends this, so it is short."""


def add_handler_tasks(app: Celery, runtime: Runtime) -> None:
    """Register a task for every event handler of the project."""
    handlers = {
        handler.__name__: handler for handlers in runtime.project.bus.events.values() for handler in handlers
    }
    for handler in handlers.values():
        _add_handler_task(app, runtime, handler)


def _add_handler_task(app: Celery, runtime: Runtime, handler: Handler) -> None:
    policy = policy_of(handler, runtime.settings.retry_policy)

    @app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        base=HandlerTask,
        name=runtime.project.handler_task(handler.__name__),
        typing=False,
        ignore_result=True,
        autoretry_for=(Exception,),
        dont_autoretry_for=ENDS,
        throws=ENDS,
        retry_backoff=policy.backoff_s,
        retry_backoff_max=policy.backoff_max_s,
        retry_jitter=policy.jitter,
        max_retries=policy.max_retries,
        __doc__=handler.__doc__,
    )
    def handler_task(task: Task, *_args: Any, **_kwargs: Any) -> None:
        # What the message carries is only for show: the row is the authority on the event.
        request = task.request
        redelivered = bool((request.delivery_info or {}).get("redelivered"))
        deliver(
            app, runtime, handler, policy, DeliveryJob(_checked_id(request.id), request.hostname, redelivered)
        )


def _checked_id(delivery_id: object) -> str:
    try:
        return str(UUID(str(delivery_id)))
    except ValueError:
        raise UnknownMessage(f"{delivery_id!r} is not the id of a delivery") from None


def deliver(app: Celery, runtime: Runtime, handler: Handler, policy: RetryPolicy, job: DeliveryJob) -> None:
    """Make one delivery: effects, new deliveries and `done` in one transaction.

    Raises:
        AttemptFailed: the handler failed; Celery tries again.
        AttemptsUsedUp: it failed for the last time; the delivery is failed.
        WorkerCrashed: its workers died; the delivery is failed.
    """
    uow = runtime.unit_of_work(job)
    with uow:
        delivery = _claimed(runtime, job, handler)
        if delivery is None:
            return
        if job.is_doubtful:
            _look_back(runtime, uow.transaction, job, policy)
        uow.transaction.savepoint()
        try:
            _run(runtime, handler, delivery, uow)
        except BaseException as error:
            _count_failure(runtime, uow, job, policy, error)
            raise  # what ends the process
    after_commit(app, runtime, uow.deliveries)


def _claimed(runtime: Runtime, job: DeliveryJob, handler: Handler) -> Delivery | None:
    """Return the delivery if it is ours to make: pending, held by nobody else, and for this handler."""
    if job.delivery is None:
        logger.info("Delivery %s is done already, or another worker is at it", job.id)
        if job.redelivered:
            runtime.deliveries.open_attempts.see(job.key, job.worker)
        return None
    # By its name of today; a message may say anything.
    task_of = runtime.project.handler_task
    if task_of(job.delivery.handler) != task_of(handler.__name__):
        logger.warning("Delivery %s is not for %s", job.id, handler.__name__)
        return None
    return job.delivery


def _look_back(runtime: Runtime, transaction: Transaction, job: DeliveryJob, policy: RetryPolicy) -> None:
    """Count earlier attempts that the row does not know, and leave a mark of this one.

    Raises:
        AttemptsUsedUp: they were too many, and the delivery is failed.
        WorkerCrashed: too many workers died of it, and the delivery is failed.
    """
    status, deaths = job.count_open_attempts(transaction, policy.max_retries + 1)
    if status is Status.FAILED:
        transaction.commit()
        raise AttemptsUsedUp(f"Delivery {job.id} failed before, more often than it may")
    if deaths >= runtime.settings.max_crashes:
        error = WorkerCrashed(f"Parked: {deaths} workers died while they handled this event")
        job.park(transaction, Failure.of(job.worker, error), deaths)
        raise error
    runtime.deliveries.open_attempts.begin(job.key, job.worker)


def _run(runtime: Runtime, handler: Handler, delivery: Delivery, uow: PostgresUnitOfWork) -> None:
    kind = runtime.project.bus.event_types[delivery.event_type]
    event = from_dict(kind, delivery.payload, ignore_unknown=True)
    logger.info("Handling %r with %s", event, handler.__name__)
    handler(event, uow)
    uow.commit()


def _count_failure(
    runtime: Runtime, uow: PostgresUnitOfWork, job: DeliveryJob, policy: RetryPolicy, error: BaseException
) -> None:
    """Count a failed attempt, and raise what Celery is to know of it: no more than a line.

    Returns where the error itself is to be raised, since it ends the process.
    """
    failure, status = Failure.of(job.worker, error), None
    logger.warning("Delivery %s failed: %s\n%s", job.id, failure.error, failure.traceback)
    try:
        status = job.fail(uow.transaction, failure, policy, runtime.settings.relay_grace_s)
    except Exception as lost:  # noqa: BLE001  whatever it is, the attempt counts
        logger.warning("Delivery %s lost its transaction: %s", job.id, describe(lost))
        uow.rollback()
        _note_failure(runtime, job, failure)
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return
    raise (AttemptsUsedUp if status is Status.FAILED else AttemptFailed)(failure.error) from None


def _note_failure(runtime: Runtime, job: DeliveryJob, failure: Failure) -> None:
    """Note a failure beside the row, for the next claim to count; try for a while, as a server restarts."""
    give_up_at = time.monotonic() + runtime.settings.task_time_limit_s / 6
    while not _noted(runtime, job, failure) and time.monotonic() < give_up_at:
        time.sleep(0.2)


def _noted(runtime: Runtime, job: DeliveryJob, failure: Failure) -> bool:
    try:
        runtime.deliveries.open_attempts.fail(job.key, failure)
    except DATABASE_ERRORS as error:
        logger.warning("Could not note that delivery %s failed: %s", job.id, describe(error))
        return False
    return True
