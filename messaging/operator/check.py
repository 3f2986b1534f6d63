"""Check everything that a project needs; each finding says what is wrong and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import pydantic
from celery import Celery
from sqlalchemy import text

from messaging.adapters.mail import SmtpServer
from messaging.brokers.topology import is_rabbitmq
from messaging.delivery import Status
from messaging.errors import describe
from messaging.operator import queues
from messaging.operator.health import BLOCKED_S, Health
from messaging.operator.pausing import active, shown
from messaging.operator.snapshots import holders
from messaging.operator.stats import Overview, Statistics
from messaging.postgres.heartbeats import Heartbeat
from messaging.postgres.migrate import missing
from messaging.project import Project
from messaging.project.runtime import Runtime

#: Seconds that a worker has to answer; a busy one needs less.
ANSWER_S = 3.0
#: Seconds by which two clocks may differ before due times and expiries go wrong.
CLOCK_S = 5.0
#: How many intervals the relay may miss before it counts as dead.
MISSED_BEATS = 4
#: How many sessions that hold locks or snapshots are named.
NAMED = 5
#: Seconds that a transaction may keep dead rows before it is named.
SNAPSHOT_S = 300.0
#: Seconds that an event may wait for another app that listens.
LISTENER_S = 60.0


#: The check whose remedy is shown if this one cannot be made.
NEEDS = {
    "queues": "broker",
    "locks": "database",
    "snapshots": "database",
    "listeners": "broker",
    "clocks": "database",
    "deliveries": "database",
    "dead letters": "database",
}

DATABASE_CLOCK = text("SELECT extract(epoch FROM clock_timestamp())::float")


class Problem(Exception):
    """What is wrong, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy


class Notice(Problem):
    """Nothing is broken, but an operator should look at this."""


