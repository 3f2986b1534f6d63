"""What each simulated process does, with the product's own objects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

from celery.app.trace import trace_task_ret
from kombu.utils.imports import symbol_by_name
from redis.exceptions import ConnectionError as RedisConnectionError

from allocation.client import AllocationClient
from allocation.domain.errors import AllocationError
from messaging.client import NotAnswered
from messaging.dead_letters import PARKED
from messaging.errors import MessagingError, Unavailable
from messaging.messages import IDEMPOTENCY_KEY, task_name, to_dict
from messaging.operator import reruns
from messaging.operator.pausing import Pausing
from messaging.operator.replaying import replay
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Scope
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from reliable_celery.requests import error_of
from tests.simulation.broker import FAULTS, Broker, Message
from tests.simulation.invariants import BULK
from tests.simulation.mistakes import notice
from tests.simulation.plan import FAILING, Order
from tests.simulation.scheduler import Scheduler, step

QUEUES = ("allocation.commands", "allocation.events")

#: How often a sender sends again what was not answered.
TRIES = 4

#: Seconds that a sender waits for an answer.
PATIENCE_S = 20.0

#: What may go wrong in a housekeeping task without being wrong.
TROUBLE = (*DATABASE_ERRORS, OSError, RedisConnectionError)


#: In turns, since most of them find nothing to do.
JOBS = (housekeeping.relay, housekeeping.announce, housekeeping.rerun, housekeeping.prune)


class Pool:
    """Runs a task in this process, as a child of a worker does, and reports to the request."""

    def __init__(self, app: MessagingApp) -> None:
        self.app = app

    def apply_async(
        self,
        _target: Any,
        args: tuple[Any, ...],
        accept_callback: Callable[[int, float], object],
        callback: Callable[[Any], object],
        **_options: Any,
    ) -> None:
        """Run it, and hand over what came of it."""
        accept_callback(0, 0.0)
        failed, value, runtime = trace_task_ret(*args, app=self.app)
        if failed:
            notice(error_of(value))
        callback((failed, value, runtime))


class Worker:
    """A worker of commands and events."""

    def __init__(self, app: MessagingApp, broker: Broker, scheduler: Scheduler, name: str) -> None:
        self.app, self.broker, self.scheduler, self.name = app, broker, scheduler, name
        self.pool = Pool(app)
        self.handling: list[Message] = []
        self.before: Callable[[list[Message]], object] = lambda _messages: None
        self.after: Callable[[], object] = lambda: None

    def run(self) -> None:
        """Take one message after the other, for ever."""
        while True:
            self.scheduler.wait_until(lambda: bool(self.broker.due(QUEUES)), "waits for a message")
            due = self.broker.due(QUEUES)
            if due:
                self.handle(self.take(due))

    def take(self, due: list[Message]) -> Message:
        """Take a message, mostly the oldest."""
        message = self.scheduler.choices.pick(due[:4], 0.7)
        again = " again" if message.redelivered else ""
        return step(
            f"takes {message.task} {message.id[-12:]}{again}",
            lambda: self.broker.take(message, self.name) if message in self.broker.waiting else message,
            changes=False,
        )

    def take_arrived(self, prefetch: int) -> list[Message]:
        """Take as many messages as there are and as it may hold, mostly."""
        taken: list[Message] = []
        while self.may_take(prefetch):
            message = self.take(self.broker.due(QUEUES))
            if message.holder == self.name:
                taken.append(message)
            if not self.scheduler.choices.pick((True, False), 0.8):
                break
        if taken and self.scheduler.choices.pick((True, False), 0.6):  # Redis' transport says how many follow
            for number, message in enumerate(taken, 1):
                message.channel = SimpleNamespace(arrived=len(taken) - number)
        return taken

    def may_take(self, prefetch: int) -> bool:
        """Tell whether a message waits and it may hold another one."""
        held = sum(1 for one in self.broker.held if one.holder == self.name)
        return held < prefetch and bool(self.broker.due(QUEUES))

    def handle(self, message: Message) -> None:
        """Run a message's task as a worker does."""
        if message.holder != self.name:  # somebody else was quicker
            return
        self.begin([message])
        self.request_of(message).execute_using_pool(self.pool)
        self.end()

    def begin(self, messages: list[Message]) -> None:
        """Note what is handled from here on."""
        self.scheduler.require_alive()
        self.handling = messages
        self.before(messages)

    def end(self) -> None:
        """Note that it is handled."""
        self.scheduler.require_alive()
        self.after()
        self.handling = []

    def request_of(self, message: Message) -> Any:
        """Return the request that a worker makes of a message."""
        task = self.app.tasks[message.headers["task"]]
        return symbol_by_name(task.Request)(
            message,
            on_ack=lambda *_: self._settle(message),
            on_reject=lambda _logger, _errors, requeue=False: self._reject(message, requeue),
            app=self.app,
            hostname=self.name,
            task=task,
            connection_errors=(OSError,),
        )

    def _settle(self, message: Message) -> None:
        step(
            f"acknowledges {message.task} {message.id[-12:]}",
            lambda: self.broker.settle(message),
            *FAULTS[:2],
        )

    def _reject(self, message: Message, requeue: bool) -> None:
        settle = self.broker.give_back if requeue else self.broker.settle
        step(
            f"{'gives back' if requeue else 'rejects'} {message.id[-12:]}",
            lambda: settle(message),
            *FAULTS[:2],
        )


