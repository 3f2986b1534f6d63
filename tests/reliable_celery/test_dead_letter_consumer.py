"""Unreadable messages: each becomes a dead letter, its sender gets an answer, and the worker survives."""

from __future__ import annotations

import base64
import inspect
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery.exceptions import NotRegistered
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import (
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

PLAIN = b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
MARK = {"task": "fixture.mark", "args": [1], "kwargs": {}, "options": {}}
MISSING = object()


def envelope(
    body: bytes = PLAIN, content_type: Any = "application/json", properties: Any = (), /, **headers: Any
) -> bytes:
    """Return a message as a sender puts it on the list; MISSING removes a header."""
    defaults = {"lang": "py", "task": "fixture.add", "id": str(uuid4()), "retries": 0, "root_id": None}
    known = {name: value for name, value in (defaults | headers).items() if value is not MISSING}
    delivery = {"exchange": "", "routing_key": "celery"}
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-type": content_type,
            "content-encoding": "utf-8",
            "headers": known,
            "properties": {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": delivery}
            | dict(properties),
        }
    ).encode()


def body(args: Any = (), kwargs: Any = None, **embed: Any) -> bytes:
    return json.dumps([list(args), kwargs or {}, embed]).encode()


def packed(**headers: Any) -> bytes:
    """Return a message without a serializer, whose encoding is one of Python's codecs that unpack."""
    item: bytes = envelope(b"packed", "application/data", **headers)
    return item.replace(b'"content-encoding": "utf-8"', b'"content-encoding": "BZ2"')


def old(task_id: str, /, **headers: Any) -> bytes:
    """Return a message of protocol 1, whose body names the task."""
    fields = {"task": "fixture.add", "id": task_id, "args": [1, 2], "kwargs": {}, "callbacks": None}
    none = dict.fromkeys(("lang", "task", "id", "retries", "root_id"), MISSING)
    return envelope(json.dumps(fields).encode(), **{**none, **headers})


