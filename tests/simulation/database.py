"""The real PostgreSQL, of which every statement is a step, with a clock that the schedule sets.

A statement that waits for a lock would stop the whole simulation. The driver's wait hook looks who blocks it
instead, and lets other processes go on until its answer has come.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
from psycopg2.extensions import POLL_OK, POLL_READ
from sqlalchemy import Engine, event

from tests.simulation import sql
from tests.simulation.clock import Clock
from tests.simulation.mistakes import notice
from tests.simulation.scheduler import Broken, Crash, Fault, Process, current, step

#: Seconds after which an answer is late enough to ask whether a lock keeps it.
LATE_S = 0.005

#: What a server for simulations needs besides `testing.databases.FAST`.
SETTINGS = {"deadlock_timeout": "10ms", "autovacuum": "off", "synchronous_commit": "off", "jit": "off"}

#: Functions that hide PostgreSQL's own of the same names: `now()` stays the same in a transaction, `random()`
#: draws the same numbers in each schedule. `effects`
#: has a row for each time that a handler was carried out, written in its transaction.
SCHEMA = """
CREATE SCHEMA sim;
CREATE UNLOGGED SEQUENCE sim.clock;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    $$ SELECT pg_catalog.to_timestamp(nextval('sim.clock') / 1000000.0) $$;
CREATE FUNCTION sim.now() RETURNS timestamptz LANGUAGE sql STABLE AS
    $$ SELECT pg_catalog.to_timestamp(coalesce(nullif(current_setting('sim.now', true), '')::bigint,
                                               (SELECT last_value FROM sim.clock)) / 1000000.0) $$;
CREATE UNLOGGED SEQUENCE sim.drawn;
CREATE FUNCTION sim.random() RETURNS double precision LANGUAGE sql VOLATILE AS
    $$ SELECT (nextval('sim.drawn') * 0.618034) % 1 $$;
CREATE TABLE public.effects (
    position bigint GENERATED ALWAYS AS IDENTITY,
    job text NOT NULL, key text NOT NULL, handler text NOT NULL);
CREATE INDEX ON public.effects (key);
CREATE FUNCTION sim.empty() RETURNS void LANGUAGE plpgsql AS $$
DECLARE used text;
BEGIN
    SELECT string_agg(oid::regclass::text, ', ') INTO used FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
      AND pg_relation_size(oid) > 0;
    IF used IS NOT NULL THEN
        EXECUTE 'TRUNCATE ' || used || ' CASCADE';
    END IF;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'S';
    PERFORM setval('sim.drawn', 1, false);
END $$;
"""
DEFAULTS = """
SELECT table_name, column_name, replace(column_default, 'pg_catalog.', '') FROM information_schema.columns
WHERE table_schema = 'public' AND column_default ~ '^(now|clock_timestamp)\\(\\)$'
"""
#: All that is committed, in one statement, hence of one moment.
SNAPSHOT = """
SELECT
 (SELECT coalesce(json_agg(json_build_array(reference, sku, purchased_quantity, allocated_quantity)), '[]')
  FROM batches),
 (SELECT coalesce(json_agg(json_build_array(orderid, sku, qty, batch_reference)), '[]') FROM allocations),
 (SELECT coalesce(json_agg(json_build_object('id', task_id, 'key', coalesce(idempotency_key, task_id),
    'command', command, 'result', result, 'error', error->>'type', 'raised', effects->'events')), '[]')
  FROM inbox),
 (SELECT coalesce(json_agg(json_build_object('id', id, 'type', event_type, 'payload', payload,
    'handler', handler, 'status', status, 'attempts', attempts, 'run', reruns, 'cause', causation_id,
    'crashes', crashes, 'lane', lane, 'position', position, 'copy_of', edited_from, 'automatic', auto_reruns,
    'ended', extract(epoch FROM finished_at)::float, 'is_killer', starts_with(last_error, 'WorkerCrashed'),
    'raised', effects->'events', 'last', (SELECT token FROM attempts
        WHERE delivery_id = deliveries.id AND run = reruns ORDER BY number DESC LIMIT 1),
    'listed', (SELECT count(*) FROM attempts WHERE delivery_id = deliveries.id AND run = reruns))), '[]')
  FROM deliveries),
 (SELECT coalesce(json_agg(json_build_array(position, event_id, subject, causation_id, event_type)
    ORDER BY position), '[]')
  FROM announcements),
 (SELECT coalesce(json_agg(json_build_array(job, key, handler) ORDER BY position), '[]') FROM effects),
 (SELECT count(*) FROM dead_letters WHERE reason = 'killed its worker'),
 (SELECT coalesce(json_agg(json_build_array(token, run)), '[]') FROM attempts),
 (SELECT coalesce(json_agg(json_build_array(token, delivery_id, run)), '[]') FROM open_attempts
  WHERE state = 'failed'),
 (SELECT coalesce(json_agg(name), '[]') FROM pauses WHERE scope = 'handler'),
 (SELECT coalesce(json_agg(json_build_array(actor, count, outcome)), '[]') FROM audit WHERE action = 'rerun'),
 (SELECT coalesce(json_agg(json_build_array(actor, delivery_id)), '[]') FROM actions
  WHERE action = 'rerun' AND actor LIKE '% bulk%'),
 (SELECT count(*) FROM bulk_reruns),
 pg_current_snapshot()::text