class Housekeeper:
    """Runs what beat asks for, and what workers do."""

    def __init__(
        self,
        app: MessagingApp,
        broker: Broker,
        scheduler: Scheduler,
        finds: Callable[[str], bool],
        hurries: int = 0,
    ) -> None:
        self.app, self.broker, self.scheduler = app, broker, scheduler
        self.finds = finds  # whether a job can find anything to do
        self.hurries = hurries  # how often beat asks again at once

    def run(self) -> None:
        """Run all jobs every few seconds, and those that are asked for in between, for ever."""
        for number in count():
            beat_at = self.scheduler.clock.at + (0.02 if number < self.hurries else 5)
            while (left_s := beat_at - self.scheduler.clock.at) > 0:
                if self.scheduler.wait_until(lambda: bool(self.broker.asked), "waits for requests", left_s):
                    name = self.broker.asked.pop(0)
                    self.do(*(job for job in JOBS if job.__name__ == name))
            jobs = JOBS[2:] if number % 4 == 3 else JOBS[:2]
            self.do(*(job for job in jobs if self.finds(job.__name__)))

    def do(self, *jobs: Any) -> None:
        """Run jobs one after the other."""
        for job in jobs:
            step(f"begins {job.__name__}", lambda: None, changes=False)
            try:
                job(self.app.dispatcher)
            except TROUBLE as error:
                notice(error)
                self.scheduler.tell(f"{job.__name__} ended with {type(error).__name__}")


class Operator:
    """Somebody with the operator's tool."""

    def __init__(
        self,
        app: MessagingApp,
        scheduler: Scheduler,
        on_edit: Callable[[str], object],
        name: str,
        hurries: int = 0,
        favourite: str = "rerun",
    ) -> None:
        self.app, self.scheduler, self.on_edit, self.name = app, scheduler, on_edit, name
        self.hurries = hurries  # how often it does the next thing at once
        self.favourite = getattr(self, favourite)

    def run(self) -> None:
        """Look after what failed every few seconds, for ever."""
        many, one = (self.begin, self.begin, self.stop, self.stop), (self.discard, self.edit, self.replay)
        acts = (self.favourite, self.rerun, *many, *one, self.pause, self.resume)
        while True:
            self.scheduler.sleep(0.02 if self.hurries > 0 else 5)
            self.hurries -= 1
            act = self.resume if self.scheduler.calm else self.scheduler.choices.pick(acts, 0.5)
            try:
                act()
            except (MessagingError, *TROUBLE) as error:
                notice(error)
                self.scheduler.tell(f"{act.__name__} ended with {type(error).__name__}: {error}")

    def rerun(self) -> None:
        """Put back all that failed."""
        for turn in self.app.dispatcher.rerun(DeliveryFilter(), self.name, 10):
            self.scheduler.tell(f"re-ran {len(turn.deliveries)}")

    def begin(self) -> None:
        """Begin a re-run of all that failed, which the relays go on with."""
        canary = self.scheduler.choices.pick((0, 1, 2), 0.3)
        rate = self.scheduler.choices.pick((None, 0.5, 2.0), 0.6)
        name = f"{self.name}{BULK} {self.scheduler.steps}"
        reruns.begin(self.app.dispatcher, DeliveryFilter(), name, canary=canary, canary_s=12.0, rate=rate)

    def stop(self) -> None:
        """Stop a re-run that is under way."""
        for one in self.app.runtime.bulk_reruns.under_way()[:1]:
            self.app.runtime.bulk_reruns.stop(one.id, self.name)

    def discard(self) -> None:
        """Discard one that failed."""
        self.app.runtime.outbox.discard(DeliveryFilter(), self.name, 1, "not needed")

    def edit(self) -> None:
        """Replace one that failed by a copy."""
        failed = self._failed()
        for delivery_id, kind, cause in failed[:1]:
            event = self.app.runtime.project.bus.event_types[kind]
            self.on_edit(cause)
            copy = self.app.runtime.outbox.edit(delivery_id, event, {}, self.name)
            self.app.dispatcher.send([copy])

    def replay(self) -> None:
        """Send a dead letter again."""
        letters = self.app.runtime.dead_letters.find(reason=PARKED)
        for letter in letters[:1]:
            replay(self.app.dispatcher, self.app.runtime.dead_letters, letter.id, self.name)

    def pause(self) -> None:
        """Pause a handler of events."""
        handler = self.scheduler.choices.pick(FAILING, 0.5)
        Pausing(self.app.dispatcher).pause(Scope.HANDLER, handler, self.name, "it fails")

    def resume(self) -> None:
        """Resume all that is paused."""
        for pause in self.app.runtime.pauses.active():
            Pausing(self.app.dispatcher).resume(pause.scope, pause.name, self.name)

    def change(self) -> None:
        """Pause a handler, or resume all."""
        self.scheduler.choices.pick((self.pause, self.resume), 0.5)()

    def _failed(self) -> list[tuple[str, str, str]]:
        with self.app.runtime.engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT id::text, event_type, causation_id FROM deliveries"
                " WHERE status = 'failed' ORDER BY id"
            )
            return [(row[0], row[1], row[2]) for row in rows]


