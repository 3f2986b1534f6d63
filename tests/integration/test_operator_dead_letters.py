"""An operator's work on dead letters: list, replay, discard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from local import ROOT
from messaging.dead_letters import DeadLetter
from messaging.operator.replaying import replay
from messaging.postgres.dead_letters import DeadLetters, NotReplayable
from messaging.texts import storable
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, refused

HEADERS = {"task": "allocation.allocate", "id": "t1", "retries": 0, "own": "Ü"}


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app on an empty database."""
    yield from app_on(clean_database)


@pytest.fixture
def letters(app: MessagingApp) -> DeadLetters:
    """The dead letters of that database."""
    return DeadLetters(app.runtime.engine)


def keep(app: MessagingApp, **facts: Any) -> str:
    """Store a letter and return its id."""
    usual = {
        "reason": "unknown task",
        "error": "no such task",
        "task": HEADERS["task"],
        "queue": "allocation.events",
    }
    app.runtime.dead_letters.add(DeadLetter(**{**usual, **facts}))
    return DeadLetters(app.runtime.engine).find(limit=1)[0].id


def taken(app: MessagingApp) -> list[Any]:
    """Remove the messages from the letters' original queue."""
    messages = []
    with app.connection_for_read() as connection, connection.SimpleQueue("allocation.events") as queue:
        while queue.qsize():
            messages.append(queue.get(block=False))
            messages[-1].ack()
    return messages


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b'[[], {"qty": 3}, {}]', "application/json", "utf-8"),
        (bytes(range(256)), "application/octet-stream", "binary"),
        ('[["Ü"], {}, {}]'.encode("latin-1"), "application/json", "latin-1"),
    ],
)
def test_a_message_is_replayed_unchanged(
    app: MessagingApp, letters: DeadLetters, body, content_type, encoding
):
    letter_id = keep(
        app, body=body, headers=HEADERS, content_type=content_type, content_encoding=encoding,
        properties={"correlation_id": "t1", "priority": 3, "delivery_tag": "old", "delivery_info": {}},
    )  # fmt: skip

    replay(app.dispatcher, letters, letter_id, "ann")

    [message] = taken(app)
    sent = message.body if isinstance(message.body, bytes) else message.body.encode(encoding)
    assert sent == body
    assert (message.content_type, message.content_encoding) == (content_type, encoding)
    assert message.headers == HEADERS
    assert message.properties["correlation_id"] == "t1"
    assert message.delivery_tag != "old"


def test_a_message_is_replayed_once_whatever_the_number_of_operators(app: MessagingApp, letters: DeadLetters):
    letter_id = keep(app, body=b"[[], {}, {}]", headers=HEADERS, content_type="application/json")

    def press() -> bool:
        try:
            replay(app.dispatcher, letters, letter_id, "ann")
        except NotReplayable:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        pressed = [pool.submit(press) for _ in range(4)]
        assert sum(press.result(timeout=60) for press in pressed) == 1

    assert len(taken(app)) == 1


def test_a_message_for_an_unknown_task_is_replayed_only_with_anyway(app: MessagingApp, letters: DeadLetters):
    letter_id = keep(app, task="allocation.later", body=b"[[], {}, {}]", headers=HEADERS)

    with pytest.raises(NotReplayable, match=r"no task allocation\.later"):
        replay(app.dispatcher, letters, letter_id, "ann")
    assert letters.find("open")

    replay(app.dispatcher, letters, letter_id, "ann", anyway=True)
    assert len(taken(app)) == 1


@pytest.mark.parametrize("act", ["replay", "discard"])
def test_what_is_not_in_the_audit_has_not_been_done(app: MessagingApp, letters: DeadLetters, act: str):
    """A letter is settled and audited in one transaction, whenever the operator's program dies."""
    letter_id = keep(app, body=b"[[], {}, {}]", headers=HEADERS)
    acts: dict[str, Callable[[], object]] = {
        "replay": lambda: replay(app.dispatcher, letters, letter_id, "ann"),
        "discard": lambda: letters.discard(letter_id, "a port scan", "ann"),
    }

    with refused(app, "INSERT INTO audit"), pytest.raises(RuntimeError, match="refused"):
        acts[act]()
    assert [one.id for one in letters.find("open")] == [letter_id]
    assert taken(app) == []

    acts[act]()
    assert letters.find("open") == []
    entry = (act, f"dead letter {letter_id}", "a port scan" if act == "discard" else None, 1, "done")
    assert ask(app, "SELECT actor, action, subject, reason, count, outcome FROM audit") == [("ann", *entry)]


def test_letters_are_found_by_state_reason_and_task(app: MessagingApp, letters: DeadLetters):
    discarded = keep(app, reason="undecodable body", task=None)
    letters.discard(discarded, "a port scan", "ann")
    waiting = keep(app)

    def ids(**filters: Any) -> list[str]:
        return [letter.id for letter in letters.find(**filters)]

    assert ids() == [waiting]
    assert ids(state="discarded") == [discarded]
    assert ids(state="replayed") == []
    assert ids(state="all") == [waiting, discarded]
    assert ids(state="all", reason="UNDECODABLE") == [discarded]
    assert ids(state="all", task="allocate") == [waiting]
    with pytest.raises(NotReplayable, match="has already been discarded"):
        letters.discard(discarded, "again", "bob")


