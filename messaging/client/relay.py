"""The relay: sends what was committed, collects the answers, and has the app take note of them.

It may die between any two statements. What it claimed is sent again, as the same message, by whichever relay
comes next; what was not committed of an answer is done again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from messaging.client.answers import Outcome, Told
from messaging.client.client import Client
from messaging.client.connections import Statements, check_transaction, statements
from messaging.client.databases import Database
from messaging.client.pace import Pace, Pause
from messaging.client.table import CommandTable, Entry, Waiting
from messaging.errors import Unavailable

logger = logging.getLogger(__name__)

#: Takes an outcome and the transaction that it is taken note of in: a SQLAlchemy session or a connection.
OnAnswer = Callable[[Outcome, Any], object]

#: The first look after there was something to do; the waits grow from there.
SHORTEST_WAIT_S = 0.02
#: Messages sent before answers are looked at again.
MESSAGES_A_STEP = 8
#: Answers are noted in one transaction: so many at most, and as long as the app is so quick (seconds).
NOTED_TOGETHER = 100
NOTED_TOGETHER_S = 0.05
#: Gone if the app's function ended the transaction, and with it what was noted before. Errors tell its name.
SAVEPOINT = "on_answer_must_not_commit_or_roll_back"
#: While new answers keep coming, it is looked for those that the app failed to note (seconds).
FAILED_EVERY_S = 0.5
PRUNE_EVERY_S = 60.0
PRUNED_TOGETHER = 1000
#: Errors that say "not now"; they are no answer.
NOT_NOW = ("Unavailable",)
#: From so many times on the log says so: perhaps it is not the database, but the command.
SENT_OFTEN = 5
#: The error of a message that an operator has revoked: the answer to each of its commands.
REVOKED = "TaskRevokedError"


class Relay:
    """One relay; `run` works until it is told to stop, `drain` as long as there is something to do."""

    def __init__(
        self,
        table: CommandTable,
        database: Database,
        sender: Client,
        reader: Client,
        outcome_of: Callable[[Entry], Outcome],
        handler: OnAnswer | None,
        pace: Pace,
    ) -> None:
        self._table = table
        self._database = database
        self._sender, self._reader = sender, reader
        self._outcome_of, self._handler = outcome_of, handler
        self._pace = pace
        self._size = pace.size
        self._broker, self._results = Pause(pace.pause_max_s), Pause(pace.pause_max_s)
        self._trouble = Pause(pace.pause_max_s)
        self._prune_at = self._look_for_failed_at = 0.0
        self._looks_for_traces = True
        #: Messages whose answer was not recorded, until they are sent again.
        self._hastened: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; nothing that fails ends it."""
        wait = SHORTEST_WAIT_S
        while not stop.wait(wait):
            worked = self._trouble.over and self._step_safely()
            wait = 0 if worked else min(self._pace.interval_s, max(SHORTEST_WAIT_S, wait * 1.5))
        self.close()

    def drain(self, longest_s: float) -> bool:
        """Work until nothing waits, at most so many seconds; True when nothing waits. For a periodic job."""
        end = time.monotonic() + longest_s
        try:
            while time.monotonic() < end:
                if not self.step():
                    if not self._anything_waits():
                        return True
                    time.sleep(min(self._pace.interval_s, max(0.0, end - time.monotonic())))
            return False
        finally:
            self.close()

    def step(self) -> bool:
        """Take a step of each kind; True when there was something to do.

        Raises what the caller's database raises.
        """
        under_way, collected = self._collect()
        forwarded = self._forward(self._pace.in_flight - under_way)
        handled = self._handle()
        self._prune()
        return bool(collected or forwarded or handled)

    def waiting(self) -> Waiting:
        """Count what waits."""
        with self._database.transaction() as transaction:
            return self._table.waiting(statements(transaction))

    def _anything_waits(self) -> bool:
        with self._database.transaction() as transaction:
            return self._table.anything_waits(statements(transaction))

    def close(self) -> None:
        """Close the connections; the relay may go on afterwards."""
        self._database.close()
        self._sender.close()
        self._reader.close()

    def _step_safely(self) -> bool:
        try:
            worked = self.step()
        except Exception:
            self._trouble.failed()
            logger.exception("The relay failed and tries again")
            self._database.close()
            return False
        self._trouble.succeeded()
        return worked

    # Sending

    def _forward(self, room: int) -> int:
        """Send what is due, new commands only while there is room for messages; return how many were sent."""
        sent = 0
        while sent < MESSAGES_A_STEP and self._broker.over:
            message = self._claim(new=sent < room)
            if message is None or not self._publish(*message):
                break
            sent += 1
        return sent

    def _claim(self, *, new: bool) -> tuple[str, list[Entry]] | None:
        """Take a message that is to be sent again, else make one of new commands."""
        with self._database.transaction() as transaction:
            run = self._begin(transaction)
            again = self._table.claim_again(run, self._pace.lease_s)
            if again is not None or not new:
                return again
            task_id = str(uuid4())
            entries = self._table.claim(run, task_id, self._size, self._pace.lease_s)
        return (task_id, entries) if entries else None

    def _publish(self, task_id: str, entries: Sequence[Entry]) -> bool:
        lines = [[entry.task, json.loads(entry.fields), entry.key] for entry in entries]
        self._hastened.discard(task_id)
        try:
            self._sender.send_lines(task_id, lines, [entry.traceparent for entry in entries])
        except Unavailable as error:
            if self._broker.failed():
                logger.warning("%s; the commands wait", error)
            with self._database.transaction() as transaction:
                self._table.give_back(self._begin(transaction), task_id)
            return False
        except Exception:
            # Perhaps it is this message alone, which must not keep the others waiting.
            logger.exception("A message with %d commands could not be sent", len(entries))
            wait = self._pace.retry_after_s(_attempts(entries))
            with self._database.transaction() as transaction:
                self._table.put_off(self._begin(transaction), task_id, wait)
            return False
        if self._broker.succeeded():
            logger.warning("The broker is back")
        wait = self._pace.resend_after_s(_attempts(entries))
        with self._database.transaction() as transaction:
            self._table.confirm(self._begin(transaction), task_id, wait)
        return True

    # Answers

    def _collect(self) -> tuple[int, int]:
        """Write the answers that have come; return how many messages are under way, and how many were."""
        with self._database.transaction() as transaction:
            task_ids = self._table.under_way(statements(transaction), self._pace.in_flight)
        told = self._told(task_ids)
        answers = {task_id: one for task_id, one in told.items() if one.recorded}
        for task_id, answer in answers.items():
            with self._database.transaction() as transaction:
                self._note(self._begin(transaction), task_id, answer)
        self._hastened &= set(task_ids)
        for task_id in told.keys() - answers.keys() - self._hastened:
            with self._database.transaction() as transaction:
                self._hasten(self._begin(transaction), task_id)
            self._hastened.add(task_id)
        return len(task_ids) - len(answers), len(answers)

    def _told(self, task_ids: Sequence[str]) -> dict[str, Told]:
        if not task_ids or not self._results.over:
            return {}
        try:
            answers = self._reader.told(task_ids)
        except Unavailable:
            if self._results.failed():
                logger.warning("The results are away; the answers wait")
            return {}
        if self._results.succeeded():
            logger.warning("The results are back")
        return answers

    def _note(self, run: Statements, task_id: str, told: Told) -> None:
        entries = self._table.lock_message(run, task_id)
        if told.error is not None and told.error["type"] != REVOKED and len(entries) > 1:
            self._fall_apart(run, entries, told.error)
            return
        # The lines are in the order of the commands; one whose key the backend refuses has another id.
        in_order = len(told.lines) == len(entries)
        ids = [entry.key for entry in entries] if in_order else [line["id"] for line in told.lines]
        by_key = dict(zip(ids, told.lines, strict=True))
        answers: dict[int, str] = {}
        later: dict[Entry, str] = {}
        for entry in entries:
            answer = by_key.get(entry.key) or {"error": told.error or {"type": "Unavailable", "message": ""}}
            error = answer.get("error") or {}
            if error.get("type") in NOT_NOW:
                later[entry] = error["message"]
            else:
                answers[entry.position] = json.dumps({name: answer[name] for name in answer if name != "id"})
        self._table.answer(run, answers, handled=self._handler is None)
        if later:
            self._try_later(run, later)
        self._size = min(self._pace.size, self._size + 1)

    def _try_later(self, run: Statements, problems: Mapping[Entry, str]) -> None:
        """Send commands again, later; say so if one of them was sent often."""
        worst = max(problems, key=lambda entry: entry.attempts)
        self._table.try_later(run, list(problems), self._pace.retry_after_s(worst.attempts))
        if worst.attempts >= SENT_OFTEN:
            sent = f"{worst.key!r}, sent {worst.attempts} times: {problems[worst]}"
            logger.warning("The backend has not carried out %d commands yet, such as %s", len(problems), sent)

    def _hasten(self, run: Statements, task_id: str) -> None:
        """Have the same message sent again soon: its answer was not recorded, and may not stay the answer."""
        entries = self._table.lock_message(run, task_id)
        if entries:
            wait = min(self._pace.pause_max_s, self._pace.retry_after_s(_attempts(entries)))
            self._table.hasten(run, task_id, wait)

    def _fall_apart(self, run: Statements, entries: Sequence[Entry], error: Mapping[str, str]) -> None:
        """Send the commands of a message that failed as a whole in smaller ones, at last each by itself."""
        logger.warning(
            "A message with %d commands failed: %s: %s", len(entries), error["type"], error["message"]
        )
        self._size = max(1, min(self._size, len(entries)) // 2)
        self._table.try_later(run, entries, self._pace.retry_after_s(_attempts(entries)))

    # The app

    def _handle(self) -> int:
        """Have the app take note of answers; return of how many."""
        handled = self._note_some(NOTED_TOGETHER, failed_before=False)
        if not handled or time.monotonic() >= self._look_for_failed_at:
            handled += self._handle_failed()
        return handled

    def _handle_failed(self) -> int:
        """Have the app take note of an answer that it failed to note before, alone.

        While there are none this is a look at all that wait, so it is done for a tenth of the time at most.
        """
        began = time.monotonic()
        handled = self._note_some(1, failed_before=True)
        if not handled:
            ended = time.monotonic()
            self._look_for_failed_at = ended + max(FAILED_EVERY_S, 10 * (ended - began))
        return handled

    def _note_some(self, limit: int, *, failed_before: bool) -> int:
        """Have the app take note of answers, in one transaction while it is quick; return of how many."""
        if self._handler is None:
            return 0
        current: list[Entry] = []
        try:
            with self._database.transaction() as transaction:
                run = self._begin(transaction)
                end = time.monotonic() + NOTED_TOGETHER_S
                entries = self._table.answered(run, limit, failed_before=failed_before)
                if entries:
                    run.write(f"SAVEPOINT {SAVEPOINT}")
                for entry in entries:
                    current.append(entry)
                    self._handler(self._outcome_of(entry), transaction)
                    if time.monotonic() >= end:
                        break
                if current:
                    run.write(f"RELEASE SAVEPOINT {SAVEPOINT}")
                    self._table.handled(run, current)
        except Exception:
            if not current:
                raise
            if len(current) > 1:  # one of them cannot be noted, or only not committed: each alone
                return sum(self._note_some(1, failed_before=failed_before) for _ in current)
            logger.exception("Taking note of the answer to %r failed", current[0].key)
            self._handle_later(current[0])
        return len(current)

    def _handle_later(self, entry: Entry) -> None:
        with self._database.transaction() as transaction:
            wait = self._pace.retry_after_s(entry.attempts)
            self._table.handle_later(self._begin(transaction), entry, wait)

    # Housekeeping

    def _prune(self) -> None:
        """Delete some commands that were handled long ago; if there are more, the next step goes on."""
        if time.monotonic() < self._prune_at:
            return
        with self._database.transaction() as transaction:
            gone = self._table.prune(self._begin(transaction), self._pace.retention_s, PRUNED_TOGETHER)
        if gone < PRUNED_TOGETHER:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S

    def _begin(self, transaction: Any) -> Statements:
        check_transaction(transaction)
        run = statements(transaction)
        self._table.begin(run)
        if self._looks_for_traces:
            self._looks_for_traces = False
            self._table = replace(self._table, traced=self._table.has_traces(run))
        return run


def _attempts(entries: Sequence[Entry]) -> int:
    """Return how often the commands of a message were sent, this time included."""
    return max(entry.attempts for entry in entries)
