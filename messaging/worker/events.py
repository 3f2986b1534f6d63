"""One task per event handler: it fails, and is tried again, apart from the command and from its sisters."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from celery import Celery

from messaging.bus import Handler
from messaging.delivery import Delivery, Status
from messaging.errors import AttemptsUsedUp, UnknownMessage, WorkerCrashed, describe
from messaging.messages import Event
from messaging.postgres.deliveries import DeliveryJob
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.retry import RetryPolicy, policy_of
from messaging.runtime import Runtime
from messaging.validation import from_dict
from messaging.worker.request import Task
from messaging.worker.sender import after_commit

logger = logging.getLogger(__name__)


class HandlerTask(Task):
    """A task whose retries keep showing the event in Flower."""

    abstract = True

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Copy the shown arguments, which Celery drops when it sends a retry."""
        shown = request or self.request
        signature = super().signature_from_request(request, *args, **kwargs)
        return signature.set(argsrepr=shown.argsrepr, kwargsrepr=shown.kwargsrepr)


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
        dont_autoretry_for=(AttemptsUsedUp, WorkerCrashed, UnknownMessage),
        throws=(UnknownMessage,),
        retry_backoff=policy.backoff_s,
        retry_backoff_max=policy.backoff_max_s,
        retry_jitter=policy.jitter,
        max_retries=policy.max_retries,
        __doc__=handler.__doc__,
    )
    def handler_task(task: Task, *_args: Any, **_kwargs: Any) -> None:
        # What the message carries is only for show: the row is the authority on the event.
        _check_id(task.request.id)
        if (task.request.delivery_info or {}).get("redelivered"):
            _begin_again(runtime, task)
        deliver(app, runtime, handler, policy, task.request.id, task.request.hostname)


def _check_id(delivery_id: object) -> None:
    try:
        UUID(str(delivery_id))
    except ValueError:
        raise UnknownMessage(f"{delivery_id!r} is not the id of a delivery") from None


def deliver(
    app: Celery, runtime: Runtime, handler: Handler, policy: RetryPolicy, delivery_id: str, worker: str
) -> None:
    """Make one delivery: effects, new deliveries and `done` in one transaction.

    Raises:
        AttemptsUsedUp: the handler failed for the last time; the delivery is failed.
        Exception: whatever the handler raised; Celery tries again.
    """
    job = DeliveryJob(delivery_id, worker)
    uow = runtime.unit_of_work(job)
    try:
        with uow:
            if job.delivery is None:
                logger.info("Delivery %s is done already, or another worker is at it", delivery_id)
                return
            if not _is_for(runtime, job.delivery, handler):
                logger.warning("Delivery %s is not for %s", delivery_id, handler.__name__)
                return
            event = _event(runtime, job.delivery)
            logger.info("Handling %r with %s", event, handler.__name__)
            handler(event, uow)
            uow.commit()
    except Exception as error:
        _record_failure(runtime, job, policy, error)
        raise
    after_commit(app, runtime, uow.deliveries)


def _is_for(runtime: Runtime, delivery: Delivery, handler: Handler) -> bool:
    """Tell whether the row names this handler, by its name of today; a message may say anything."""
    project = runtime.project
    return project.handler_task(delivery.handler) == project.handler_task(handler.__name__)


def _event(runtime: Runtime, delivery: Delivery) -> Event:
    kind = runtime.project.bus.event_types[delivery.event_type]
    return from_dict(kind, delivery.payload, ignore_unknown=True)


def _record_failure(runtime: Runtime, job: DeliveryJob, policy: RetryPolicy, error: Exception) -> None:
    """Count the attempt in the row; where that fails too, the relay sends the delivery again."""
    try:
        status = runtime.deliveries.record_failure(
            job.id, job.worker, error, policy, runtime.settings.relay_grace_s
        )
    except DATABASE_ERRORS:
        logger.warning("Could not note that delivery %s failed: %s", job.id, describe(error))
        return
    if status is Status.FAILED:
        raise AttemptsUsedUp(describe(error)) from error


def _begin_again(runtime: Runtime, task: Task) -> None:
    """Count a redelivered message; one that keeps killing its workers is parked as failed."""
    crashes = runtime.deliveries.count_crash(task.request.id)
    if crashes > runtime.settings.max_crashes:
        error = WorkerCrashed(f"Parked: {crashes - 1} workers died while they handled this event")
        runtime.deliveries.give_up(task.request.id, task.request.hostname, error)
        raise error