class Sender:
    """Another app, which sends its wishes one by one, or all at once, and repeats what was not answered."""

    def __init__(
        self,
        client: AllocationClient,
        scheduler: Scheduler,
        orders: list[Order],
        at_once: bool,
        on_result: Callable[[str, Any], object],
    ) -> None:
        self.client, self.scheduler, self.orders, self.at_once = client, scheduler, orders, at_once
        self.on_result = on_result  # called with the key and the result of a command

    def run(self) -> None:
        """Send everything."""
        sent = {order.key: self.begin(order) for order in self.orders} if self.at_once else {}
        for order in self.orders:
            for attempt in range(TRIES):
                first = sent.get(order.key) if attempt == 0 else None
                told = self.send(order) if first is None else self.answer(first)
                if not order.bulk and not isinstance(told, Exception):
                    self.on_result(order.key, told)
                self.scheduler.tell(f"was told {told!r} for {order.key}"[:160])
                if not isinstance(told, Unavailable | NotAnswered):
                    break

    def begin(self, order: Order) -> Any:
        """Send one wish without waiting; None if it has to be sent again, or in another way."""
        if order.bulk or order.expires_s is not None:
            return None
        step(f"wants {order}", lambda: None, changes=False)
        try:
            return self.client.delay(order.commands[0], key=order.key)
        except (MessagingError, OSError):
            return None

    def answer(self, sent: Any) -> Any:
        """Return what it came to, an error as a value."""
        try:
            return self.client.answer(sent, PATIENCE_S)
        except (MessagingError, AllocationError, OSError) as error:
            return error

    def send(self, order: Order) -> Any:
        """Send one wish and return what it came to, an error as a value."""
        step(f"wants {order}", lambda: None, changes=False)
        try:
            if order.bulk:
                keyed = [(f"{order.key}.{number}", one) for number, one in enumerate(order.commands)]
                outcomes = list(self.client.many(keyed, timeout_s=PATIENCE_S))
                for one in outcomes:
                    if one.error is None:
                        self.on_result(one.key, one.result)
                return [one.error or one.result for one in outcomes]
            if order.expires_s is not None:
                return self.client.answer(self._expiring(order), PATIENCE_S)
            return self.client.call(order.commands[0], key=order.key, timeout_s=PATIENCE_S)
        except (MessagingError, AllocationError, OSError) as error:
            return error

    def _expiring(self, order: Order) -> Any:
        command = order.commands[0]
        return self.client.app.send_task(
            task_name("allocation", type(command)),
            kwargs=to_dict(command),
            queue=QUEUES[0],
            headers={IDEMPOTENCY_KEY: order.key},
            expires=order.expires_s,
            retry=False,
        ).id
