"""What must hold after every step, whatever has happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from messaging.bus import MessageBus
from messaging.messages import to_dict
from messaging.wire.replay import parse_line
from tests.simulation.broker import Broker
from tests.simulation.database import BEHIND_S, Database
from tests.simulation.model import Model
from tests.simulation.results import Results
from tests.simulation.scheduler import Broken
from tests.simulation.slots import COOLDOWN_S, MAX_CRASHES, RERUN_MAX

NOT_KNOWN = "not known"
USED_BEFORE = "was used before"
#: States that may follow each state.
NEXT = {
    "pending": {"pending", "waiting", "done", "failed"},
    "waiting": {"waiting", "pending"},
    "failed": {"failed", "pending", "discarded"},
    "done": {"done"},
    "discarded": {"discarded"},
}
#: In the name of whoever re-runs many, and what the product adds for those that are tried first.
BULK, CANARY = " bulk", " (canary)"
COMMANDS = {"add_batch", "allocate", "change_batch_quantity"}


@dataclass
class Books:
    """The latest snapshot, and what is remembered of all before it."""

    database: Database
    broker: Broker
    results: Results
    bus: MessageBus
    mails: list[str]
    model: Model = field(default_factory=Model)
    inbox: dict[str, dict[str, Any]] = field(default_factory=dict)
    deliveries: dict[str, dict[str, Any]] = field(default_factory=dict)
    ever: dict[str, dict[str, Any]] = field(default_factory=dict)  # deliveries, the pruned ones too
    waiting: dict[str, int] = field(default_factory=dict)  # announcements by event id
    last_position: dict[str, int] = field(default_factory=dict)  # by subject
    published: set[str] = field(default_factory=set)  # ids of events
    last_published: dict[str, int] = field(default_factory=dict)  # positions by subject
    seen: int = 0  # of what was published
    announced: dict[str, Counter[str]] = field(default_factory=dict)  # types of waiting events, by cause
    announced_ids: dict[str, set[str]] = field(default_factory=dict)  # of the same
    effects: list[tuple[str, str, str]] = field(default_factory=list)
    parked: int = 0
    paused: dict[str, float] = field(default_factory=dict)  # since when, by handler
    again: Counter[str] = field(default_factory=Counter)  # how often it was one that was redelivered

    def check(self) -> None:
        """Read what is committed, and raise Broken with the first thing that is wrong."""
        published, committed = list(self._published()), list[str]()
        if self.database.committed:
            committed = list(self._committed())
        found = [*published, *committed, *self._told(), *self._mailed()]
        if found:
            raise Broken("; ".join(found[:3]))

    def _committed(self) -> Iterator[str]:
        found = self.database.snapshot()
        if found is None:
            return
        batches, lines, inbox, deliveries, announcements, effects, self.parked, *others = found
        attempts, noted, paused, *bulk = others
        self.paused = {name: self.paused.get(name, self.broker.clock.at) for name in paused}
        yield from self._answers(inbox)
        yield from self._deliveries(deliveries)
        self.announced, self.announced_ids = {}, {}
        for _, event_id, _, cause, kind in announcements:
            self.announced.setdefault(cause, Counter())[kind] += 1
            self.announced_ids.setdefault(cause, set()).add(event_id)
        yield from self._effects([tuple(one) for one in effects])
        yield from self._stock(batches, lines)
        yield from self._announcements(announcements)
        yield from self._attempts(attempts, noted)
        yield from self._bulk(*bulk)

    def _answers(self, rows: list[dict[str, Any]]) -> Iterator[str]:
        now = {row["id"]: row for row in rows}
        for task_id, row in self.inbox.items():
            if now.get(task_id) != row:
                yield f"the answer to {task_id} was {row}, now {now.get(task_id)}"
        before, self.inbox = self.inbox, now
        carried_out = {row["key"] for row in before.values() if row["error"] is None}
        for task_id, row in now.items():
            if task_id not in before and row["error"] is not None and row["key"] in carried_out:
                yield f"{task_id} was refused with {row['error']}, and {row['key']} was carried out before"
        for task_id, row in now.items():
            key = self.keys.get(task_id, row["key"])
            if row["key"] != key:
                yield f"the answer to {task_id} is recorded under {row['key']}, its key is {key}"
        keys = Counter(row["key"] for row in rows if row["error"] is None)
        yield from (f"key {key} has {count} effects" for key, count in keys.items() if count > 1)

    def _deliveries(self, rows: list[dict[str, Any]]) -> Iterator[str]:
        now = {row["id"]: row for row in rows}
        for name, row in self.deliveries.items():
            new = now.get(name)
            if new is None:
                if row["status"] not in ("done", "discarded"):
                    yield f"a delivery that was {row['status']} is gone: {row}"
            elif new["status"] not in NEXT[row["status"]]:
                yield f"a delivery went from {row['status']} to {new['status']}"
            elif new["run"] > row["run"] and row["status"] != "failed":
                yield f"delivery {name} was re-run although it was {row['status']}"
            elif new["run"] > row["run"] and new["automatic"] not in (0, row["automatic"] + 1):
                yield f"{name} was re-run, and its re-runs by the schedule are {new['automatic']}"
            elif new["automatic"] > row["automatic"] and row["crashes"]:
                yield f"the schedule has re-run {name}, which kills its workers"
            elif new["automatic"] > row["automatic"] and self._cools(row):
                yield f"the schedule has re-run {name} before its cool-down was over"
            elif new["run"] == row["run"] and new["attempts"] < row["attempts"]:
                yield f"attempts of {name} went from {row['attempts']} to {new['attempts']}"
        for row in rows:
            if row["listed"] != row["attempts"] - (row["status"] == "done"):
                name = f"{row['handler']} {row['id']}"
                yield f"attempts of {name}: {row['attempts']} counted, {row['listed']} listed"
            lost = self.lost(row["id"], row["run"])
            if row["crashes"] > lost:
                yield f"{row['handler']} is said to have killed {row['crashes']} workers, and lost {lost}"
            # Those that lost their row's lock ran beside others.
            if row["attempts"] > 3 + lost and row["handler"] != self.retries_for_ever:
                yield f"{row['handler']} was tried {row['attempts']} times in one run"
            if row["automatic"] > RERUN_MAX:
                yield f"the schedule has re-run {row['handler']} {row['automatic']} times"
            if row["status"] == "failed" and row["is_killer"] and not row["crashes"]:
                yield f"{row['handler']} is parked, and is not said to have killed its workers"
            if row["status"] == "failed" and row["last"] in self.trials:
                yield f"{row['handler']} has failed for good, and that was a trial"
            if row["copy_of"] in now and now[row["copy_of"]]["status"] != "discarded":
                yield f"the original of a copy, {row['copy_of']}, is {now[row['copy_of']]['status']}"
            original = self.ever.get(row["copy_of"], row)
            if (original["lane"], original["position"]) != (row["lane"], row["position"]) and row["lane"]:
                yield f"the copy of {row['copy_of']} has another place in its lane"
        copies = Counter(row["copy_of"] for row in rows if row["copy_of"] is not None)
        yield from (f"{original} has {count} copies" for original, count in copies.items() if count > 1)
        doubles = Counter((r["cause"], r["type"], str(r["payload"]), r["handler"]) for r in rows)
        yield from (
            f"raised twice: {what}" for what, count in doubles.items() if count > 1 and not self._edited(what)
        )
        yield from self._in_order(rows)
        for row in rows:
            cause = self.inbox.get(row["cause"])
            if cause and cause["error"]:
                yield f"{row['cause']} was refused with {cause['error']} and raised {row['type']}"
        self.deliveries = now
        self.ever.update(now)

    def _cools(self, row: dict[str, Any]) -> bool:
        """Tell whether it is too soon for the schedule to re-run what had failed."""
        return bool(self.broker.clock.at - row["ended"] < COOLDOWN_S * 2 ** row["automatic"] - BEHIND_S)

    def _in_order(self, rows: list[dict[str, Any]]) -> Iterator[str]:
        """A delivery that is done was the first of its lane, and a new one is its last."""
        open_from: dict[tuple[str, str], int] = {}
        lanes = [row for row in rows if row["lane"] is not None]
        new = [row for row in lanes if row["id"] not in self.ever and row["copy_of"] is None]
        for row in sorted(new, key=lambda one: one["position"]):
            lane = row["handler"], row["lane"]
            if row["position"] < self.ends_of_lanes.get(lane, 0):
                yield f"{row['id']} was committed after others of the lane {row['lane']}, and comes before"
            self.ends_of_lanes[lane] = row["position"]
        for row in lanes:
            if row["status"] not in ("done", "discarded"):
                lane = row["handler"], row["lane"]
                open_from[lane] = min(row["position"], open_from.get(lane, row["position"]))
        for row in lanes:
            before = self.deliveries.get(row["id"], {"status": "pending"})
            ends_now = row["status"] == "done" != before["status"]
            if ends_now and open_from.get((row["handler"], row["lane"]), row["position"]) < row["position"]:
                yield f"{row['handler']} {row['id']} was done before an earlier one of {row['lane']}"

    def is_blocked(self, row: dict[str, Any]) -> bool:
        """Tell whether a delivery waits for an earlier one that has failed."""
        return row["status"] == "waiting" and any(
            one["status"] == "failed" and one["lane"] == row["lane"] and one["handler"] == row["handler"]
            for one in self.deliveries.values()
            if row["lane"] is not None and one["position"] and one["position"] < row["position"]
        )

    #: How many workers may have ended without counting their attempt at a run of a delivery.
    lost: Callable[[str, int], int] = field(default=lambda _delivery_id, _run: 0)

    ends_of_lanes: dict[tuple[str, str], int] = field(default_factory=dict)  # positions
    trials: set[str] = field(default_factory=set)  # tokens of attempts that failed, and can only be trials

    retries_for_ever: str = ""  # a handler with a breaker: a failed trial is never the last attempt

    def _edited(self, what: tuple[Any, ...]) -> bool:
        return what[0] in self.edited_causes

    edited_causes: set[str] = field(default_factory=set)

    def _effects(self, effects: list[tuple[str, str, str]]) -> Iterator[str]:
        seen = set(self.effects)
        new = [one for one in effects if one not in seen]
        jobs = Counter((key, handler if handler not in COMMANDS else "") for _, key, handler in effects)
        yield from (f"{key} took effect {count} times" for (key, _), count in jobs.items() if count > 1)
        done = {job for job, _, handler in effects if handler in COMMANDS}
        answered = {task_id for task_id, row in self.inbox.items() if row["error"] is None}
        if done != answered:
            yield f"took effect without an answer, or the other way round: {sorted(done ^ answered)}"
        delivered = {job for job, _, handler in effects if handler not in COMMANDS}
        for name, row in self.deliveries.items():
            if (row["status"] == "done") != (name in delivered):
                yield f"{row['handler']} {name} is {row['status']}, its effect is {name in delivered}"
        yield from (
            f"{job} took effect although it had expired when it was sent" for job in done & self.expired
        )
        self.effects = effects
        for job, _, handler in new:
            yield from self._as_in_model(job, handler)

    def _as_in_model(self, job: str, handler: str) -> Iterator[str]:
        if handler == "reallocate":
            self.model.reallocate(self.ever[job]["payload"])
        if handler not in COMMANDS or job not in self.inbox:
            yield from self._raised(job, handler)
            return
        row = self.inbox[job]
        if row["error"] is not None:  # wrong, and said already
            return
        command = self._parsed(row["command"])
        result = self.model.carry_out(command)
        if result != row["result"]:
            yield f"{row['command']} came to {row['result']!r}, one after the other it is {result!r}"
        yield from self._raised(job, row["command"])

    def _raised(self, job: str, what: str) -> Iterator[str]:
        """What was raised has a delivery for each of its handlers, and is announced."""
        events = self.model.take_events()
        wanted = Counter(
            (type(event).__name__, _line(to_dict(event)), handler.__name__)
            for event in events
            for handler in self.bus.events[type(event)]
        )
        found = Counter(
            (row["type"], _line(row["payload"]), row["handler"])
            for row in self.ever.values()
            if row["cause"] == job and row["copy_of"] is None
        )
        if found != wanted:
            lost, more = list((wanted - found).elements()), list((found - wanted).elements())
            yield f"{what} has raised {lost} without deliveries, and has deliveries of {more} that it has not"
        kinds, announced = Counter(type(one).__name__ for one in events), self.announced.get(job, Counter())
        if announced != kinds:
            yield f"{what} has raised {dict(kinds)}, announced are {dict(announced)}"
        row = self.inbox.get(job) or self.ever[job]
        listed, ids = [event_id for event_id, _ in row["raised"] or []], self.announced_ids.get(job, set())
        if sorted(listed) != sorted(ids):
            yield f"{what} has raised {sorted(ids)}, listed are {sorted(listed)}"

    def _stock(self, batches: list[Any], lines: list[Any]) -> Iterator[str]:
        sums: Counter[str] = Counter()
        for _, _, qty, reference in lines:
            sums[reference] += qty
        for reference, _, purchased, allocated in batches:
            if not 0 <= allocated <= purchased:
                yield f"batch {reference} has {allocated} of {purchased} allocated"
            if sums[reference] != allocated:
                yield f"batch {reference} keeps {allocated}, its lines are {sums[reference]}"
        now = {reference: (sku, purchased, allocated) for reference, sku, purchased, allocated in batches}
        if now != self.model.batches():
            yield f"batches are {now}, one after the other they are {self.model.batches()}"
        if {tuple(line) for line in lines} != self.model.lines():
            yield f"lines are {sorted(lines)}, one after the other they are {sorted(self.model.lines())}"

    def _announcements(self, rows: list[Any]) -> Iterator[str]:
        now = {event_id: position for position, event_id, *_ in rows}
        for event_id in self.waiting:
            if event_id not in now and event_id not in self.published:
                yield f"event {event_id} is gone and was never published"
        for position, event_id, subject, *_ in rows:
            if event_id in self.waiting:
                continue
            if position < self.last_position.get(subject, 0):
                yield f"event {event_id} of {subject} was committed later and comes before others"
            self.last_position[subject] = position
        self.waiting = now

    def _published(self) -> Iterator[str]:
        """Each product's events reach the broker in the order of their commits, apart from repetitions."""
        new, self.seen = self.broker.announced[self.seen :], len(self.broker.announced)
        for one in new:
            subject, position = one["subject"], int(one["sequence"])
            if one["id"] not in self.published and position < self.last_published.get(subject, 0):
                yield f"event {one['id']} of {subject} was published after later ones"
            self.published.add(one["id"])
            self.last_published[subject] = max(position, self.last_published.get(subject, 0))

    def is_told(self, key: str, result: Any) -> None:
        """Compare a result that a sender's client has returned with what was done under its key."""
        done = [row["result"] for row in self._effects_of(key)]
        if done != [result]:
            raise Broken(f"the sender of {key} was told {result!r}, recorded are {done}")

    def _told(self) -> Iterator[str]:
        effects = {row["key"]: row for row in self.inbox.values() if row["error"] is None}
        for task_id, answers in self.results.told.items():
            certain = [one for one in answers if not _is_open(one)]
            if len(certain) > 1:
                yield f"{task_id} was told {certain[0]}, later {certain[1]}"
            for answer in certain:
                yield from self._is_true(task_id, answer, effects)

    def _is_true(self, task_id: str, answer: dict[str, Any], effects: dict[str, Any]) -> Iterator[str]:
        row = self.inbox.get(task_id)
        if answer["status"] == "SUCCESS" and isinstance(answer["result"], list):
            for position, outcome in enumerate(answer["result"]):
                yield from self._is_outcome_true(f"{task_id}.{position}", outcome, effects)
        elif answer["status"] == "SUCCESS":
            effect = row if row and row["error"] is None else effects.get(self.keys.get(task_id, task_id))
            if effect is None:
                yield f"{task_id} was told {answer['result']!r}, and nothing was done"
            elif effect["result"] != answer["result"]:
                yield f"{task_id} was told {answer['result']!r}, recorded is {effect['result']!r}"
            elif not self._is_same(effect["command"], task_id):
                yield f"{task_id} was told success, but what was done is {effect['command']}"
        else:
            error = answer["result"]["exc_type"]
            yield from self._is_error_true(task_id, error, str(answer["result"]["exc_message"]), row)

    parsed: dict[str, Any] = field(default_factory=dict)  # commands, by their lines
    keys: dict[str, str] = field(default_factory=dict)  # by task id
    commands: dict[str, str] = field(default_factory=dict)  # by task id, the repr

    def _is_same(self, command: str, task_id: str) -> bool:
        wanted = self.commands.get(task_id)
        if not command or wanted is None or command == wanted:
            return True
        return self._parsed(command) == self._parsed(wanted)

    def _parsed(self, line: str) -> Any:
        if line not in self.parsed:
            self.parsed[line] = parse_line(self.bus, line)
        return self.parsed[line]

    def _effects_of(self, key: str) -> list[dict[str, Any]]:
        return [row for row in self.inbox.values() if row["key"] == key and row["error"] is None]

    def _is_outcome_true(
        self, task_id: str, outcome: dict[str, Any], effects: dict[str, Any]
    ) -> Iterator[str]:
        error = outcome.get("error")
        if error is None:
            effect = effects.get(outcome["id"])
            if effect is None:
                yield f"{task_id} was told {outcome['result']!r}, and nothing was done"
            elif effect["result"] != outcome["result"]:
                yield f"{task_id} was told {outcome['result']!r}, recorded is {effect['result']!r}"
        elif NOT_KNOWN not in error["message"]:
            yield from self._is_error_true(task_id, error["type"], error["message"], self.inbox.get(task_id))

    def _is_error_true(
        self, task_id: str, error: str, text: str, row: dict[str, Any] | None
    ) -> Iterator[str]:
        if USED_BEFORE in text:
            used = row or next(iter(self._effects_of(self.keys.get(task_id, task_id))), None)
            if used and task_id in self.commands and self._is_same(used["command"], task_id):
                yield f"{task_id} was told that its key was used for another command, and it was the same"
            return
        if row is None:
            yield f"{task_id} was told {error}, and that is not recorded"
        elif row["error"] is None:
            yield f"{task_id} was told {error}, yet it was done"
        elif row["error"] != error:
            yield f"{task_id} was told {error}, recorded is {row['error']}"
        elif error == "WorkerCrashed" and not self.parked:
            yield f"{task_id} was told WorkerCrashed, and there is no dead letter"
        elif error == "WorkerCrashed" and self.again[task_id] <= MAX_CRASHES:
            yield f"{task_id} was told WorkerCrashed, it was redelivered {self.again[task_id]} times"

    def _mailed(self) -> Iterator[str]:
        ids = {mail.partition("@")[0].lstrip("<").rpartition(".")[0] for mail in self.mails}
        for name, row in self.deliveries.items():
            if (
                row["handler"] == "send_out_of_stock_notification"
                and row["status"] == "done"
                and name not in ids
            ):
                yield f"delivery {name} is done and its mail was not sent"
        yield from (f"a mail of nothing: {name}" for name in ids - self.ever.keys())

    expired: set[str] = field(default_factory=set)  # ids of messages that were too late from the beginning
    runs: dict[str, int] = field(default_factory=dict)  # of attempts that failed, by token

    noted: dict[str, tuple[str, int]] = field(default_factory=dict)  # failures beside the rows, by token

    def _attempts(self, rows: list[Any], noted: list[Any]) -> Iterator[str]:
        counts = Counter(token for token, _ in rows)
        yield from (f"attempt {one} is counted {count} times" for one, count in counts.items() if count > 1)
        before, self.noted = self.noted, {token: (name, run) for token, name, run in noted}
        for token in before.keys() - self.noted.keys() - counts.keys():
            name, run = before[token]
            row = self.deliveries.get(name)
            if row is not None and row["run"] == run and row["status"] in ("pending", "waiting"):
                yield f"the failure of attempt {token} at {name} was noted, and is forgotten"
        for token, run in rows:
            if self.runs.get(token, run) != run:
                yield f"attempt {token} of run {self.runs[token]} is counted for run {run}"

    def _bulk(self, audited: list[Any], requeued: list[Any], under_way: int) -> Iterator[str]:
        """A re-run of many says how many it put back, each once; those that are tried come first."""
        self.bulk_reruns = under_way
        now = Counter((actor, delivery) for actor, delivery in requeued)
        self.requeued.update(now.keys())  # they go with their deliveries
        yield from (f"{actor} re-ran {one} {count} times" for (actor, one), count in now.items() if count > 1)
        by_actor = Counter(actor.removesuffix(CANARY) for actor, _ in self.requeued)
        for actor, count, outcome in audited:
            if BULK in actor and count != by_actor[actor]:
                yield f"{actor} is said to have re-run {count} ({outcome}), it was {by_actor[actor]}"
        going_on = {actor for actor, _ in self.requeued if not actor.endswith(CANARY)}
        for actor, name in self.requeued:
            tried = self.deliveries.get(name) if actor.endswith(CANARY) else None
            if tried and tried["status"] != "done" and actor.removesuffix(CANARY) in going_on:
                yield f"{actor.removesuffix(CANARY)} goes on, and {name}, tried first, is {tried['status']}"

    requeued: set[tuple[str, str]] = field(default_factory=set)  # by re-runs of many: actor, delivery
    bulk_reruns: int = 0  # that are under way

    def finds(self, job: str) -> bool:
        """Tell whether a housekeeping job can find anything: most of its runs would only take time."""
        states = {row["status"] for row in self.deliveries.values()}
        match job:
            case "relay":
                return bool(states & {"pending", "waiting"}) or bool(self.bulk_reruns)
            case "announce":
                return bool(self.waiting)
            case "rerun":
                return "failed" in states
        return bool(states)

    # At the end

    def unanswered(self) -> list[str]:
        """Return the commands that were sent and never answered."""
        return [
            task_id for task_id in self.keys if task_id in self.commands and task_id not in self.results.told
        ]

    def all_done(self, handler: str) -> bool:
        """Tell whether all deliveries of a handler that there ever were are done."""
        return all(row["status"] == "done" for row in self.ever.values() if row["handler"] == handler)

    def is_settled(self) -> bool:
        """Tell whether nothing is left to do."""
        return (
            not self.broker.waiting
            and not self.broker.held
            and not self.waiting
            and not self.bulk_reruns
            and all(
                row["status"] not in ("pending", "waiting") or self.is_blocked(row)
                for row in self.deliveries.values()
            )
        )


def _line(payload: object) -> str:
    return json.dumps(payload, sort_keys=True)


def _is_open(answer: dict[str, Any]) -> bool:
    return answer["status"] == "FAILURE" and NOT_KNOWN in str(answer["result"]["exc_message"])
