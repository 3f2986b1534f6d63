"""The command line of the client's outbox: what it prints, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine

from allocation.client import Allocate, outbox
from local import ROOT
from messaging.client.answers import Outcome
from messaging.client.connections import statements
from messaging.client.tool import outbox_tool


def run(*arguments: str) -> Result:
    return CliRunner().invoke(outbox_tool(outbox), arguments)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The database of an app in which one command waits."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        outbox.create_table(connection)
        outbox.send(connection, Allocate("o1", "LAMP", 1), key="a")
    engine.dispose()
    return url


def test_what_waits_is_printed(database_url):
    said = run("relay", "--database-url", database_url, "--status")

    assert said.output.splitlines()[:3] == ["unsent 1", "unanswered 0", "unhandled 0"]
    assert said.exit_code == 0


def connect() -> sqlite3.Connection:
    """Connect as an app without SQLAlchemy does."""
    return sqlite3.connect(os.environ["SHOP_FILE"])


def test_a_function_of_the_app_may_connect_instead(database_url, monkeypatch):
    monkeypatch.setenv("SHOP_FILE", database_url.removeprefix("sqlite:///"))

    said = run("relay", "--connect", f"{__name__}:connect", "--status")

    assert said.output.startswith("unsent 1\n")


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_the_statements_of_the_table_are_printed(dialect):
    printed = run("ddl", dialect).output

    assert printed.startswith("CREATE TABLE command_outbox (")
    assert printed.count(";\n") == len(outbox.ddl(dialect))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-answers"], "name the app's database"),
        (["--database-url", "sqlite://", "--connect", "a:b", "--keep-answers"], "name the app's database"),
        (["--database-url", "sqlite://"], "name what handles the answers"),
        (
            ["--database-url", "sqlite://", "--on-answer", "a:b", "--keep-answers"],
            "name what handles the answers",
        ),
        (["--database-url", "sqlite://", "--on-answer", "no.such.module:f"], "No module named"),
        (["--database-url", "sqlite://", "--on-answer", "json"], "decorates no function with on_answer"),
        (["--database-url", "sqlite://", "--keep-answers", "--signing-key", "k.pem"], "name all of"),
        (["--connect", "json:nothing", "--keep-answers"], "has no attribute 'nothing'"),
        (
            ["--database-url", "sqlite://", "--keep-answers", "--answer-after", "0"],
            "answer_after_s must be a positive number, not 0.0",
        ),
        (["--database-url", "sqlite://", "--keep-answers", "--retention", "nan"], "retention_s must be"),
    ],
)
def test_a_wrong_command_line_is_refused_in_a_sentence(arguments, said):
    refused = run("relay", *arguments)

    assert refused.exit_code == 2
    assert said in refused.output


def note_for_ever(_outcome: Outcome, connection: sqlite3.Connection) -> None:
    """Take note of an answer by a statement that never ends; no signal is heard meanwhile."""
    print("noting", flush=True)
    connection.execute("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n")


def send_answered(database_url: str, key: str) -> None:
    """Have a command in the table whose answer the app is to note."""
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
        outbox.send(connection, Allocate("o1", "LAMP", 1), key=key)
        [entry] = outbox.table.claim(statements(connection), "m1", 1, 60)
        outbox.table.answer(statements(connection), {entry.position: "{}"}, handled=False)
        connection.commit()


@contextmanager
def relaying(database_url: str, on_answer: Callable[..., None], *options: str) -> Iterator[Any]:
    """A relay as a process."""
    command = [
        sys.executable, "-m", "allocation.client", "relay", "--connect", f"{__name__}:connect", "--on-answer",
        f"{__name__}:{on_answer.__name__}", "--broker-url", "memory://", "--results-url", "disabled://",
    ]  # fmt: skip
    env = {**os.environ, "SHOP_FILE": database_url.removeprefix("sqlite:///")}
    with subprocess.Popen(
        [*command, *options], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE
    ) as relay:
        try:
            yield relay
        finally:
            relay.kill()


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--once"], 1)])
def test_a_relay_whose_database_does_not_answer_ends_at_sigterm(database_url, options, code):
    send_answered(database_url, "a")
    with relaying(database_url, note_for_ever, *options) as relay:
        assert relay.stdout.readline() == "noting\n"
        relay.terminate()

        assert relay.wait(20) == code


def note_by_process(outcome: Outcome, _connection: sqlite3.Connection) -> None:
    """Take note of an answer with the help of another process, and end that by SIGTERM, as a pool does."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    process.start()
    process.terminate()
    process.join()
    print(outcome.key, flush=True)


def test_a_relay_goes_on_when_a_process_of_the_app_is_ended(database_url):
    send_answered(database_url, "a")
    with relaying(database_url, note_by_process) as relay:
        assert relay.stdout.readline() == "a\n"
        send_answered(database_url, "b")

        assert relay.stdout.readline() == "b\n"
        relay.terminate()
        assert relay.wait(20) == 0


def test_a_client_loads_no_library_that_its_app_does_not_use():
    code = (
        "import sys; from allocation.client import outbox; import messaging.client.databases\n"
        "print([name for name in ('sqlalchemy', 'django.db', 'pydantic', 'psycopg2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)

    assert done.stdout == "[]\n"