WHERE pg_current_snapshot()::text <> $1
"""

#: The server's clock follows that of the schedule, and never goes back.
SET_CLOCK = "setval('sim.clock', greatest(nextval('sim.clock'), %d))"
SET_NOW = f"SELECT set_config('sim.now', {SET_CLOCK}::text, true); "

#: Seconds that the server's clock may be behind within a transaction.
BEHIND_S = 0.5

#: Errors that mean the same as a connection that is gone.
GONE = "server closed the connection unexpectedly"

#: Statements that release locks.
RELEASING = ("COMMIT", "ROLLBACK")

#: How long the rest of a transaction waits for each lock, in milliseconds.
LOCK_TIMEOUT = re.compile(r"SET LOCAL lock_timeout = (\d+)")

#: In `known_blocked`, of a session that has its answer.
ANSWERED = -1

#: What may happen at a statement.
FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER, Fault.SLOW_CRASH)


class Cursor(psycopg2.extensions.cursor):
    """Each statement is a step, also where several are sent in one message."""

    def execute(self, query: Any, params: Any = None) -> None:
        """Run statements one by one."""
        connection: Any = self.connection
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text.startswith("SET ") and text == connection.limits:
            return
        if current() is None:
            self._send(query, params)
            return
        connection.require_alive()
        if text.startswith("PREPARE ") or (text.startswith("SET ") and not LOCK_TIMEOUT.match(text)):
            self._send(query, params)
            connection.limits = text if text.startswith("SET ") else connection.limits
            return
        if params is not None:
            text = self.mogrify(query, params).decode()
        for statement in sql.split(text):
            self._run(connection, statement)

    def _release(self, statement: str) -> None:
        connection: Any = self.connection
        with connection.database.releasing(connection):
            self._send(statement)

    def _send(self, query: Any, params: Any = None) -> None:
        connection: Any = self.connection
        try:
            connection.drive(super().execute, query, params)
        except psycopg2.ProgrammingError as error:
            notice(error)
            raise

    def _run(self, connection: Any, statement: str) -> None:
        if statement == "ROLLBACK":
            connection.begins = False
            step("ROLLBACK", lambda: self._release(statement))
            return
        if statement == "BEGIN":
            connection.begins, connection.waits_s = True, None
            return
        if found := LOCK_TIMEOUT.match(statement):  # by the simulated clock
            connection.waits_s = int(found.group(1)) / 1000
            return
        ends = statement == "COMMIT"

        def do() -> None:
            send = self._release if statement.startswith(RELEASING) else self._send
            send(connection.at_this_time(statement))

        connection.step(sql.shown(statement), do, ends)
        if self.description is not None:
            connection.hold(self.rowcount == 0)


class Connection(psycopg2.extensions.connection):
    """A connection that belongs to a process, and ends with it."""

    owner: Process | None = None
    database: Any = None
    engine: Engine | None = None
    abandoned = False
    lost = False  # by the network; its process has to notice
    pid = 0
    begins = False  # with the next statement, which saves a round trip
    waits_s: float | None = None  # at most, for a lock, in this transaction
    has_waited = False  # for so long
    limits = ""  # how they were set
    driven = False  # the driver is in the middle of a statement, and has locked it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepared: set[str] = set()  # the names of its statements, as the product notes them

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor whose statements are steps."""
        return super().cursor(*args, **{"cursor_factory": Cursor, **kwargs})

    def drive(self, do: Any, *args: Any) -> None:
        """Have the driver do something; if its process is killed meanwhile, nobody may touch it any more."""
        if self.lost:
            raise psycopg2.OperationalError(GONE)
        self.driven = True
        try:
            do(*args)
        except psycopg2.Error as error:
            self.driven = False
            self.database.released += 1
            if self.has_waited:
                self.has_waited = False
                raise psycopg2.errors.LockNotAvailable("canceling statement due to lock timeout") from error
            raise
        self.driven = False

    def at_this_time(self, statement: str) -> str:
        """Return the statement with what has to be sent before it, so that the server knows the time."""
        database, begins = self.database, self.begins
        self.begins = False
        at = int(database.clock.at * 1_000_000)
        if begins or (not self.autocommit and self.status == psycopg2.extensions.STATUS_READY):
            database.clock_at = database.clock.at
            if not begins:
                self.waits_s = None
            return f"{'BEGIN; ' if begins else ''}{SET_NOW % at}{statement}"
        if database.clock.at > database.clock_at + BEHIND_S and statement != "COMMIT":
            database.clock_at = database.clock.at
            return f"SELECT {SET_CLOCK % at}; {statement}"
        return statement

    def step(self, name: str, do: Any, changes: bool) -> None:
        """Make a step with this connection; a process that uses one owns it from then on."""

        def run() -> None:
            do()
            if changes:
                self.committed()

        if changes:
            self.hold()
        step(
            name,
            run,
            *FAULTS,
            error=lambda: psycopg2.OperationalError(GONE),
            lose=self.lose,
            changes=changes,
        )

    def hold(self, found_nothing: bool = False) -> None:
        """Let others commit before the next step, where the schedule says so."""
        process = current()
        if process is not None and not process.dead:
            process.scheduler.hold(found_nothing)

    def committed(self) -> None:
        """Note that others may see what was written."""
        process = current()
        if process is not None:
            process.scheduler.commits += 1
        self.database.committed = True

    def require_alive(self) -> None:
        """Raise Crash where the process is dead."""
        process = current()
        if process is not None and process.dead:
            raise Crash
        if self.lost:
            raise psycopg2.InterfaceError("connection already closed")
        if self.abandoned:
            raise RuntimeError("a process has got the connection of a dead one")  # ours, not the product's
        if process is not None and process is not self.owner:
            self.owner = process
            process.connections.append(self)

    def commit(self) -> None:
        """Commit; a transaction that did something makes a step of it."""
        if current() is None:
            self.drive(super().commit)
            return
        self.require_alive()
        if self.status != psycopg2.extensions.STATUS_READY:
            commit = super().commit

            def do() -> None:
                with self.database.releasing(self):
                    self.drive(commit)

            self.step("COMMIT", do, changes=True)

    def rollback(self) -> None:
        """Roll back, unless the process is dead: its server session is another one's business."""
        process = current()
        if self.abandoned or self.closed or (process is not None and process.dead):
            return
        with self.database.releasing(self):
            self.drive(super().rollback)

    def close(self) -> None:
        """Close; the session of a dead process stays until the schedule ends it."""
        if self.abandoned or self.closed:
            return
        if current() is None:
            self.database.release(self)
        else:
            self.database.end(self)

    @property
    def closed(self) -> int:
        """Return 0 while it is open, for all that its process can know."""
        return 2 if self.lost else super().closed

    def lose(self) -> None:
        """Have the network lose it; its session is of use again in the next schedule."""
        if self.driven or super().closed:
            self.database.end(self)
            return
        self.begin_anew()
        self.lost = True
        self.database.lost.append(self)

    def in_use(self) -> bool:
        """Tell whether a transaction is open on the server, or a statement is under way."""
        return (
            bool(self.closed) or self.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE
        )

    def begin_anew(self) -> None:
        """Forget what was not committed, as a new session does; only what it prepared stays."""
        with super().cursor() as run, self.database.releasing(self):
            super().rollback()
            self.autocommit = True
            run.execute("ROLLBACK")
        self.autocommit = False

    def really_close(self) -> None:
        """Close the socket."""
        super().close()