@dataclass(frozen=True)
class Finding:
    """The result of one check; ok with a remedy means work for an operator."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    @property
    def state(self) -> str:
        """Return `ok`, `look` or `wrong`."""
        return ("look" if self.remedy else "ok") if self.ok else "wrong"


@dataclass(frozen=True)
class Checkup:
    """The checks, ordered so that a failing one explains those after it; invalid settings end the run."""

    app: Callable[[], Celery]
    runtime: Runtime
    app_module: str  # as in `celery -A`

    def run(self) -> Iterator[Finding]:
        """Yield a finding for each check; none raises."""
        checks: dict[str, Callable[[], str]] = {
            "settings": self.settings,
            "database": self.database,
            "migrations": self.migrations,
            "locks": self.locks,
            "snapshots": self.snapshots,
            "broker": self.broker,
            "results": self.results,
            "mail": self.mail,
            "workers": self.workers,
            "queues": self.queues,
            "listeners": self.listeners,
            "beat": self.beat,
            "clocks": self.clocks,
            "deliveries": self.deliveries,
            "dead letters": self.dead_letters,
        }
        for name, check in checks.items():
            finding = self._finding(name, check)
            yield finding
            if name == "settings" and not finding.ok:
                return

    def _finding(self, name: str, check: Callable[[], str]) -> Finding:
        try:
            return Finding(name, True, check())
        except Problem as problem:
            return Finding(name, isinstance(problem, Notice), problem.what, problem.remedy)
        except Exception as error:  # noqa: BLE001  # drivers of broken servers may raise anything
            return Finding(name, False, describe(error), self._remedy(NEEDS.get(name, name)))

    def settings(self) -> str:
        """Read the settings."""
        try:
            return f"{len(type(self.runtime.settings).model_fields)} read"
        except pydantic.ValidationError as error:
            raise Problem(settings_problem(self.runtime.project, error), self._remedy("settings")) from error

    def database(self) -> str:
        """Ask the database."""
        started = time.monotonic()
        with self.runtime.engine.connect() as connection:
            version = connection.execute(text("SHOW server_version")).scalar_one()
        return f"PostgreSQL {version} answered in {_ms(started)} ms"

    def migrations(self) -> str:
        """Compare the schema with this release's."""
        lacking = missing(self.runtime.engine, self.runtime.project.migrations)
        if lacking:
            raise Problem(f"lacks {', '.join(sorted(lacking))}", self._remedy("migrations"))
        return "the schema matches this release"

    def locks(self) -> str:
        """Look for a session for whose locks others have waited for seconds."""
        blockers = Health(self.runtime.engine).blockers(BLOCKED_S)
        if blockers:
            raise Problem("; ".join(map(str, blockers[:NAMED])), self._remedy("locks"))
        return "no session blocks others"

    def snapshots(self) -> str:
        """Look for what keeps dead rows from being removed."""
        found = holders(self.runtime.engine, SNAPSHOT_S)
        if found:
            raise Notice(
                f"dead rows are kept for {'; '.join(map(str, found[:NAMED]))}", self._remedy("snapshots")
            )
        return "nothing keeps dead rows"

    def broker(self) -> str:
        """Connect to the broker."""
        started = time.monotonic()
        with self.app().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
        return f"{urlsplit(self.runtime.settings.broker_url).scheme} answered in {_ms(started)} ms"

    def results(self) -> str:
        """Ask the result backend for a result that does not exist."""
        started = time.monotonic()
        self.app().backend.get_task_meta("check")
        return f"answered in {_ms(started)} ms"

    def mail(self) -> str:
        """Greet the mail server."""
        settings = self.runtime.settings
        SmtpServer(settings.smtp_url, settings.smtp_timeout_s).greet()
        return "the server answers"

    def workers(self) -> str:
        """Ask the workers which queues they read; every queue needs one."""
        unread = set(self.runtime.project.queues).difference(*self._read.values())
        if unread:
            raise Problem(f"no worker reads {', '.join(sorted(unread))}", self._remedy("workers"))
        return f"{', '.join(sorted(self._read))} read all queues"

    @cached_property
    def _read(self) -> dict[str, set[str]]:
        """Return the queues that each worker reads."""
        answers = self.app().control.inspect(timeout=ANSWER_S).active_queues() or {}
        return {worker: {queue["name"] for queue in queues or []} for worker, queues in answers.items()}

    def queues(self) -> str:
        """Look for messages in queues that no worker reads: a sender may have mistyped the name."""
        if is_rabbitmq(self.runtime.settings.broker_url):
            return "RabbitMQ itself lists them: rabbitmqctl list_queues name messages consumers"
        waiting, listening = queues.waiting(self.app()), queues.listeners(self.app())
        known = set(self.runtime.project.queues).union(listening, *self._read.values())
        unread = {name: count for name, count in waiting.items() if name not in known}
        if unread:
            raise Problem(f"no worker reads {_counts(unread)}", self._remedy("queues"))
        return f"waiting: {_counts({name: n for name, n in waiting.items() if name in known}) or 'nothing'}"

    def listeners(self) -> str:
        """Look for queues of other apps whose events nobody takes."""
        if is_rabbitmq(self.runtime.settings.broker_url):
            return "RabbitMQ itself lists them, like the queues"
        found = queues.backlogs(self.app(), sorted(queues.listeners(self.app())))
        stopped = [
            f"{name} ({backlog.count:,}, the oldest {backlog.oldest_s:.0f} s old)"
            for name, backlog in found.items()
            if backlog.oldest_s is not None and backlog.oldest_s > LISTENER_S
        ]
        if stopped:
            raise Notice(f"nobody takes the events in {', '.join(stopped)}", self._remedy("listeners"))
        return f"{', '.join(found)} have taken their events" if found else "no other app listens"

    def deliveries(self) -> str:
        """Count the deliveries that failed, by handler, and look for handlers that are stopped."""
        counts = self._open.deliveries
        failed = {handler: n for (status, handler), n in counts.items() if status == Status.FAILED}
        paused = "; ".join(shown(one) for one in active(self.runtime))
        stopped = "; ".join(str(one) for one in self.runtime.breakers.stopped().values())
        found = (
            ("paused", paused, "pauses"),
            ("stopped by a breaker", stopped, "breakers"),
            ("failed", _counts(failed), "deliveries"),
        )
        seen = [(f"{what}: {names}", self._remedy(remedy)) for what, names, remedy in found if names]
        if seen:
            raise Notice(*("; ".join(texts) for texts in zip(*seen, strict=True)))
        return "none have failed"

    def dead_letters(self) -> str:
        """Count the open dead letters by reason."""
        if self._open.dead_letters:
            raise Notice(f"waiting: {_counts(self._open.dead_letters)}", self._remedy("dead letters"))
        return "none are waiting"

    @cached_property
    def _open(self) -> Overview:
        return Statistics.of(self.runtime).open()

    def beat(self) -> str:
        """Check when the relay last ran; it needs beat and a worker for housekeeping."""
        beat = self._relay_beat()
        if beat is None or self._is_old(beat):
            ago = f"{beat.age_s:.0f} s ago" if beat else "never"
            interval_s = self.runtime.settings.relay_interval_s
            raise Problem(
                f"the relay last ran {ago}, but is due every {interval_s:g} s", self._remedy("beat")
            )
        return f"the relay last ran {beat.age_s:.1f} s ago on {beat.worker}"

    def clocks(self) -> str:
        """Compare this clock and the housekeeping worker's with the database's."""
        before = time.time()
        with self.runtime.engine.connect() as connection:
            theirs: float = connection.execute(DATABASE_CLOCK).scalar_one()
        offsets = {"this machine": (before + time.time()) / 2 - theirs}
        beat = self._relay_beat()
        if beat is not None and not self._is_old(beat):
            offsets[beat.worker] = beat.clock_offset_s
        wrong = [f"{who} by {offset:+.1f} s" for who, offset in offsets.items() if abs(offset) > CLOCK_S]
        if wrong:
            raise Problem(f"off the database's clock: {', '.join(wrong)}", self._remedy("clocks"))
        unseen = "" if len(offsets) > 1 else "; the housekeeping worker's is not known until it runs again"
        return f"within {max(map(abs, offsets.values())):.2f} s of the database's{unseen}"

    def _is_old(self, beat: Heartbeat) -> bool:
        return beat.age_s > MISSED_BEATS * self.runtime.settings.relay_interval_s + ANSWER_S

    def _relay_beat(self) -> Heartbeat | None:
        return self.runtime.heartbeats.read().get("relay")

    def _remedy(self, name: str) -> str:
        prefix, celery = self.runtime.project.name.upper(), f"celery -A {self.app_module}"
        remedies: dict[str, Any] = {
            "settings": f"fix the {prefix}_… variable named here",
            "database": f"start PostgreSQL, or fix {prefix}_DATABASE_URL",
            "migrations": "run this tool's command: migrate",
            "broker": f"start the broker, or fix {prefix}_BROKER_URL",
            "results": f"start the result backend, or fix {prefix}_RESULT_BACKEND_URL",
            "mail": f"start the mail server, or fix {prefix}_SMTP_URL; then re-run what failed",
            "workers": f"start a worker for it: {celery} worker --queues=…",
            "beat": f"start beat ({celery} beat) and a worker for the housekeeping queue; if both run,"
            " synchronise their clocks (NTP)",
            "queues": f"commands belong in {self.runtime.project.commands_queue}: fix the app that sends"
            " them elsewhere, send them again, then delete the queue",
            "locks": "see what it does (SELECT * FROM pg_stat_activity WHERE pid = …); if it is to end:"
            " SELECT pg_terminate_backend(…); of a prepared transaction: ROLLBACK PREPARED …",
            "snapshots": "let a backup end, but end what was forgotten: SELECT pg_terminate_backend(…),"
            " ROLLBACK PREPARED …, SELECT pg_drop_replication_slot(…)",
            "listeners": "start the app that reads it; if it is gone for good, delete its queue, which grows",
            "clocks": "synchronise the clocks (NTP)",
            "deliveries": "see why: deliveries list; once that is fixed: deliveries rerun",
            "breakers": "fix what the error names; the breaker closes by itself once a delivery succeeds",
            "pauses": "end it, once its reason is gone: deliveries resume",
            "dead letters": "see them: dead-letters list; then replay or discard each",
        }
        return str(remedies[name])


def _counts(found: Mapping[str, int]) -> str:
    """Return names with their counts, in the order of the names."""
    return ", ".join(f"{name} ({count:,})" for name, count in sorted(found.items()))


def _ms(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.0f}"


def settings_problem(project: Project, error: pydantic.ValidationError) -> str:
    """Name each invalid variable, but not its value, which may be a secret."""
    problems = (
        f"{'_'.join([project.name, *map(str, problem['loc'])]).upper()}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False)
    )
    return "; ".join(problems)