#: The defect, the message, and a part of the sender's error.
REFUSED: list[tuple[str, Callable[[str], bytes], str]] = [
    ("body is no JSON", lambda i: envelope(b"{", id=i), "body cannot be read"),
    ("pickle", lambda i: envelope(b"cos\nsystem\n", "application/x-python-serialize", id=i), "pickle"),
    ("yaml", lambda i: envelope(b"a: 1", "application/x-yaml", id=i), "yaml"),
    ("unknown content type", lambda i: envelope(PLAIN, "a/b", id=i), "a/b"),
    ("plain text", lambda i: envelope(PLAIN, "application/text", id=i), "args, kwargs, embed"),
    ("body of two", lambda i: envelope(b"[[], {}]", id=i), "args, kwargs, embed"),
    ("kwargs as a list", lambda i: envelope(b"[[], [], {}]", id=i), "kwargs must be a table"),
    ("args as a text", lambda i: envelope(b'["ab", {}, {}]', id=i), "args must be a list"),
    ("body over a megabyte", lambda i: envelope(body(["x" * 1_100_000]), id=i), "1048576 bytes"),
    ("deep body", lambda i: envelope(b"[" * 5_000 + b"]" * 5_000, id=i), "body"),
    ("nested body", lambda i: envelope(b"[[" + b"[" * 99 + b"]" * 99 + b"], {}, {}]", id=i), "deep"),
    ("compressed body", lambda i: envelope(compression="gzip", id=i), "compressed"),
    ("body in an encoding that unpacks", lambda i: packed(id=i), "body must be JSON"),
    ("the same without a task", lambda i: packed(task=MISSING, id=i), "names no task"),
    (
        "body that is no base64",
        lambda i: envelope(PLAIN, "application/json", {"body_encoding": "rot13"}, id=i),
        "body",
    ),
    ("callback", lambda i: envelope(body(callbacks=[MARK]), id=i), "callbacks"),
    ("error callback", lambda i: envelope(body(errbacks=[MARK]), id=i), "errbacks"),
    ("chain", lambda i: envelope(body(chain=[MARK]), id=i), "chain"),
    ("chord", lambda i: envelope(body(chord=MARK), id=i), "chord"),
    ("callback as a header", lambda i: envelope(b"[[1, 2], {}, {}]", callbacks=[MARK], id=i), "callbacks"),
    ("embedded headers", lambda i: envelope(body(retries=10**9), id=i), "retries"),
    ("huge retries", lambda i: envelope(retries=10**9, id=i), "retries"),
    ("retries as a text", lambda i: envelope(retries="3", id=i), "retries"),
    ("retries as a bool", lambda i: envelope(retries=True, id=i), "retries"),
    ("no time as ETA", lambda i: envelope(eta="soon", id=i), "eta"),
    ("empty ETA", lambda i: envelope(eta="", id=i), "eta"),
    ("ETA in the far future", lambda i: envelope(eta="9999-12-31T23:59:59", id=i), "eta"),
    ("no time as expiry", lambda i: envelope(expires="never", id=i), "expires"),
    ("expiry as a number", lambda i: envelope(expires=7, id=i), "expires"),
    ("time limit as a number", lambda i: envelope(timelimit=5, id=i), "timelimit"),
    ("endless time limit", lambda i: envelope(timelimit=[1e12, None], id=i), "timelimit"),
    ("huge repr", lambda i: envelope(argsrepr="x" * 100_000, id=i), "headers"),
    ("root id as a list", lambda i: envelope(root_id=["a"], id=i), "root_id"),
    ("two lines as a name", lambda i: envelope(shadow="a\nb", id=i), "shadow"),
    ("group as a table", lambda i: envelope(group={"a": 1}, id=i), "group"),
    ("a method's name", lambda i: envelope(get="x", id=i), "get"),
    ("called directly", lambda i: envelope(called_directly=True, id=i), "called_directly"),
    (
        "reply to a table",
        lambda i: envelope(PLAIN, "application/json", {"reply_to": {"a": 1}}, id=i),
        "reply_to",
    ),
    ("no task in a body of protocol 1", lambda i: envelope(b"{}", task=MISSING, id=i), "task is missing"),
    ("ETA beside a body of protocol 1", lambda i: old(i, eta="2100-01-01T00:00:00"), "eta must be in"),
    ("a method's name beside it", lambda i: old(i, get="x"), "get is not a header"),
    ("a text as headers beside it", lambda i: old(i, headers="x"), "headers must be a table"),
]

#: Messages whose sender cannot be answered.
ANONYMOUS: list[tuple[str, bytes]] = [
    ("no id", envelope(id=MISSING)),
    ("unknown task without id", envelope(task="no.such", id=MISSING)),
    ("id as a number", envelope(id=5)),
    ("id with a NUL", envelope(id="a\x00b")),
    ("endless id", envelope(id="x" * 1_000)),
    ("raw text", b"hello"),
    ("raw bytes", b"\xff\x00"),
    ("list", b"[1, 2]"),
    ("no properties", b'{"body": "", "headers": {}}'),
    ("headers as a list", b'{"body": "", "headers": [], "properties": {"delivery_tag": "t"}}'),
    ("no headers", b'{"body": "e30=", "properties": {"body_encoding": "base64", "delivery_tag": "t"}}'),
    ("content type as a number", envelope(PLAIN, 5)),
]


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[Redis]:
    """This module's own Redis, since its worker runs throughout."""
    with Redis(server_folder / "dead-letters") as own:
        yield own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the worker's log and dead letters."""
    return tmp_path_factory.mktemp("dead-letters")


@pytest.fixture(scope="module")
def worker(server: Redis, folder: Path) -> Iterator[Child]:
    """A worker with our transport and our consumer."""
    child = make_worker(server, folder, "reader", "prefork", worker_consumer=OUR_CONSUMER)
    with running(child):
        yield child