class Database:
    """One database of a server, and a session of our own to look at the others."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.dsn = url.replace("+psycopg2", "", 1)
        self.clock = clock
        self.clock_at = 0.0  # what the server was told last
        self.committed = True  # something, since the latest snapshot
        self._prepare()
        self.monitor = psycopg2.connect(self.dsn)
        self.monitor.autocommit = True
        self._cursor = self.monitor.cursor()
        self._cursor.execute(f"PREPARE snapshot (text) AS {SNAPSHOT}")
        self.seen = ""  # the state of all transactions, at the latest snapshot
        self.emptied = 0
        self.blocked: dict[int, Any] = {}
        self.released = 0  # how often locks may have been released
        self.known_blocked: dict[int, int] = {}  # `released` when a session was last seen blocked
        self.spare: list[Any] = []  # sessions of dead processes, as good as new
        self.lost: list[Any] = []  # sessions that were lost in this schedule, as good as new after it
        self.open: dict[Engine, Any] = {}  # the latest connection of each
        psycopg2.extensions.set_wait_callback(self._wait)

    def _prepare(self) -> None:
        setup = psycopg2.connect(self.dsn)
        setup.autocommit = True
        with setup.cursor() as run:
            run.execute(SCHEMA)
            run.execute(DEFAULTS)
            for table, column, default in run.fetchall():
                run.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT sim.{default}")
            name = setup.info.dbname
            run.execute(f"ALTER DATABASE {name} SET search_path = sim, pg_catalog, public")
        setup.close()

    def close(self) -> None:
        """Give the driver back as it was."""
        for connection in (*self.spare, *self.lost):
            connection.really_close()
        psycopg2.extensions.set_wait_callback(None)
        self.monitor.close()

    def ask(self, query: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query of our own."""
        self._cursor.execute(query, params)
        return self._cursor.fetchall()

    def snapshot(self) -> tuple[Any, ...] | None:
        """Return all that is committed, of one moment; None if nothing was written since the last time."""
        self.committed = False
        rows = self.ask("EXECUTE snapshot (%s)", (self.seen,))
        if not rows:
            return None
        *found, self.seen = rows[0]
        return tuple(found)

    def run(self, statement: str) -> None:
        """Run a statement of our own."""
        self._cursor.execute(statement)

    def empty(self) -> None:
        """Empty all tables, in new files, so that rows lie in the same places the next time."""
        self._cursor.execute("SELECT sim.empty()")
        self.emptied, self.seen = self.emptied + 1, ""
        self.spare += self.lost
        self.lost = []
        if self.emptied % 50 == 0:
            self._cursor.execute("VACUUM pg_class")  # which has a row more for each new file

    def end_left(self) -> None:
        """End sessions that a schedule left within a transaction: the next one would wait for their locks."""
        self._cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        )

    def set_clock(self, at: float) -> None:
        """Have the server's clock say so; it never goes back within a schedule."""
        self._cursor.execute("SELECT setval('sim.clock', %s)", (int(at * 1_000_000),))
        self.clock_at, self.committed = at, True

    def own(self, engine: Engine) -> None:
        """Have an engine make connections whose statements are steps."""

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> Any:
            options["connection_factory"] = Connection
            return self.spare.pop() if self.spare else None

        # First of all that happens to a connection.
        @event.listens_for(engine, "connect", insert=True)
        def adopt(connection: Any, record: Any) -> None:
            if any(self.connection_of(other) is connection for other in self.open):
                raise RuntimeError("a session is given to two processes")  # ours, not the product's
            connection.database, connection.pid = self, connection.get_backend_pid()
            connection.abandoned = connection.begins = connection.lost = False
            record.info["prepared"] = connection.prepared
            connection.owner = current()
            if connection.owner is not None:
                connection.owner.connections.append(connection)
            connection.engine = engine
            self.open[engine] = connection

    def connection_of(self, engine: Engine) -> Any:
        """Return an engine's latest connection if it is open; None if its process died, or lost it."""
        found = self.open.get(engine)
        is_open = found is not None and found.engine is engine and not found.closed and not found.abandoned
        return found if is_open else None

    def has_one(self, engine: Engine) -> bool:
        """Tell whether an engine has one open connection, which nobody uses."""
        pool: Any = engine.pool
        return pool.checkedin() == 1 and pool.checkedout() == 0 and self.connection_of(engine) is not None

    # Ends of sessions

    def release(self, connection: Any) -> None:
        """Have a dead process's session end: what it leaves is undone, and the next process gets the rest."""
        connection.abandoned = True
        if connection.lost or connection in self.spare:  # a process may have had it more than once
            return
        if connection.closed or connection.driven:
            self.end(connection)
        else:
            connection.begin_anew()
            self.spare.append(connection)

    def end(self, connection: Any) -> None:
        """End a session, and wait until its locks are gone."""
        pid = connection.pid
        self.blocked.pop(pid, None)
        with self.releasing(connection):
            self._cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
            until = time.monotonic() + 5
            while self.ask("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)):
                if time.monotonic() > until:
                    raise Broken(f"session {pid} does not end")
        if not connection.driven:
            connection.really_close()

    def cancel(self, connection: Any) -> None:
        """Have what a session waits for end with an error, as after too long a wait."""
        self.released += 1
        self._cursor.execute("SELECT pg_cancel_backend(%s)", (connection.pid,))

    # Waits

    def _wait(self, connection: Any) -> None:
        while (state := connection.poll()) != POLL_OK:
            if state != POLL_READ:
                select.select([], [connection.fileno()], [], 1)
                continue
            process = current()
            watched = process is not None and isinstance(connection, Connection)
            if not _readable(connection, LATE_S if watched else 1) and watched:
                self._look(connection, process)

    def _look(self, connection: Any, process: Any) -> None:
        if not self._is_blocked(connection):
            return
        self.blocked[connection.pid] = connection
        scheduler = process.scheduler
        if process.name.startswith("relay"):
            scheduler.break_off(f"housekeeping waits for a lock: {process.name} {process.at}")
        process.blocked_on = connection
        fault = scheduler.fault((Fault.ERROR_BEFORE, Fault.CRASH_BEFORE, Fault.SLOW_CRASH))
        scheduler.tell("waits for a lock" if fault is Fault.NONE else f"waits for a lock: {fault}")
        if fault is Fault.ERROR_BEFORE:
            self.cancel(connection)
        elif fault is not Fault.NONE:
            process.blocked_on = None
            scheduler.die(process, slowly=fault is Fault.SLOW_CRASH)
        if connection.waits_s is not None:
            process.wakes_at = self.clock.at + connection.waits_s
        process.pause()
        if connection.waits_s is not None and not self.has_answer(connection):
            connection.has_waited = True
            self.cancel(connection)
        process.blocked_on = process.wakes_at = None
        self.blocked.pop(connection.pid, None)
        self.known_blocked.pop(connection.pid, None)

    def has_answer(self, connection: Any) -> bool:
        """Tell whether a statement that waited for a lock has gone on."""
        if self.known_blocked.get(connection.pid) == self.released:
            return False
        while not _readable(connection, 0):
            if self._is_blocked(connection):
                return False
            _readable(connection, 0.002)
        if self.known_blocked.get(connection.pid) != ANSWERED:  # what it waited in front of may be free now
            self.known_blocked[connection.pid] = ANSWERED
            self.released += 1
        return True

    @contextmanager
    def releasing(self, connection: Any) -> Iterator[None]:
        """Have those who wait for this session go on in the order in which they came.

        PostgreSQL wakes all who wait for a transaction at once, and any of them may be the first.
        """
        others = [one for one in self.blocked.values() if one is not connection and not one.closed]
        waiting = others[:1]
        if len(others) > 1:
            waiting = [one for one in others if connection.pid in self._blockers(one.pid)]
        stopped = waiting[1:]
        try:
            for one in stopped:
                os.kill(one.pid, signal.SIGSTOP)
            yield
            self.released += 1
            for one, following in pairwise(waiting):
                self.has_answer(one)
                os.kill(following.pid, signal.SIGCONT)
                stopped.remove(following)
        finally:
            self.released += 1
            for one in stopped:
                os.kill(one.pid, signal.SIGCONT)

    def _is_blocked(self, connection: Any) -> bool:
        """Tell whether others keep it waiting; a deadlock is about to be noticed."""
        pid = connection.pid
        waits = {one: set(self._blockers(one)) for one in {*self.blocked, pid}}
        reached, new = set(), set(waits[pid])
        while new:
            reached |= new
            new = set().union(*(waits.get(one, set()) for one in new)) - reached
        is_blocked = bool(waits[pid]) and pid not in reached
        if is_blocked:
            self.known_blocked[pid] = self.released
        return is_blocked

    def _blockers(self, pid: int) -> list[int]:
        [(pids,)] = self.ask("SELECT pg_blocking_pids(%s)", (pid,))
        return list(pids)


def _readable(connection: Any, seconds: float) -> bool:
    return bool(select.select([connection.fileno()], [], [], seconds)[0])
