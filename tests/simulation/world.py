"""Everything that one schedule needs, put together around the product's own objects."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import os
import random
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psycopg2
from celery.local import Proxy

import messaging.adapters.mail
import messaging.client.client
import messaging.delivery
import messaging.postgres.inbox
import messaging.worker.announcer
import reliable_celery.groups.prefork
from messaging.delivery import Failure
from messaging.errors import RetryAfter
from messaging.messages import IDEMPOTENCY_KEY, task_name, to_dict
from messaging.operator.pausing import Pausing
from messaging.postgres.attempts import Attempt
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import SEEN_S, Scope
from messaging.wire.validation import from_dict
from messaging.worker.app import MessagingApp
from messaging.worker.events import _note_failure
from tests.simulation import broker as brokers
from tests.simulation import prefork, slots
from tests.simulation import results as stores
from tests.simulation.broker import Broker, Message
from tests.simulation.choices import Choices
from tests.simulation.clock import EPOCH, Clock
from tests.simulation.database import Database
from tests.simulation.gates import Gatekeeper
from tests.simulation.invariants import BULK, Books
from tests.simulation.plan import POISON, Order, Plan, random_plan
from tests.simulation.prefork import PreforkWorker
from tests.simulation.processes import QUEUES, Housekeeper, Operator, Sender, Worker
from tests.simulation.results import Results
from tests.simulation.scenes import scene
from tests.simulation.scheduler import Broken, Crash, Fault, Process, Scheduler, current, step
from tests.simulation.solo import SoloWorker

#: Steps after which a schedule must be at its end, and how many of them are left for the calm end.
STEPS = 6000

#: How many schedules are scenes.
SCENES = 0.8

#: Seconds until the messages of a dead worker, or the locks of its session, are free.
LEASE_S, SESSION_S = 10.0, 3.0

#: Seconds that a handler may hang before it fails: its session has ended by then, or even its run is over.
HANGS_S = (SESSION_S - 1, SESSION_S + 1, 12.0, 30.0)


#: Seconds after which a scene comes to its end, with whatever is left.
LONGEST_SCENE_S = 60.0


class HandlerFailed(RuntimeError):
    """What a handler raises where the schedule says so."""


@dataclass
class Outcome:
    """What one schedule came to."""

    steps: int
    story: list[tuple[float, str, str]]
    taken: list[int]
    failure: BaseException | None = None


class World:
    """A database and the apps of some processes; plays one schedule after the other."""

    def __init__(self, url: str) -> None:
        logging.disable(logging.CRITICAL)
        self.url = url
        self.clock = Clock(lambda seconds: _sleep(seconds))
        self.database = Database(url, self.clock)
        self.apps = {
            name: slots.app_on(url, self.database, self.clock)
            for name in ("worker 1", "worker 2", "worker 3", "main", "relay 1", "relay 2", "anna", "bert")
        }
        prefork.current_apps.update(self.apps)
        self.engines = [
            engine
            for app in self.apps.values()
            for engine in (app.runtime.engine, app.runtime.dead_letters.engine)
        ]
        self.clients = {name: slots.client_on(self.clock) for name in ("shop", "office", "store")}
        self.bus = slots.simulated_bus()
        self.played = 0
        gc.collect()
        gc.freeze()  # a collection looks only at what schedules have made
        gc.disable()  # and never in the middle of one

    def close(self) -> None:
        """Close all connections."""
        for engine in self.engines:
            engine.dispose()
        for app in self.apps.values():
            app.close()
        for client in self.clients.values():
            client.app.close()
        self.database.close()
        gc.enable()
        gc.unfreeze()
        logging.disable(logging.NOTSET)

    def _connect_again(self) -> None:
        """Have each engine begin with one open connection, whatever the schedule before did to it.

        A pool asks a connection that it kept whether it is alive, which is a step, and a new one it does not.
        All close theirs before any gets another one: a session that was freed is still in its pool.
        """
        without = [engine for engine in self.engines if not self.database.has_one(engine)]
        for engine in without:
            engine.dispose()
        for engine in without:
            engine.connect().close()

    def plan_of(self, seed: int) -> Plan:
        """Return the plan that a seed makes."""
        return scene(seed) if Random(f"kind {seed}").random() < SCENES else random_plan(seed)

    def play(self, plan: Plan, choices: Choices, seed: int) -> Outcome:
        """Play one schedule."""
        self.played += 1
        if self.played % 100 == 0:
            gc.collect()
        self.database.empty()
        self._connect_again()
        for app in self.apps.values():
            app.runtime.pauses.forget()
            slots.declare(app, plan.gated, plan.options)
        self.clock.at = EPOCH
        self.database.set_clock(EPOCH)
        scheduler = Scheduler(choices, plan.odds, self.clock)
        run = Run(self, plan, scheduler)
        scheduler.check = run.check
        with _replaced(self.clock, scheduler, run, seed):
            failure: BaseException | None = None
            try:
                run.start()
                scheduler.run(STEPS)
                if plan.is_scene:
                    run.settle()
                run.end()
            except Exception as error:  # noqa: BLE001  told as what the schedule came to
                failure = error
            finally:
                run.stop()
        if failure is not None:
            self.database.end_left()
        return Outcome(scheduler.steps, scheduler.story, list(choices.taken), failure)


@dataclass
class Run:
    """One schedule under way."""

    world: World
    plan: Plan
    scheduler: Scheduler
    failing: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # by process: (delivery, token)
    lost: Counter[tuple[str, int]] = field(default_factory=Counter)  # workers, by delivery and run
    killed: Counter[tuple[str, int]] = field(default_factory=Counter)  # those, by a deadly handler
    workers: dict[str, Worker] = field(default_factory=dict)  # by process
    begun: dict[str, int] = field(default_factory=dict)  # by message
    zombies: list[Any] = field(default_factory=list)
    late: list[tuple[Attempt, Failure]] = field(default_factory=list)  # attempts that are still under way
    at_db: float = 0.0
    taken_at: dict[str, float] = field(default_factory=dict)  # the latest messages, by process
    broken_at: dict[str, float] = field(default_factory=dict)  # something of it, at the latest, by process
    gatekeeper: Gatekeeper | None = None

    def __post_init__(self) -> None:
        """Make what is simulated."""
        world = self.world
        self.broker, self.results, self.mails = Broker(world.clock), Results(), []
        self.mails: list[str]
        self.books = Books(world.database, self.broker, self.results, world.bus, self.mails)
        self.books.lost = self.may_be_lost
        if (options := self.plan.options) is not None:
            self.gatekeeper = Gatekeeper(world.database, self.plan.gated, options)
            self.books.retries_for_ever = self.plan.gated if options.breaker else ""
        scheduler = self.scheduler
        scheduler.has_answer = world.database.has_answer
        scheduler.abandon = self.abandon
        self.broker.on_publish = self.published

    def start(self) -> None:
        """Start the processes."""
        self.prepare()
        for number in range(1, self.plan.workers + 1):
            self.start_worker(f"worker {number}")
        for number in range(1, self.plan.relays + 1):
            self.start_housekeeper(f"relay {number}")
        for name in ("anna", "bert")[: self.plan.operators]:
            self.start_operator(name)
        for name, orders in self.plan.senders.items():
            client, at_once = self.world.clients[name], self.plan.at_once
            sender = Sender(client, self.scheduler, orders, at_once, self.books.is_told)
            self.scheduler.start(name, sender.run)
        if self.late:
            self.scheduler.start("late worker", self.end_late, background=True)
        if self.plan.duplicates or self.plan.forgets:
            self.scheduler.start("broker", self.trouble, background=True)

    def prepare(self) -> None:
        """Carry out what comes before, and put what waits into the broker."""
        worker = Worker(self.fresh_app("worker 1"), self.broker, self.scheduler, "before")
        for order in self.plan.prepared:
            self.publish(order)
        while found := [one for one in self.broker.waiting if self.is_before(one)]:
            worker.handle(self.broker.take(found[0], worker.name))
        self.broker.waiting *= max(1, self.plan.copies)
        self.broker.waiting = [copy.copy(message) for message in self.broker.waiting]
        for order in self.plan.waiting:
            self.publish(order)
        if self.plan.bulk:
            self.world.apps["anna"].runtime.bulk_reruns.start(DeliveryFilter(), f"anna{BULK}")
        if self.plan.paused:
            Pausing(self.world.apps["anna"].dispatcher).pause(
                Scope.HANDLER, self.plan.paused, "anna", "it fails"
            )
        self.books.check()

    def is_before(self, message: Message) -> bool:
        """Tell whether a message is handled before the schedule begins."""
        is_retry = message.due > self.world.clock.at
        if is_retry and self.plan.fails_before:
            return self.plan.fails_before > 1
        return not self.plan.copies or message.queue == QUEUES[0]

    def publish(self, order: Order) -> None:
        """Put a command's message into the broker."""
        client, command = self.world.clients["shop"], order.commands[0]
        name = task_name("allocation", type(command))
        client.app.send_task(
            name,
            kwargs=to_dict(command),
            queue=QUEUES[0],
            headers={IDEMPOTENCY_KEY: order.key},
            task_id=f"{order.key} again" if order.again else order.key,
            expires=order.expires_s,
        )

    def fresh_app(self, name: str) -> MessagingApp:
        """Return a process's app, which remembers nothing of the process before."""
        app = self.world.apps[name]
        app.dispatcher.announcer.nudged_until = 0.0
        app.runtime.pauses.forget()
        app.runtime._built.pop((os.getpid(), "due"), None)  # where the relay's latest search ended
        backend: Any = app.backend
        backend.begin_anew()
        for task in app.tasks.values():
            if (group := getattr(task, "together", None)) is not None:
                vars(group).update({name: {} for name in ("_done", "_made") if name in vars(group)})
        return app

    def worker_of(self, name: str) -> Worker:
        """Make a worker."""
        app = self.fresh_app(name)
        limit = dict(enumerate(self.plan.groups, 1)).get(int(name[-1]), 0)
        if not limit and self.plan.prefork:
            object.__setattr__(app.runtime.settings, "group_max", self.plan.prefork)  # of one schedule
            main, full_name = self.world.apps["main"], f"{name}#{self.scheduler.steps}"
            return PreforkWorker(app, main, self.broker, self.scheduler, full_name, self.plan.prefork)
        object.__setattr__(app.runtime.settings, "group_max", max(1, limit))  # of one schedule
        full_name = f"{name}#{self.scheduler.steps}"
        if limit:
            return SoloWorker(app, self.broker, self.scheduler, full_name, limit)
        return Worker(app, self.broker, self.scheduler, full_name)

    def start_worker(self, name: str) -> None:
        """Start a worker, which is started again when it dies."""
        worker, late_s = self.worker_of(name), 0.0 if self.scheduler.steps else self.plan.late_s
        worker.after = self.handled
        worker.before = self.taken

        def run() -> None:
            if late_s:
                self.scheduler.sleep(late_s)
            worker.run()

        if isinstance(worker, PreforkWorker):
            self.workers[name] = worker
            self.start_main(name, worker, run)
            return
        process = self.scheduler.start(name, run, background=True)
        self.workers[name] = worker

        def died() -> None:
            self.note_lost(worker)
            self.failing.pop(name, None)
            self.scheduler.start(f"lease of {worker.name}", lambda: self.end_lease(worker), background=True)
            self.restart(name, self.start_worker)

        process.on_crash.append(died)

    def start_main(self, name: str, worker: PreforkWorker, run: Any) -> None:
        """Start a worker of two processes; both are started again when the main one dies."""
        process = self.scheduler.start(f"{name} main", run, background=True)
        self.start_child(name, worker)

        def died() -> None:
            worker.is_dead = True
            if not worker.child.dead:
                self.scheduler.kill(worker.child)
            self.scheduler.start(f"lease of {worker.name}", lambda: self.end_lease(worker), background=True)
            self.restart(name, self.start_worker)

        process.on_crash.append(died)

    def start_child(self, name: str, worker: PreforkWorker) -> None:
        """Start the process that runs a worker's tasks, which its main process starts again when it dies."""
        if worker.is_dead:
            return
        self.fresh_app(name)
        worker.child = process = self.scheduler.start(name, worker.run_child, background=True)

        def died() -> None:
            self.note_lost(worker)
            self.failing.pop(name, None)
            worker.lose()
            if not worker.is_dead:
                self.restart(name, lambda again: self.start_child(again, worker))

        process.on_crash.append(died)

    def start_timer(self, seconds: float, do: Any) -> None:
        """Do something later, in the process that runs; it dies with it."""
        process, scheduler = current(), self.scheduler
        if process is None:
            return

        def run() -> None:
            scheduler.sleep(seconds)
            do()

        timer = scheduler.start(f"timer of {process.name}", run, background=True)
        process.on_crash.append(lambda: setattr(timer, "dead", True))

    def end_lease(self, worker: Worker) -> None:
        """Redeliver what a dead worker held."""
        self.scheduler.sleep(LEASE_S)
        step(f"redelivers what {worker.name} held", lambda: self.broker.lost(worker.name))

    def start_housekeeper(self, name: str) -> None:
        """Start a housekeeper, which is started again when it dies."""
        finds, hurries = self.books.finds, self.plan.hurries
        keeper = Housekeeper(self.fresh_app(name), self.broker, self.scheduler, finds, hurries)
        process = self.scheduler.start(name, keeper.run, background=True)
        process.on_crash.append(lambda: self.restart(name, self.start_housekeeper))

    def start_operator(self, name: str) -> None:
        """Start an operator."""
        on_edit, hurries = self.books.edited_causes.add, self.plan.hurries
        app, favourite = self.fresh_app(name), self.plan.favourite
        operator = Operator(app, self.scheduler, on_edit, name, hurries, favourite)
        process = self.scheduler.start(name, operator.run, background=True)
        process.on_crash.append(lambda: self.restart(name, self.start_operator))

    def restart(self, name: str, start: Any) -> None:
        """Begin anew with fresh connections, a while later."""
        runtime, database = self.world.apps[name].runtime, self.world.database
        for engine in (runtime.engine, runtime.dead_letters.engine):
            if idle := database.connection_of(engine):
                database.release(idle)
            engine.dispose(close=False)

        def come_back() -> None:
            self.scheduler.sleep(0.5)
            start(name)

        self.scheduler.start(f"{name} again", come_back, background=True)

    def abandon(self, process: Process, slowly: bool) -> None:
        """End the sessions of a dead process, now or later."""
        connections = [
            one
            for one in process.connections
            if one.owner is process and not one.abandoned and not one.closed
        ]
        for connection in connections:
            connection.abandoned = True
        if not slowly:
            for connection in connections:
                self.world.database.release(connection)
            return
        self.zombies += connections

        def end() -> None:
            self.scheduler.sleep(SESSION_S)
            for connection in connections:
                step(f"session of {process.name} ends", lambda one=connection: self.bury(one))

        self.scheduler.start(f"sessions of {process.name}", end, background=True)

    def bury(self, connection: Any) -> None:
        """End the session of a dead process."""
        if connection in self.zombies:
            self.zombies.remove(connection)
            self.world.database.release(connection)

    def trouble(self) -> None:
        """Repeat messages that are held or wait, and forget all, as often as the plan says."""
        doings = [self.repeat] * self.plan.duplicates + [self.forget] * self.plan.forgets
        for do in doings:
            pause = self.scheduler.choices.pick((0.05, 0.5, 2.0), 0.4)
            self.scheduler.sleep(pause)
            self.scheduler.wait_until(
                lambda: bool(self.broker.held or self.broker.waiting) or self.scheduler.calm,
                "waits for messages",
            )
            if self.scheduler.calm:
                return
            do()

    def repeat(self) -> None:
        """Redeliver a message although its worker goes on."""
        found = [*self.broker.held, *self.broker.waiting]
        if not found:
            return
        message = self.scheduler.choices.pick(found[:4], 0.5)
        step(
            f"redelivers {message.task} {message.id[-12:]} although nobody died",
            lambda: self._repeat(message),
        )

    def _repeat(self, message: Message) -> None:
        if message in self.broker.held:
            self.broker.give_back(message)

    def forget(self) -> None:
        """Lose every message, as FLUSHALL does."""
        step("forgets everything", self.broker.forget)

    # What is watched

    def began(self, job: Any, message: Any) -> None:
        """Look at a handler that has begun; poison kills its worker here."""
        process = current()
        if process is None:
            return
        if hasattr(job, "token"):
            self.must_not_be_paused(process, job.delivery.handler)
            self.must_be_let_in(process, job.delivery.handler)
            self.take_time(job.delivery.handler)
        if getattr(message, "sku", "") == POISON:
            self.begun[job.id] = self.begun.get(job.id, 0) + 1
            if self.begun[job.id] > 3 + self.plan.odds.faults + self.plan.duplicates:
                self.scheduler.break_off(
                    f"{message!r} was begun {self.begun[job.id]} times, and kills its worker each time"
                )
            self.scheduler.tell("is killed by the message")
            self.scheduler.die(process)

    def ends(self, job: Any, handler: str, shares: bool) -> None:
        """Have an event's handler fail where the schedule says so."""
        process = current()
        if process is None:
            self.ends_before(job, handler)
            return
        if not hasattr(job, "token"):
            self.refuse()
            return
        if handler == self.plan.deadly and self.world.clock.at < EPOCH + self.plan.deadly_for_s:
            self.kill(job, handler, process)
        self.postpone(handler)
        is_out = handler == self.plan.failing and self.world.clock.at < EPOCH + self.plan.failing_for_s
        if is_out or self.scheduler.fault((Fault.ERROR_BEFORE,)) is not Fault.NONE:
            if not shares:  # else its task makes it again, alone, and only that counts
                self.failed(job)
            if self.gatekeeper is not None and self.gatekeeper.is_trial(process):
                self.books.trials.add(job.token)
            self.hang(process)
            self.scheduler.tell("handler fails")
            raise HandlerFailed("the schedule says so")

    def left(self, _job: Any) -> None:
        """Note that a handler has ended."""
        process = current()
        if process is not None and self.gatekeeper is not None:
            self.gatekeeper.ends(process)

    def postpone(self, handler: str) -> None:
        """Have a handler ask to be called again later, where the schedule says so."""
        if handler != self.plan.gated or not self.plan.postpones or self.scheduler.calm:
            return
        if self.scheduler.choices.pick((False, True), 1 - self.plan.postpones):
            self.scheduler.tell("handler postpones itself")
            raise RetryAfter(2.0)

    def ends_before(self, job: Any, handler: str) -> None:
        """Have a handler fail before the schedule begins; another attempt has lost its session."""
        if not self.plan.fails_before or handler != self.plan.failing:
            return
        error = HandlerFailed("the schedule says so")
        if job.delivery.attempts + 1 == self.plan.fails_before:
            engine = self.world.apps["worker 2"].runtime.engine
            late = Attempt(engine, job.id, "late", delivery=job.delivery)
            self.books.runs[late.token] = job.delivery.reruns
            self.lost[job.id, job.delivery.reruns] += 1
            self.late.append((late, Failure.of("late", error)))
            if not self.plan.ends_late:
                late.note_failed(self.late.pop()[1])
        raise error

    def end_late(self) -> None:
        """Note the failures of attempts whose runs were over before the schedule began."""
        self.scheduler.sleep(self.scheduler.choices.pick((0.02, 0.1, 1.0, 5.0), 0.3))
        runtime = self.world.apps["main"].runtime
        for late, failure in self.late:
            _note_failure(runtime, dataclasses.replace(late, engine=runtime.engine), failure)
            self.must_be_counted(late.id, late.token)

    def refuse(self) -> None:
        """Have a command's handler fail in its end, where the schedule says so."""
        refuses = self.plan.refusals and self.scheduler.choices.pick((False, True), 1 - self.plan.refusals)
        if refuses and not self.scheduler.calm:
            self.scheduler.tell("handler refuses")
            raise HandlerFailed("the schedule says so")

    def kill(self, job: Any, handler: str, process: Process) -> None:
        """Have an event kill its worker, unless it has killed too many in one run."""
        run = job.id, job.delivery.reruns
        self.killed[run] += 1
        if self.killed[run] > 6 + self.plan.odds.faults + self.plan.duplicates:
            self.scheduler.break_off(f"{handler} has killed {self.killed[run]} workers in one run")
        self.scheduler.tell("is killed by the event")
        self.scheduler.die(process, slowly=self.plan.slowly)

    def hang(self, process: Process) -> None:
        """Have the handler fail only after a while, where the schedule says so; its session ends before."""
        if self.scheduler.calm or not self.plan.hangs:
            return
        seconds = self.scheduler.choices.pick((0.0, *HANGS_S), 1 - self.plan.hangs)
        if not seconds:
            return
        connections = [one for one in process.connections if not one.closed and one.in_use()]
        self.scheduler.tell(f"hangs for {seconds} s")

        def end() -> None:
            self.scheduler.sleep(SESSION_S)
            for connection in connections:
                if hanging and not process.dead and not connection.closed:
                    process.faults += 1
                    step(f"the idle session of {process.name} ends", lambda one=connection: one.lose())

        hanging = [process]
        self.scheduler.start(f"idle sessions of {process.name}", end, background=True)
        self.scheduler.sleep(seconds)
        hanging.clear()

    def failed(self, job: Any) -> None:
        """Remember an attempt that failed: it must be counted."""
        process = current()
        if process is not None and hasattr(job, "token"):
            self.failing.setdefault(process.name, []).append((job.id, job.token))
            self.books.runs[job.token] = job.delivery.reruns

    def taken(self, messages: list[Message]) -> None:
        """Remember when messages were taken, and again; a bulk message's commands are named after it."""
        if process := current():
            if process.faults:
                self.broken_at[process.name] = self.world.clock.at
            process.faults, self.taken_at[process.name] = 0, self.world.clock.at
        for message in messages:
            for name in (message.id, *(f"{message.id}.{position}" for position in range(4))):
                self.books.again[name] += message.redelivered

    def handled(self) -> None:
        """Check that the attempts that failed are counted, once their messages are done with."""
        process = current()
        if process is not None and process.faults:
            self.note_lost(self.workers[process.name])
        for delivery_id, token in self.failing.pop(process.name if process else "", []):
            self.must_be_counted(delivery_id, token)

    def note_lost(self, worker: Worker) -> None:
        """Remember a worker that may not have counted its attempts."""
        for message in worker.handling:
            if row := self.books.deliveries.get(message.id):
                self.lost[row["id"], row["run"]] += 1

    def may_be_lost(self, delivery_id: str, run: int) -> int:
        """Return how many workers were lost with a delivery, or are busy with it."""
        busy = (message for worker in self.workers.values() for message in worker.handling)
        return self.lost[delivery_id, run] + sum(1 for one in busy if one.id == delivery_id)

    def must_be_counted(self, delivery_id: str, token: str) -> None:
        """Raise Broken where an attempt at a pending delivery left no trace in its run."""
        rows = self.world.database.ask(
            "SELECT EXISTS (SELECT FROM attempts WHERE token = %(token)s)"
            " OR EXISTS (SELECT FROM open_attempts WHERE token = %(token)s AND state = 'failed')"
            " OR NOT EXISTS (SELECT FROM deliveries"
            "                WHERE id = %(id)s AND finished_at IS NULL AND reruns = %(run)s)",
            {"token": token, "id": delivery_id, "run": self.books.runs[token]},
        )
        if rows != [(True,)]:
            self.scheduler.break_off(
                f"the attempt {token} at delivery {delivery_id} failed and is not counted"
            )

    def must_not_be_paused(self, process: Process, handler: str) -> None:
        """Raise Broken where a handler begins whose pause its worker must have seen."""
        read_at = self.taken_at[process.name] - SEEN_S  # at the earliest, unless the database did not answer
        is_sure = not process.faults and self.broken_at.get(process.name, 0.0) < read_at
        if is_sure and self.books.paused.get(handler, read_at) < read_at:
            self.scheduler.break_off(f"{handler} begins, and is paused since {self.books.paused[handler]}")

    def must_be_let_in(self, process: Process, handler: str) -> None:
        """Raise Broken where a handler begins although its options make it wait."""
        keeper = self.gatekeeper
        if keeper is None or keeper.handler != handler:
            return
        wrong = list(keeper.begins(process, self.world.clock.at, self.taken_at[process.name]))
        if wrong:
            self.scheduler.break_off("; ".join(wrong))

    def take_time(self, handler: str) -> None:
        """Have the handler whose options are set take a while, so that others might begin beside it."""
        if self.gatekeeper is not None and self.gatekeeper.handler == handler:
            self.scheduler.sleep(self.scheduler.choices.pick((0.001, 0.1, 2.0), 0.4))

    def check(self) -> None:
        """Check what must hold."""
        if self.gatekeeper is not None and self.world.database.committed:
            self.gatekeeper.look(self.world.clock.at)
        self.books.check()

    def published(self, message: Message) -> None:
        """Remember the key and the command of a message, to compare them with what is done."""
        if (wait_s := message.due - self.world.clock.at) > 0:
            self.scheduler.start(
                f"{message.id[-12:]} is due", lambda: self.scheduler.sleep(wait_s), background=True
            )
        key = message.headers.get(IDEMPOTENCY_KEY) or message.id
        self.books.keys[message.id] = key
        expires = message.headers.get("expires")
        if expires and datetime.fromisoformat(expires).timestamp() < self.world.clock.at:
            self.books.expired.add(message.id)
        kind = self.world.apps["worker 1"].runtime.project.command_tasks.get(message.headers["task"])
        if kind is not None and message.queue.endswith(".commands"):
            self.books.commands[message.id] = repr(from_dict(kind, message.payload[1]))

    def shown(self, command: Any) -> str:
        """Show a command as its worker's release does; that of worker 2 knows no `eta` yet."""
        process = current()
        text = repr(command)
        return text.replace(", eta=None", "") if process and process.name == "worker 2" else text

    def send_mail(self, mail: Any) -> None:
        """Take a mail."""
        step(
            f"mails {mail['Message-ID'][-30:]}",
            lambda: self.mails.append(str(mail["Message-ID"])),
            Fault.CRASH_BEFORE,
            Fault.CRASH_AFTER,
            Fault.ERROR_BEFORE,
            Fault.ERROR_AFTER,
        )

    # The end

    def settle(self) -> None:
        """Go on until the messages are gone, while things may still break."""

        def wait() -> None:
            self.scheduler.sleep(self.plan.lasts_s)
            self.scheduler.wait_until(
                lambda: not self.broker.waiting and not self.broker.held,
                "waits until the messages are gone",
                LONGEST_SCENE_S,
            )

        self.scheduler.start("messages", wait)
        self.scheduler.run(STEPS)

    def end(self) -> None:
        """Let all that is left come to its end in calm, and check that it does."""
        scheduler = self.scheduler
        scheduler.calm = True
        scheduler.tell("from here on nothing breaks")
        scheduler.start("end", self.wait_for_end)
        scheduler.run(STEPS)
        if not self.plan.forgets and (unanswered := self.books.unanswered()):
            raise Broken(f"never answered: {unanswered}")
        is_open = self.gatekeeper is not None and self.gatekeeper.left_open()
        if is_open and self.books.all_done(self.plan.gated):
            raise Broken(f"the breaker of {self.plan.gated} is still open, and all its deliveries are done")

    def wait_for_end(self) -> None:
        """Wait until nothing is left to do."""
        self.scheduler.sleep(self.plan.stays_s)
        self.scheduler.wait_until(self.books.is_settled, "waits for the end")

    def stop(self) -> None:
        """End all processes and their sessions."""
        scheduler = self.scheduler
        for process in list(scheduler.processes):
            process.dead = True
            for connection in process.connections:
                if connection.closed or connection.abandoned:
                    continue
                if connection.status != psycopg2.extensions.STATUS_READY or connection.in_use():
                    self.world.database.release(connection)
        for connection in self.zombies:
            self.world.database.release(connection)
        for process in list(scheduler.processes):
            if process.greenlet:
                process.greenlet.throw(Crash)
        self.world.database.blocked.clear()