@pytest.fixture
def broker(server: Redis) -> Iterator[redis.Redis]:
    """A plain client of the broker's database."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def letters(folder: Path) -> Callable[[], list[dict[str, Any]]]:
    """A function that returns the dead letters of this test."""
    file = folder / "letters.jsonl"
    file.unlink(missing_ok=True)
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def works_on(server: Redis, worker: Child) -> bool:
    """Return whether the worker answers a good task, and has nothing left to do."""
    result = sender(server).send_task("fixture.add", (1, 2)).get(timeout=60)
    eventually(lambda: unfinished(server) == 0, timeout=60, what="an empty broker")
    return bool(result == 3 and worker.running)


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_refused_message_is_stored_and_its_sender_gets_an_error(
    server, worker, broker, letters, make, error
):
    """The letter has the body as received; the sender gets InvalidMessage by name, with a readable text."""
    task_id = str(uuid4())
    raw = make(task_id)
    broker.lpush("celery", raw)

    with pytest.raises(Exception, match=error) as refusal:
        sender(server).AsyncResult(task_id).get(timeout=60)

    assert type(refusal.value).__name__ == "InvalidMessage"
    [letter] = eventually(letters)
    assert (letter["task_id"], letter["queue"]) == (task_id, "celery")
    assert error in letter["error"]
    if "base64" in letter["properties"].get("body_encoding", "") and "compression" not in letter["headers"]:
        assert bytes.fromhex(letter["body"]) == base64.b64decode(json.loads(raw)["body"])
    assert works_on(server, worker)
    assert marks(server) == {}


@pytest.mark.parametrize("raw", [row[1] for row in ANONYMOUS], ids=[row[0] for row in ANONYMOUS])
def test_a_message_without_an_address_is_stored(server, worker, broker, letters, raw):
    """Nobody can be told, so the letter is the only record."""
    broker.lpush("celery", raw)

    [letter] = eventually(letters)

    assert letter["queue"] == "celery"
    assert works_on(server, worker)


@pytest.mark.parametrize("task", ["no.such", "celery.starmap", "celery.chord_unlock"])
def test_a_task_outside_the_contract_is_stored_and_its_sender_gets_an_error(server, worker, letters, task):
    """Celery's own tasks that run other tasks are not part of it."""
    result = sender(server).send_task(task, (MARK, [[1]]), kwargs={"a": 1})

    with pytest.raises(NotRegistered):
        result.get(timeout=60)

    [letter] = eventually(letters)
    assert (letter["reason"], letter["task"], letter["task_id"]) == ("unknown task", task, result.id)
    assert works_on(server, worker)
    assert marks(server) == {}


def test_messages_of_protocol_1_are_read(server, worker, broker, letters):
    """Old senders are answered. Tools for tracing may add headers."""
    task_id = str(uuid4())
    broker.lpush("celery", old(task_id, traceparent="00-1", headers={"a": "b"}, correlation_id="c"))

    assert sender(server).AsyncResult(task_id).get(timeout=60) == 3
    assert letters() == []


def test_a_senders_own_headers_are_accepted(server, worker, letters):
    """Tracing adds such headers."""
    result = sender(server).send_task(
        "fixture.add", (1, 2), headers={"traceparent": "00-1", "headers": {"a": "b"}}
    )

    assert result.get(timeout=60) == 3
    assert letters() == []


def test_a_message_that_cannot_be_recorded_stays_until_it_can(server, worker, broker, folder, letters):
    """Meanwhile such messages take no places in the prefetch, whatever their number."""
    refuse = folder / "letters.refuse"
    refuse.touch()
    for number in range(10):
        broker.lpush("celery", envelope(id=f"bad{number}", retries="x"), b"garbage %d" % number)

    assert sender(server).send_task("fixture.add", (1, 2)).get(timeout=60) == 3
    assert letters() == []
    assert unfinished(server) == 20
    refuse.unlink()

    eventually(
        lambda: len(letters()) == 20, timeout=60, what="the dead letters, after the visibility timeout"
    )
    assert {letter["task_id"] for letter in letters()} == {None, *(f"bad{number}" for number in range(10))}
    assert works_on(server, worker)


