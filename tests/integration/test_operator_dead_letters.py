"""Dead letters as an operator handles them: found, sent again as they came, given up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from messaging.dead_letters import DeadLetter
from messaging.operator.dead_letters import DeadLetters, NotReplayable
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on

HEADERS = {"task": "allocation.allocate", "id": "t1", "retries": 0, "own": "Ü"}


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app over an empty database."""
    yield from app_on(clean_database)


@pytest.fixture
def letters(app: MessagingApp) -> DeadLetters:
    """The dead letters of that database."""
    return DeadLetters(app.runtime.engine)


def keep(app: MessagingApp, **facts: Any) -> str:
    """Keep a letter and return its id."""
    usual = {
        "reason": "unknown task",
        "error": "no such task",
        "task": HEADERS["task"],
        "queue": "allocation.events",
    }
    app.runtime.dead_letters.add(DeadLetter(**{**usual, **facts}))
    return DeadLetters(app.runtime.engine).find(limit=1)[0].id


def taken(app: MessagingApp) -> list[Any]:
    """Take the messages off the queue where the letters came from."""
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
def test_a_message_is_sent_again_as_it_came(
    app: MessagingApp, letters: DeadLetters, body, content_type, encoding
):
    letter_id = keep(
        app, body=body, headers=HEADERS, content_type=content_type, content_encoding=encoding,
        properties={"correlation_id": "t1", "priority": 3, "delivery_tag": "old", "delivery_info": {}},
    )  # fmt: skip

    letters.replay(app, app.runtime, letter_id)

    [message] = taken(app)
    sent = message.body if isinstance(message.body, bytes) else message.body.encode(encoding)
    assert sent == body
    assert (message.content_type, message.content_encoding) == (content_type, encoding)
    assert message.headers == HEADERS
    assert message.properties["correlation_id"] == "t1"
    assert message.delivery_tag != "old"


def test_a_message_goes_out_once_however_many_press(app: MessagingApp, letters: DeadLetters):
    letter_id = keep(app, body=b"[[], {}, {}]", headers=HEADERS, content_type="application/json")

    def press() -> bool:
        try:
            letters.replay(app, app.runtime, letter_id)
        except NotReplayable:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        pressed = [pool.submit(press) for _ in range(4)]
        assert sum(press.result(timeout=60) for press in pressed) == 1

    assert len(taken(app)) == 1


def test_what_this_release_does_not_know_is_sent_only_anyway(app: MessagingApp, letters: DeadLetters):
    letter_id = keep(app, task="allocation.later", body=b"[[], {}, {}]", headers=HEADERS)

    with pytest.raises(NotReplayable, match=r"no task allocation\.later"):
        letters.replay(app, app.runtime, letter_id)
    assert letters.find("open")

    letters.replay(app, app.runtime, letter_id, anyway=True)
    assert len(taken(app)) == 1


def test_letters_are_found_by_state_reason_and_task(app: MessagingApp, letters: DeadLetters):
    discarded = keep(app, reason="undecodable body", task=None)
    letters.discard(discarded, "a port scan")
    waiting = keep(app)

    def ids(**filters: Any) -> list[str]:
        return [letter.id for letter in letters.find(**filters)]

    assert ids() == [waiting]
    assert ids(state="discarded") == [discarded]
    assert ids(state="replayed") == []
    assert ids(state="all") == [waiting, discarded]
    assert ids(state="all", reason="UNDECODABLE") == [discarded]
    assert ids(state="all", task="allocate") == [waiting]
    with pytest.raises(NotReplayable, match="was discarded already"):
        letters.discard(discarded, "again")


def test_a_body_that_is_no_text_is_shown_in_base64(app: MessagingApp, letters: DeadLetters):
    letter = letters.get(keep(app, body=b"\xff\x00"))

    assert letter is not None
    assert letter.shown_body == "base64:/wA="
