"""The table of commands behaves the same on each database and by each way to it."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extras import RealDictCursor
from sqlalchemy import CheckConstraint, Column, MetaData, String, Table, create_engine, insert
from sqlalchemy.orm import Session, registry

from allocation.client import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import AllocationError, InvalidSku
from messaging.client import Client
from messaging.client.answers import CommandFailed, Outcome
from messaging.client.connections import NoTransaction, Row, Statements, statements
from messaging.client.databases import Database, DriverDatabase, SqlAlchemyDatabase
from messaging.client.dialects import Dialect
from messaging.client.outbox import KeyTaken, Outbox
from messaging.client.relay import Relay
from messaging.client.table import CommandTable, Entry
from messaging.errors import InvalidMessage
from messaging.messages import Command
from tests.contract import mariadb

WAYS = [
    "sqlite by its driver",
    "sqlite by SQLAlchemy",
    "postgresql by its driver",
    "postgresql by SQLAlchemy",
    "mariadb by its driver",
    "mariadb by SQLAlchemy",
]


@pytest.fixture(scope="session")
def mariadb_server(server_folder: Path) -> Iterator[mariadb.MariaDB]:
    """A MariaDB for the whole run."""
    with mariadb.start(server_folder / "mariadb") as server:
        yield server


@dataclass
class Shop:
    """The database of an app, and its table of commands."""

    outbox: Outbox
    connect: Callable[[], Any]
    database: Database
    second: Database  # of another relay

    @property
    def table(self) -> CommandTable:
        return self.outbox.table

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin what the app would: a session, or a connection of the driver."""
        with self.database.transaction() as transaction:
            yield transaction

    def send(self, command: Command, key: str, group: str | None = None) -> None:
        with self.transaction() as transaction:
            self.outbox.send(transaction, command, key=key, group=group)

    def step(self, what: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Take a step of a relay."""
        return self._step(self.database, what, *values, **named)

    def step_of_another(self, what: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Take a step of another relay."""
        return self._step(self.second, what, *values, **named)

    def _step(self, database: Database, what: Callable[..., Any], *values: Any, **named: Any) -> Any:
        with database.transaction() as transaction:
            run = statements(transaction)
            self.table.begin(run)
            return what(run, *values, **named)

    def claim(self, task_id: str, size: int = 100, lease_s: float = 60) -> list[str]:
        entries: list[Entry] = self.step(self.table.claim, task_id, size, lease_s)
        return [entry.key for entry in entries]

    def answer(self, task_id: str, answer: str = '{"result": null}') -> None:
        def write(run: Any) -> None:
            entries = self.table.lock_message(run, task_id)
            self.table.answer(run, {entry.position: answer for entry in entries}, handled=False)

        self.step(write)

    def send_answered(self, keys: Sequence[str]) -> None:
        """Have commands in the table whose answers the app is to note."""
        for key in keys:
            self.send(Allocate(key, "LAMP", 2), key)
        self.claim("m1")
        self.answer("m1")

    def relay(self, note: Callable[[Outcome, Any], object], results: str = "disabled://") -> Relay:
        """Return a relay that sends nothing, so it needs no broker."""
        return self.outbox.relay(self.database, "memory://", results, on_answer=note)

    def note(self, note: Callable[[Outcome, Any], object], count: int, results: str = "disabled://") -> None:
        """Have the app note answers; each step of a relay notes one at least."""
        relay = self.relay(note, results)
        for _ in range(count):
            relay.step()

    def sql(self, sql: str, *values: object, transaction: Any = None) -> list[Any]:
        """Run a statement with the table's name in it; return the rows of a SELECT."""
        if transaction is None:
            with self.transaction() as own:
                return self.sql(sql, *values, transaction=own)
        run, sql = statements(transaction), sql.replace("{table}", self.table.name)
        returns_rows = sql.startswith(("SELECT", "ANALYZE TABLE"))
        return run.read(sql, values) if returns_rows else [run.write(sql, values)]

    @property
    def unhandled(self) -> int:
        """Return how many answers the app has not taken note of."""
        with self.transaction() as transaction:
            return self.outbox.waiting(transaction).unhandled


@pytest.fixture(params=WAYS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """Every test runs on each database and by each way to it, so that they cannot drift apart."""
    kind, _, way = request.param.partition(" by ")
    table = f"commands_{uuid4().hex[:12]}"
    outbox = Outbox("allocation", (Allocate, CreateBatch, ChangeBatchQuantity), (InvalidSku,), table)
    connect: Callable[[], Any]
    if kind == "sqlite":
        url, connect = (
            f"sqlite:///{tmp_path / 'shop.db'}",
            lambda: sqlite3.connect(tmp_path / "shop.db", timeout=1),
        )
    elif kind == "postgresql":
        url = request.getfixturevalue("postgres").url
        connect = lambda: psycopg2.connect(url.replace("+psycopg2", ""))  # noqa: E731
    else:
        server = request.getfixturevalue("mariadb_server")
        url, connect = server.url, server.connect
    if way == "SQLAlchemy":
        engines = [create_engine(url), create_engine(url)]
        databases: list[Database] = [SqlAlchemyDatabase(engine) for engine in engines]
    else:
        databases = [DriverDatabase(connect), DriverDatabase(connect)]
    shop = Shop(outbox, connect, *databases)
    with shop.transaction() as transaction:
        outbox.create_table(transaction)
    yield shop
    for database in databases:
        database.close()


def test_a_command_is_there_if_the_transaction_commits(shop):
    shop.send(Allocate("o1", "LAMP", 2), "a")

    assert shop.claim("m1") == ["a"]


def test_a_command_is_gone_with_its_transaction(shop):
    def change_ones_mind() -> None:
        with shop.transaction() as transaction:
            shop.outbox.send(transaction, Allocate("o1", "LAMP", 2), key="a")
            raise RuntimeError("the shop changed its mind")

    with pytest.raises(RuntimeError, match="changed its mind"):
        change_ones_mind()

    assert shop.claim("m1") == []


def test_the_same_command_under_the_same_key_is_one(shop):
    shop.send(Allocate("o1", "LAMP", 2), "a")
    shop.send(Allocate("o1", "LAMP", 2), "a")
    with shop.transaction() as transaction:
        for _ in range(2):
            assert shop.outbox.send(transaction, Allocate("o2", "LAMP", 2), key="b") == "b"

    assert shop.claim("m1") == ["a", "b"]


@pytest.mark.parametrize("other", [Allocate("o1", "LAMP", 3), ChangeBatchQuantity("o1", 2)])
def test_another_command_under_a_key_is_refused_and_the_transaction_goes_on(shop, other):
    with shop.transaction() as transaction:
        shop.outbox.send(transaction, Allocate("o1", "LAMP", 2), key="a")
        with pytest.raises(KeyTaken, match="'a' is that of another command"):
            shop.outbox.send(transaction, other, key="a")
        shop.outbox.send(transaction, other, key="b")

    assert shop.claim("m1") == ["a", "b"]


def test_keys_differ_by_case(shop):
    shop.send(Allocate("o1", "LAMP", 2), "order-é")
    shop.send(Allocate("o1", "LAMP", 2), "ORDER-É")

    assert shop.claim("m1") == ["order-é", "ORDER-É"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", None])
def test_a_key_that_cannot_be_one_is_refused(shop, key):
    with shop.transaction() as transaction, pytest.raises(InvalidMessage, match="idempotency_key must be"):
        shop.outbox.send(transaction, Allocate("o1", "LAMP", 2), key=key)


def test_a_command_of_another_project_is_refused(shop):
    class Cook(Command):
        """Not ours."""

    with shop.transaction() as transaction, pytest.raises(InvalidMessage, match="command must be one of"):
        shop.outbox.send(transaction, Cook(), key="a")


def test_a_command_that_fits_into_no_message_is_refused(shop):
    with shop.transaction() as transaction, pytest.raises(InvalidMessage, match="fields must be at most"):
        shop.outbox.send(transaction, Allocate("o1", "x" * 500_000, 2), key="a")


def test_long_commands_that_wait_for_the_next_message_count_as_unsent(shop):
    """Else their answers would be waited for as if they had been lost again and again."""
    for key in "abcdefg":
        shop.send(Allocate(key, "x" * 150_000, 2), key)

    messages = [shop.step(shop.table.claim, f"m{number}", 100, 60) for number in range(4)]

    claimed = [[(entry.key, entry.attempts) for entry in entries] for entries in messages]
    assert claimed == [[("a", 1), ("b", 1)], [("c", 1), ("d", 1)], [("e", 1), ("f", 1)], [("g", 1)]]


def test_any_text_is_kept_as_it_is(shop):
    odd = "%s ? :x '\"\\ \x00 é 🪔 " + "long" * 2000
    shop.send(Allocate(odd, "%(sku)s", 2), "100 % ?")
    shop.claim("m1")
    shop.answer("m1", '{"result": "%s 🪔"}')

    with shop.transaction() as transaction:
        outcome = shop.outbox.outcome(transaction, "100 % ?")
    assert outcome.command == Allocate(odd, "%(sku)s", 2)
    assert outcome.result == "%s 🪔"


def test_dates_are_dates_again(shop):
    command = CreateBatch("b1", "2026-01-31", 5, date(2026, 1, 31))
    shop.send(command, "a")
    shop.claim("m1")
    shop.answer("m1")

    with shop.transaction() as transaction:
        assert shop.outbox.outcome(transaction, "a").command == command


def error_for(shop, kind: str, text: str) -> Exception | None:
    """Have a command answered with an error, and return it as the app gets it."""
    shop.send(Allocate("o1", "LAMP", 2), "a")
    shop.claim("m1")
    shop.answer("m1", json.dumps({"error": {"type": kind, "message": text}}))
    with shop.transaction() as transaction:
        return shop.outbox.outcome(transaction, "a").error


def test_an_error_whose_class_takes_no_text_is_told_by_its_name(shop):
    """Else its answer could never be handed on."""
    error = error_for(shop, "RetryAfter", "not before 5 s have passed")

    assert isinstance(error, CommandFailed)
    assert str(error) == "RetryAfter: not before 5 s have passed"


def test_a_refusal_is_the_projects_own_error(shop):
    error = error_for(shop, "InvalidSku", "Invalid sku LAMP")

    assert isinstance(error, AllocationError)
    assert str(error) == "Invalid sku LAMP"


def test_what_a_relay_claimed_is_left_alone_by_others(shop):
    for key in "abcd":
        shop.send(Allocate(key, "LAMP", 2), key)

    with shop.database.transaction() as transaction:
        run = statements(transaction)
        shop.table.begin(run)
        assert len(shop.table.claim(run, "m1", 2, 60)) == 2
        if run.dialect.name != "sqlite":  # there the other one waits
            others = shop.step_of_another(shop.table.claim, "m2", 100, 60)
            assert [entry.key for entry in others] == ["c", "d"]

    assert shop.claim("m3") == ([] if run.dialect.name != "sqlite" else ["c", "d"])


def test_a_message_that_was_not_confirmed_is_sent_again_as_it_was(shop):
    for key in "abc":
        shop.send(Allocate(key, "LAMP", 2), key)
    shop.claim("m1", size=2, lease_s=0)
    shop.claim("m2", lease_s=60)

    task_id, entries = shop.step(shop.table.claim_again, 60)

    assert (task_id, [entry.key for entry in entries]) == ("m1", ["a", "b"])
    assert shop.step(shop.table.claim_again, 60) is None


def test_a_message_that_was_answered_is_not_sent_again(shop):
    shop.send(Allocate("o1", "LAMP", 2), "a")
    shop.claim("m1", lease_s=0)
    shop.answer("m1")

    assert shop.step(shop.table.claim_again, 60) is None
    assert shop.step(shop.table.under_way, 10) == []


def test_a_message_can_be_sent_earlier_than_planned_and_is_never_put_off(shop):
    for key in "ab":
        shop.send(Allocate(key, "LAMP", 2), key)
    shop.claim("m1", size=1, lease_s=60)
    shop.claim("m2", lease_s=60)
    shop.step(shop.table.hasten, "m1", -1)
    shop.step(shop.table.hasten, "m1", 60)

    task_id, _ = shop.step(shop.table.claim_again, 60)

    assert task_id == "m1"
    assert shop.step(shop.table.claim_again, 60) is None


def test_an_answer_that_comes_twice_is_written_once(shop):
    shop.send(Allocate("o1", "LAMP", 2), "a")
    shop.claim("m1")
    shop.answer("m1", '{"result": "first"}')
    shop.answer("m1", '{"result": "second"}')

    with shop.transaction() as transaction:
        assert shop.outbox.outcome(transaction, "a").result == "first"


def test_a_group_goes_out_one_by_one_in_order(shop):
    for key, group in (("a", "g"), ("b", "g"), ("c", None), ("d", "h"), ("e", "g")):
        shop.send(Allocate(key, "LAMP", 2), key, group)

    assert shop.claim("m1") == ["a", "c", "d"]
    assert shop.claim("m2") == []
    shop.answer("m1")
    assert shop.claim("m3") == ["b"]
    shop.answer("m3", '{"error": {"type": "InvalidSku", "message": ""}}')
    assert shop.claim("m4") == ["e"]


def test_an_answered_command_can_be_sent_again(shop):
    shop.send(Allocate("a", "LAMP", 2), "a")

    with shop.transaction() as transaction:
        assert not shop.outbox.send_again(transaction, "a")
    shop.claim("m1")
    shop.answer("m1")
    with shop.transaction() as transaction:
        assert shop.outbox.send_again(transaction, "a")

    assert shop.claim("m2") == ["a"]


def test_what_waits_is_counted_with_its_age(shop):
    with shop.transaction() as transaction:
        assert shop.outbox.waiting(transaction).count == 0
    for key in "abcdef":
        shop.send(Allocate(key, "LAMP", 2), key)
    shop.claim("m1", 1)
    shop.claim("m2", 2)
    shop.answer("m2")

    with shop.transaction() as transaction:
        waiting = shop.outbox.waiting(transaction)

    assert (waiting.unsent, waiting.unanswered, waiting.unhandled) == (3, 1, 2)
    assert 0 <= waiting.oldest_s < 60


def test_an_answer_that_the_app_failed_to_note_gets_its_turn_while_others_keep_coming(shop):
    noted: list[str] = []
    failures = ["a"]

    def note(outcome: Outcome, _transaction: Any) -> None:
        if outcome.key in failures:
            failures.remove(outcome.key)
            raise RuntimeError("the shop is not itself")
        noted.append(outcome.key)

    relay = shop.relay(note)
    until = time.monotonic() + 10
    for number in count():
        key = f"{number}" if number else "a"
        shop.send(Allocate(key, "LAMP", 2), key)
        shop.claim(f"m{number}")
        shop.answer(f"m{number}")
        relay.step()
        if "a" in noted or time.monotonic() > until:
            break

    assert not failures
    assert noted[-1] == "a"
    assert sorted(noted) == sorted(["a", *map(str, range(1, number + 1))])


class Order:
    """A row of the app's own, mapped by an ORM."""

    state: str


@pytest.mark.parametrize("shop", [way for way in WAYS if "SQLAlchemy" in way], indirect=True)
def test_an_answer_whose_note_cannot_be_committed_keeps_nobody_waiting(shop):
    """An ORM writes at the end of the transaction, when all notes of a batch are made."""
    orders = Table(
        f"{shop.table.name}_orders",
        MetaData(),
        Column("id", String(9), primary_key=True),
        Column("state", String(9), CheckConstraint("length(state) < 5")),
    )
    mapping = registry()
    mapping.map_imperatively(Order, orders)
    with shop.transaction() as session:
        orders.create(session.connection())
        session.execute(insert(orders), [{"id": key} for key in "abc"])
    shop.send_answered("abc")

    def note(outcome: Outcome, session: Session) -> None:
        session.get(Order, outcome.key).state = "too long" if outcome.key == "b" else "ok"

    shop.note(note, 3)
    mapping.dispose()

    assert dict(shop.sql("SELECT id, state FROM {table}_orders")) == {"a": "ok", "b": None, "c": "ok"}
    assert shop.unhandled == 1


@pytest.fixture
def told(shop: Shop) -> Callable[[], list[str]]:
    """A table of the app's own, in which each key can be once; returns what is in it."""
    shop.sql("CREATE TABLE {table}_told (what varchar(9) PRIMARY KEY)")
    return lambda: sorted(what for (what,) in shop.sql("SELECT what FROM {table}_told"))


@pytest.mark.parametrize("shop", [way for way in WAYS if "driver" in way], indirect=True)
def test_a_note_that_ends_the_transaction_takes_none_before_it_along(shop, told):
    shop.sql("INSERT INTO {table}_told VALUES ('b')")
    shop.send_answered("abc")

    def note(outcome: Outcome, connection: Any) -> None:
        try:
            shop.sql("INSERT INTO {table}_told VALUES (%s)", outcome.key, transaction=connection)
        except Exception:  # noqa: BLE001  each driver has its own
            connection.rollback()

    shop.note(note, 3)

    assert told() == ["a", "b", "c"]
    assert shop.unhandled == 1


@pytest.mark.parametrize("shop", ["postgresql by its driver"], indirect=True)
def test_an_error_that_one_note_hides_is_not_held_against_another(shop, told, caplog):
    """On PostgreSQL every statement after it fails."""
    shop.send_answered("abc")

    def note(outcome: Outcome, connection: Any) -> None:
        what = outcome.key if outcome.key != "a" else "longer than nine"
        with suppress(psycopg2.Error):
            shop.sql("INSERT INTO {table}_told VALUES (%s)", what, transaction=connection)

    shop.note(note, 3)

    assert told() == ["b", "c"]
    assert {record.args for record in caplog.records} == {("a",)}


@pytest.mark.parametrize("shop", ["sqlite by its driver"], indirect=True)
def test_a_step_prunes_some_and_the_next_one_goes_on(shop, monkeypatch):
    monkeypatch.setattr("messaging.client.relay.PRUNED_TOGETHER", 2)
    shop.send_answered("abcde")
    shop.relay(lambda *_: None).step()
    shop.sql("UPDATE {table} SET handled_at = 0")

    relay, left = shop.relay(lambda *_: None), []
    for _ in range(3):
        relay.step()
        left += shop.sql("SELECT count(*) FROM {table}")

    assert left == [(3,), (1,), (0,)]


@dataclass(frozen=True)
class Explained:
    """Runs statements, and keeps of each how the database finds its rows."""

    run: Statements
    plans: list[str]

    @property
    def dialect(self) -> Dialect:
        return self.run.dialect

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        self._explain(sql, values)
        return self.run.read(sql, values)

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        self._explain(sql, values)
        return self.run.write(sql, values)

    def _explain(self, sql: str, values: Sequence[object]) -> None:
        kind = self.dialect.name
        rows = self.run.read(f"EXPLAIN {'QUERY PLAN' if kind == 'sqlite' else ''} {sql}", values)
        if "position IN" not in sql:  # by the primary key
            self.plans.append("\n".join(self._line(row) for row in rows))

    def _line(self, row: Row) -> str:
        if self.dialect.name == "mysql":  # the rows of an index, and perhaps the share that a filter leaves
            return f"{row[5]} for {str(row[8]).split()[0]} rows"
        return str(row[-1])


def test_no_look_of_a_relay_reads_all_that_was_handled(shop):
    now = shop.step(lambda run: run.dialect.now)
    insert_10_000 = """
INSERT INTO {table} (idempotency_key, task, fields, created_at, due_at, task_id, answered_at, handled_at)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
SELECT CAST(n.i * 100 + m.i AS char(9)), 't', 'f', 0, 0, CAST(n.i AS char(9)), {now}, {now}
FROM n CROSS JOIN n m"""
    shop.sql(insert_10_000.replace("{now}", now))
    kind = shop.step(lambda run: run.dialect.name)
    if kind != "sqlite":
        shop.sql({"postgresql": "ANALYZE {table}", "mysql": "ANALYZE TABLE {table}"}[kind])
    for key, group in (("a", None), ("b", None), ("c", "g"), ("d", "g")):
        shop.send(Allocate(key, "LAMP", 2), key, group)

    with shop.database.transaction() as transaction:
        run = Explained(statements(transaction), [])
        shop.table.begin(run.run)
        assert len(shop.table.claim(run, "m1", 100, 0)) == 3
        assert shop.table.claim_again(run, 0)
        assert shop.table.under_way(run, 50) == ["m1"]
        entries = shop.table.lock_message(run, "m1")
        shop.table.answer(run, {entry.position: "{}" for entry in entries}, handled=False)
        assert len(shop.table.answered(run, 100, failed_before=False)) == 3
        assert shop.table.anything_waits(run)
        assert shop.table.prune(run, 3600, 100) == 0

    own = rf"{shop.table.name}_(unsent|messages|unanswered|unhandled|handled|groups)\b"
    for plan in run.plans:
        for line in re.findall(r"^(?:SCAN|SEARCH).*|.* Scan .*|.* rows$", plan, re.MULTILINE):
            assert re.search(own, line) or "Bitmap Heap" in line, plan
            assert kind != "mysql" or int(line.split()[-2]) < 1000, plan
    assert kind != "postgresql" or "Index Cond: (handled_at <" in run.plans[-1]


@dataclass(frozen=True)
class Results:
    """The results of a backend, in files."""

    url: str

    def store(self, task_id: str, lines: list[dict[str, Any]]) -> None:
        """Answer a message."""
        Client("allocation", "memory://", self.url).app.backend.store_result(task_id, lines, "SUCCESS")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(f"file://{tmp_path}")


@pytest.mark.parametrize("shop", ["sqlite by its driver"], indirect=True)
def test_a_key_that_the_backend_refuses_is_answered_with_that(shop, results):
    """Then its line has another id. A newer Python, for one, knows more printable characters."""
    for key in "ab":
        shop.send(Allocate(key, "LAMP", 2), key)
    shop.claim("m1")
    refusal = {"type": "InvalidMessage", "message": "idempotency_key must be printable"}
    results.store("m1", [{"id": "a", "result": "b1"}, {"id": "m1.1", "error": refusal}])
    outcomes: list[Outcome] = []

    shop.note(lambda outcome, _connection: outcomes.append(outcome), 2, results.url)

    assert [(outcome.key, outcome.result) for outcome in outcomes] == [("a", "b1"), ("b", None)]
    assert str(outcomes[1].error) == refusal["message"]


@pytest.mark.parametrize("shop", ["sqlite by its driver"], indirect=True)
def test_the_log_names_a_command_that_is_unavailable_each_time(shop, results, caplog):
    shop.send(Allocate("o1", "LAMP", 2), "a")
    shop.claim("m1", lease_s=0)
    for _ in range(4):
        shop.step(shop.table.claim_again, 0)
    problem = {"type": "Unavailable", "message": "the database rejected it"}
    results.store("m1", [{"id": "a", "error": problem}])

    shop.note(lambda *_: None, 1, results.url)

    assert "1 commands yet, such as 'a', sent 5 times: the database rejected it" in caplog.text


def test_an_error_that_no_sender_is_meant_to_get_is_an_unexpected_one():
    fields = '{"orderid": "o1", "sku": "LAMP", "qty": 1}'
    answer = '{"error": {"type": "RetryAfter", "message": "not before 5 s have passed"}}'

    outcome = Outbox("allocation", (Allocate,)).outcome_of(
        Entry(1, "a", "allocation.allocate", fields, 1, answer)
    )

    assert isinstance(outcome.error, CommandFailed)
    assert str(outcome.error) == "RetryAfter: not before 5 s have passed"


def test_what_was_handled_long_ago_is_pruned(shop):
    for key in "abc":
        shop.send(Allocate(key, "LAMP", 2), key)
    shop.claim("m1", 2)
    shop.answer("m1")

    def handle(run: Any) -> None:
        shop.table.handled(run, shop.table.answered(run, 1, failed_before=False))

    shop.step(handle)

    assert shop.step(shop.table.prune, 3600, 100) == 0
    assert shop.step(shop.table.prune, -1, 100) == 1
    with shop.transaction() as transaction:
        waiting = shop.outbox.waiting(transaction)
    assert (waiting.unsent, waiting.unhandled) == (1, 1)


def test_a_send_is_one_insert():
    outbox, statements_run = Outbox("allocation", (Allocate,)), list[str]()
    with closing(sqlite3.connect(":memory:")) as connection:
        outbox.create_table(connection)
        connection.commit()
        connection.set_trace_callback(statements_run.append)
        outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
        connection.set_trace_callback(None)

    assert [statement.split()[0] for statement in statements_run] == ["BEGIN", "INSERT"]


def committing_at_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a connection of a driver that is in autocommit mode."""
    if kind == "mariadb":
        connection = request.getfixturevalue("mariadb_server").connect()
        connection.autocommit(True)
        return connection
    if kind == "sqlite":
        return sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    connection = psycopg2.connect(request.getfixturevalue("postgres").url.replace("+psycopg2", ""))
    connection.autocommit = True
    return connection


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_a_connection_that_commits_each_statement_is_refused(kind, request, tmp_path):
    order = Allocate("o1", "LAMP", 1)
    with closing(committing_at_once(kind, request, tmp_path)) as connection, pytest.raises(NoTransaction):
        Outbox("allocation", (Allocate,)).send(connection, order, key="a")


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_a_transaction_that_was_begun_by_hand_will_do(kind, request, tmp_path):
    outbox = Outbox("allocation", (Allocate,), table=f"commands_{uuid4().hex[:12]}")
    with closing(committing_at_once(kind, request, tmp_path)) as connection:
        outbox.create_table(connection)
        connection.cursor().execute("BEGIN")
        outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
        connection.rollback()

        assert outbox.waiting(connection).unsent == 0


@pytest.mark.parametrize("shop", [way for way in WAYS if "driver" in way], indirect=True)
def test_a_connection_whose_rows_are_dictionaries_will_do(shop):
    def connect() -> Any:
        connection = shop.connect()
        if isinstance(connection, sqlite3.Connection):
            connection.row_factory = lambda cursor, row: dict(
                zip([column[0] for column in cursor.description], row, strict=True)
            )
        elif isinstance(connection, psycopg2.extensions.connection):
            connection.cursor_factory = RealDictCursor
        else:
            connection.cursorclass = mariadb.pymysql().cursors.DictCursor
        return connection

    database, noted = DriverDatabase(connect), list[str]()
    with database.transaction() as connection:
        for _ in range(2):
            shop.outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
    shop.claim("m1")
    shop.answer("m1")
    relay = shop.outbox.relay(
        database, "memory://", "disabled://", on_answer=lambda outcome, _: noted.append(outcome.key)
    )
    relay.step()
    relay.close()

    assert noted == ["a"]


def test_mysqls_own_driver_will_do(mariadb_server):
    outbox = Outbox("allocation", (Allocate,), table=f"commands_{uuid4().hex[:12]}")
    connect = mariadb_server.connect_by_mysqls_own_driver
    shop, noted = Shop(outbox, connect, DriverDatabase(connect), DriverDatabase(connect)), list[str]()
    with shop.transaction() as connection:
        outbox.create_table(connection)
    for _ in range(2):
        shop.send(Allocate("o1", "LAMP", 1), "a")
    shop.claim("m1")
    shop.answer("m1")

    shop.note(lambda outcome, _connection: noted.append(outcome.key), 1)

    assert noted == ["a"]
    assert shop.unhandled == 0
    shop.database.close()


@pytest.mark.parametrize("shop", ["postgresql by its driver"], indirect=True)
def test_a_command_that_is_pruned_while_it_is_sent_once_more_is_a_new_one(shop):
    class Cursor(psycopg2.extensions.cursor):
        """A relay prunes before this one reads."""

        def execute(self, query: str, values: Sequence[object] | None = None) -> None:
            if query.startswith("SELECT"):
                shop.sql("DELETE FROM {table}")
            super().execute(query, values)

    shop.send(Allocate("o1", "LAMP", 1), "a")
    with closing(shop.connect()) as connection:
        connection.cursor_factory = Cursor
        shop.outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
        connection.commit()

    assert shop.claim("m1") == ["a"]


def test_a_key_that_the_connection_would_change_is_refused(mariadb_server):
    outbox = Outbox("allocation", (Allocate,), table=f"commands_{uuid4().hex[:12]}")
    with closing(mariadb_server.connect(charset="utf8")) as connection:
        outbox.create_table(connection)
        for names in ({"key": "order-🪔"}, {"key": "order", "group": "🪔"}):
            with pytest.raises(InvalidMessage, match="charset=utf8mb4"):
                outbox.send(connection, Allocate("o1", "LAMP", 1), **names)
        outbox.send(connection, Allocate("🪔", "LAMP", 1), key="order-é")

        assert outbox.waiting(connection).unsent == 1


@pytest.mark.parametrize("shop", [way for way in WAYS if "SQLAlchemy" in way], indirect=True)
def test_an_engine_that_commits_each_statement_is_refused(shop):
    engine = create_engine(shop.database._engine.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(NoTransaction):
        shop.outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
    with Session(engine) as session, pytest.raises(NoTransaction):
        shop.outbox.send(session, Allocate("o1", "LAMP", 1), key="a")
    engine.dispose()


@pytest.mark.parametrize("shop", ["postgresql by its driver", "mariadb by its driver"], indirect=True)
def test_a_relay_refuses_a_connection_that_commits_each_statement(shop, request, tmp_path):
    """What the app does with an answer might be half of it."""
    kind = request.node.callspec.params["shop"].partition(" ")[0]
    database = DriverDatabase(lambda: committing_at_once(kind, request, tmp_path))
    relay = shop.outbox.relay(database, "memory://", "disabled://", keep_answers=True)

    with pytest.raises(NoTransaction):
        relay.step()
    relay.close()


def test_a_session_and_a_connection_of_sqlalchemy_will_do(tmp_path):
    outbox = Outbox("allocation", (Allocate,))
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        outbox.create_table(connection)
        outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
    with Session(engine) as session:
        outbox.send(session, Allocate("o2", "LAMP", 1), key="b")
        session.commit()

        assert outbox.waiting(session).unsent == 2
    engine.dispose()


def test_what_is_no_connection_is_refused():
    with pytest.raises(TypeError, match="no connection of a known driver"):
        Outbox("allocation", (Allocate,)).send(object(), Allocate("o1", "LAMP", 1), key="a")