def _sleep(seconds: float) -> None:
    process = current()
    if process is not None:
        process.scheduler.sleep(seconds)


@contextmanager
def _replaced(clock: Clock, scheduler: Scheduler, run: Run, seed: int) -> Iterator[None]:
    """Put the simulated world in place of the real one."""
    ids = Random(seed)

    def send(_server: Any, mail: Any, within_s: float = 0) -> None:
        run.send_mail(mail)

    def timer(seconds: float, do: Any) -> Any:
        return SimpleNamespace(start=lambda: run.start_timer(seconds, do), daemon=True)

    state = random.getstate()
    random.seed(seed)
    brokers.current_broker.append(run.broker)
    stores.current_results.append(run.results)
    slots.watch_begin.append(run.began)
    slots.watch_end.append(run.ends)
    slots.watch_left.append(run.left)

    def new_uuid() -> uuid.UUID:
        return uuid.UUID(int=ids.getrandbits(128), version=4)

    urandom = SimpleNamespace(urandom=lambda size: ids.randbytes(size), getpid=messaging.delivery.os.getpid)
    try:
        with (
            warnings.catch_warnings(
                action="ignore", category=RuntimeWarning
            ),  # Celery's, of results not stored
            clock.in_place(),
            patch.object(messaging.delivery, "os", urandom),
            patch.object(messaging.postgres.inbox, "repr", run.shown, create=True),
            patch.object(
                messaging.client.client, "uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4)
            ),
            patch.object(messaging.adapters.mail.SmtpServer, "send", send),
            patch.object(reliable_celery.groups.prefork, "current_app", Proxy(prefork.current_app)),
            patch.object(messaging.worker.announcer.threading, "Timer", timer),
        ):
            yield
    finally:
        random.setstate(state)
        watched: tuple[list[Any], ...] = (slots.watch_begin, slots.watch_end, slots.watch_left)
        for stack in (brokers.current_broker, stores.current_results, *watched):
            stack.pop()