def test_a_binary_body_is_shown_in_base64(app: MessagingApp, letters: DeadLetters):
    letter = letters.get(keep(app, body=b"\xff\x00"))

    assert letter is not None
    assert letter.shown_body == "base64:/wA="


def keep_large(app: MessagingApp, count: int, megabytes: int, age_s: float = 0) -> None:
    """Store letters with bodies of this many MiB, written by the server itself."""
    query = text(
        "INSERT INTO dead_letters (id, reason, headers, properties, body, error, at)"
        " SELECT gen_random_uuid(), 'invalid message', '{}', '{}',"
        "        convert_to(repeat('x', :bytes), 'UTF8'), 'body is over 1048576 bytes',"
        "        now() - make_interval(secs => :age) FROM generate_series(1, :count)"
    )
    facts = {"count": count, "bytes": megabytes * 2**20, "age": age_s}
    with app.runtime.engine.begin() as connection:
        connection.execute(query, facts)


#: Runs the tool, and prints its own peak memory in KiB. `wait4` is of no use: its figure for a child starts
#: with the parent's memory.
MEASURED = """
import atexit, re, runpy, sys
from pathlib import Path
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
runpy.run_module("allocation", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def tool(app: MessagingApp) -> Callable[..., tuple[str, float]]:
    """`tool("dead-letters", "list")` returns the tool's output, and its peak memory in MiB."""
    env = {**os.environ, "ALLOCATION_DATABASE_URL": app.runtime.settings.database_url}

    def run(*arguments: str) -> tuple[str, float]:
        command = [sys.executable, "-c", MEASURED, *arguments]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout, int(done.stderr.split()[-1]) / 1024

    return run


def test_listing_40_letters_of_16_mib_takes_no_more_memory_than_listing_none(app, tool):
    usual = tool("dead-letters", "list")[1]
    keep_large(app, 40, 16)

    for arguments in ((), ("--json",)):
        printed, peak = tool("dead-letters", "list", *arguments)
        assert peak < usual + 20
        assert len(printed) < 1_000_000

    letters = json.loads(printed)
    assert len(letters) == 40
    assert letters[0]["body_bytes"] == 16 * 2**20
    assert letters[0]["body_head"] == "x" * 4096


def test_showing_a_letter_of_16_mib_loads_one_body(app, tool):
    keep_large(app, 3, 16)
    [letter_id] = [letter.id for letter in DeadLetters(app.runtime.engine).find(limit=1)]

    printed, peak = tool("dead-letters", "show", letter_id)
    assert peak < 400
    assert "--json prints all" in printed
    assert len(printed) < 50_000

    printed, peak = tool("dead-letters", "show", letter_id, "--json")
    assert peak < 600
    assert json.loads(printed)["body"] == "x" * 16 * 2**20


def test_the_beginning_of_a_body_may_end_inside_a_character(app: MessagingApp, letters: DeadLetters):
    keep(app, body=("x" + "Ü" * 4096).encode())

    [letter] = letters.find()

    assert letter.shown_head == "x" + "Ü" * 2047
    assert letter.body_bytes == 8193


def test_old_letters_are_deleted_a_few_per_transaction_however_large(app: MessagingApp):
    """Each transaction deletes at most 16 MiB and one letter more, so it ends before anybody waits."""
    keep_large(app, 1, 1)
    with app.runtime.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO dead_letters (id, reason, headers, properties, body, error, at)"
                " SELECT gen_random_uuid(), 'old', '{}', '{}', large.body, '', now() - interval '9 days'"
                " FROM (SELECT string_agg(uuid_send(gen_random_uuid()), '') AS body"
                "       FROM generate_series(1, 262144)) large, generate_series(1, 12)"
            )
        )
    before = transactions_with_deletes(app)

    assert app.runtime.dead_letters.prune(86400) == 12

    assert transactions_with_deletes(app) - before >= 2
    assert ask(app, "SELECT reason FROM dead_letters") == [("invalid message",)]


def transactions_with_deletes(app: MessagingApp) -> int:
    """Return the id of the next transaction: only writing transactions get one."""
    return int(ask(app, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0])


def test_pruning_does_not_wait_for_a_locked_letter(app: MessagingApp, letters: DeadLetters):
    keep_large(app, 3, 1, age_s=9 * 86400)
    letter_id = letters.find()[0].id

    with app.runtime.engine.begin() as somebody:
        somebody.execute(
            text("SELECT FROM dead_letters WHERE id = CAST(:id AS uuid) FOR UPDATE"), {"id": letter_id}
        )
        assert app.runtime.dead_letters.prune(86400) == 2

    assert app.runtime.dead_letters.prune(86400) == 1


@pytest.mark.parametrize("wrong", ["\x00", "\ud800", "a\udcffb\x00"])
def test_any_text_in_a_message_can_be_stored(app: MessagingApp, letters: DeadLetters, wrong: str):
    texts = ("reason", "error", "task", "task_id", "queue", "content_type", "content_encoding")
    letter_id = keep(app, headers={"own": wrong}, properties={"own": wrong}, **dict.fromkeys(texts, wrong))

    letters.discard(letter_id, wrong, "ann")

    letter = letters.get(letter_id)
    assert letter is not None
    assert {getattr(letter, name) for name in texts} == {letter.discard_reason} == {storable(wrong)}