@pytest.mark.slow
def test_every_message_ends_as_a_letter_or_a_result(server, worker, broker, letters):
    """Some 500 made-up messages: each is accounted for, and only tasks that were named have run."""
    seed = random.randrange(1_000_000)
    dice = random.Random(seed)
    sent = [_made_up(dice, number) for number in range(500)]
    with redis.Redis.from_url(server.url_of(1)) as client:
        client.flushdb()

    for raw in sent:
        broker.lpush("celery", raw)

    assert works_on(server, worker), f"seed {seed}"
    with redis.Redis.from_url(server.url_of(1)) as client:
        answered = {
            key.decode().removeprefix("celery-task-meta-") for key in client.keys("celery-task-meta-*")
        }
    unanswered = [letter for letter in letters() if letter["task_id"] not in answered]
    assert len(answered - {""}) - 1 + len(unanswered) == len(sent), f"seed {seed}"
    assert marks(server) == {}


JUNK = [
    None, True, -1, 10**30, 1.5, 1e300, "", "x", "a\x00b\n", "\ud800", "x" * 70_000,
    [], [1], [[[]]], {}, {"a": {"b": []}},
]  # fmt: skip
HEADERS = [
    "task", "eta", "expires", "retries", "timelimit", "group", "root_id", "parent_id", "shadow", "argsrepr",
    "stamps", "stamped_headers", "callbacks", "errbacks", "chain", "chord", "origin", "lang", "ignore_result",
    "get", "_protected", "called_directly", "is_eager", "replaced_task_nesting", "delivery_info",
    "properties", "compression", "x",
]  # fmt: skip
PROPERTIES = [
    "reply_to",
    "correlation_id",
    "priority",
    "body_encoding",
    "delivery_info",
    "delivery_tag",
    "expiration",
]


def _made_up(dice: random.Random, number: int) -> bytes:
    """A message with its own id and one to three defects, or by chance none."""
    headers: dict[str, Any] = {"id": f"made-up-{number}", "ignore_result": False}
    properties: dict[str, Any] = {}
    content, kind = PLAIN, "application/json"
    for _ in range(dice.randint(1, 3)):
        match dice.randrange(5):
            case 0 | 1:
                headers[dice.choice(HEADERS)] = dice.choice(JUNK)
            case 2:
                properties[dice.choice(PROPERTIES)] = dice.choice(JUNK)
            case 3:
                content = dice.choice(
                    [dice.randbytes(20), json.dumps(dice.choices(JUNK, k=3)).encode(), PLAIN[:-5]]
                )
            case 4:
                kind = dice.choice(["application/x-python-serialize", "text/plain", "", "application/data"])
    if headers["ignore_result"] is True:
        headers["ignore_result"] = False
    raw = envelope(content, kind, properties, **headers)
    return raw if dice.random() < 0.9 else raw[: dice.randrange(len(raw))] + b"#%d" % number


def test_celery_is_as_we_know_it():
    """A new Celery that changes what the consumer relies on fails here, not in production."""
    expected = {
        CeleryConsumer.connect: "(self)",
        CeleryConsumer.create_task_handler: None,
        CeleryConsumer.on_decode_error: "(self, message, exc)",
        CeleryConsumer.on_unknown_message: "(self, body, message)",
        CeleryConsumer.on_unknown_task: "(self, body, message, exc)",
        CeleryConsumer.on_invalid_task: "(self, body, message, exc)",
        CeleryConsumer.update_strategies: "(self)",
        CeleryRequest.cancel: "(self, pool, signal=None, emit_retry=True)",
        CeleryRequest.on_timeout: "(self, soft, timeout)",
        CeleryRequest.on_failure: "(self, exc_info, send_failed_event=True, return_ok=False)",
        CeleryRequest.acknowledge: "(self)",
    }

    for function, signature in expected.items():
        assert signature in (None, str(inspect.signature(function))), function.__qualname__
