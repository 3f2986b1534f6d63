"""The typed client with a real worker, and with unavailable servers."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from kombu.exceptions import EncodeError
from sqlalchemy import create_engine, text

from allocation.client import Allocate, AllocationClient, CreateBatch
from allocation.domain.errors import BatchAlreadyExists, InvalidSku, UnknownBatch
from local.ports import free_port
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.client import CommandFailed, NotAnswered
from messaging.client.answers import Answer
from messaging.errors import InvalidMessage, Unavailable
from tests.unread import unread


@pytest.fixture(scope="module")
def client(broker) -> Iterator[AllocationClient]:
    """A client with a timeout long enough for a busy machine."""
    with AllocationClient(broker.broker_url, broker.result_backend_url, timeout_s=30) as client:
        yield client


@pytest.fixture
def sku(client, worker) -> str:
    """The test's own product, with ten pieces on the shelf."""
    sku = f"LAMP-{uuid4()}"
    client.create_batch(ref=f"b-{sku}", sku=sku, qty=10)
    return sku


def test_a_call_returns_the_result(client, sku):
    assert client.allocate(orderid="o1", sku=sku, qty=10) == f"b-{sku}"
    assert client.allocate(orderid="o2", sku=sku, qty=1) is None


def test_a_refusal_is_raised_as_our_own_class(client, sku):
    with pytest.raises(InvalidSku, match="Invalid sku NONE"):
        client.allocate(orderid="o1", sku="NONE", qty=1)
    with pytest.raises(UnknownBatch):
        client.change_batch_quantity(ref="none", qty=1)
    with pytest.raises(BatchAlreadyExists):
        client.create_batch(ref=f"b-{sku}", sku=sku, qty=11)
    with pytest.raises(InvalidMessage) as caught:
        client.allocate(orderid="o1", sku=sku, qty=0)
    assert (caught.value.field, caught.value.rule) == ("qty", "must be at least 1")


def test_a_command_is_sent_without_waiting(client, sku):
    results = [client.delay(Allocate(f"o{number}", sku, 1)) for number in range(3)]

    assert [client.answer(result) for result in results] == [f"b-{sku}"] * 3
    assert client.answer(results[0].id) == f"b-{sku}"


def test_the_same_key_gives_the_first_answer_again(client, sku, backend):
    order = f"checkout-{uuid4()}"
    assert client.allocate(orderid="o1", sku=sku, qty=10, key=order) == f"b-{sku}"
    client.change_batch_quantity(ref=f"b-{sku}", qty=0)

    assert client.allocate(orderid="o1", sku=sku, qty=10, key=order) == f"b-{sku}"


def test_a_key_of_another_command_never_returns_the_success_of_the_first(client, sku):
    order = f"checkout-{uuid4()}"
    client.allocate(orderid="o1", sku=sku, qty=10, key=order)

    with pytest.raises(InvalidMessage, match="idempotency_key was used before, for another command"):
        client.allocate(orderid="o2", sku=sku, qty=10, key=order)


def test_a_repeat_after_a_refusal_is_attempted_anew(client, worker):
    sku, order = f"LAMP-{uuid4()}", f"checkout-{uuid4()}"
    with pytest.raises(InvalidSku):
        client.allocate(orderid="o1", sku=sku, qty=1, key=order)
    client.create_batch(ref=f"b-{sku}", sku=sku, qty=1)

    assert client.allocate(orderid="o1", sku=sku, qty=1, key=order) == f"b-{sku}"


def test_one_client_serves_many_threads(client, sku):
    client.change_batch_quantity(ref=f"b-{sku}", qty=1000)

    def allocate(number: int) -> str | None:
        return client.allocate(orderid=f"o{number}", sku=sku, qty=1)

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(allocate, range(200))) == {f"b-{sku}"}


def test_many_yields_each_outcome_in_order(client, sku):
    orders = [Allocate("o1", sku, 4), Allocate("o2", "NONE", 1), ("mine", Allocate("o3", sku, 7))]

    first, second, third = client.many(orders, size=2, in_flight=1)

    assert (first.result, first.error, first.command) == (f"b-{sku}", None, orders[0])
    assert isinstance(second.error, InvalidSku)
    assert (third.key, third.result, third.error) == ("mine", None, None)


def test_many_goes_on_after_an_error_whose_class_takes_no_text(server_folder: Path):
    with (
        Redis(server_folder / "odd-error") as server,
        AllocationClient(server.url, server.url_of(1)) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        orders = [("a", Allocate("o1", "LAMP", 1)), ("b", Allocate("o2", "LAMP", 1))]
        asked = thread.submit(list, client.many(orders, timeout_s=15))
        with client.app.connection_for_read() as connection:
            queue = connection.SimpleQueue("allocation.commands")
            sent = queue.get(timeout=20)
            sent.ack()
            queue.close()
        error = {"type": "RetryAfter", "message": "not before 5 s have passed"}
        told = [{"id": "a", "error": error}, {"id": "b", "result": "b1"}]
        backend, task_id = client.app.backend, sent.headers["id"]
        answer = {"task_id": task_id, "status": "SUCCESS", "result": told, "children": []}
        key, value = backend.get_key_for_task(task_id), backend.encode(answer)
        backend.client.set(key, value)
        backend.client.publish(key, value)

        first, second = asked.result(20)

    assert isinstance(first.error, CommandFailed)
    assert str(first.error) == "RetryAfter: not before 5 s have passed"
    assert (second.key, second.result, second.error) == ("b", "b1", None)


def test_many_holds_few_commands_at_a_time_and_reports_its_progress(client, sku):
    drawn, progress = [], []

    def orders() -> Iterator[CreateBatch]:
        for number in range(1000):
            drawn.append(number)
            yield CreateBatch(f"{sku}-{number}", sku, 1)

    outcomes = client.many(orders(), size=10, in_flight=3, progress=progress.append)
    ahead = max(len(drawn) - number for number, _ in enumerate(outcomes))

    assert ahead <= 30
    assert progress == list(range(10, 1001, 10))


def test_the_error_for_a_late_answer_names_the_key_for_a_repeat(client, sku, backend):
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as somebody:
        somebody.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})

        with pytest.raises(
            NotAnswered, match=r"not answered in 0\.5 s; send it again with the idempotency key '.+'"
        ) as late:
            client.allocate(orderid="o1", sku=sku, qty=1, timeout_s=0.5)
    engine.dispose()

    assert client.allocate(orderid="o1", sku=sku, qty=1, key=late.value.key) == f"b-{sku}"


def test_a_late_answer_never_names_a_key_that_would_carry_the_command_out_twice(client, sku, backend):
    """Neither if only the id is known, nor for a message of many."""
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as somebody:
        somebody.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})
        sent = client.delay(Allocate("o1", sku, 1), key=f"checkout-{sku}")

        with pytest.raises(NotAnswered, match="send it again with its idempotency key") as late:
            client.answer(sent.id, timeout_s=0.5)
        many = list(client.many([(f"{sku}-{n}", Allocate(f"o{n}", sku, 1)) for n in (2, 3)], timeout_s=0.5))
    engine.dispose()

    assert late.value.key == ""
    assert [(outcome.key, outcome.error.key) for outcome in many] == [(f"{sku}-{n}",) * 2 for n in (2, 3)]
    assert client.answer(sent) == f"b-{sku}"


def test_an_empty_key_is_refused_and_not_treated_as_none(client, sku):
    with pytest.raises(InvalidMessage, match="idempotency_key must be a text of 1 to 255"):
        client.allocate(orderid="o1", sku=sku, qty=1, key="")


def test_an_unavailable_broker_is_a_clear_error_and_no_hang():
    nowhere = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    begun = time.monotonic()

    with (
        AllocationClient(nowhere, nowhere) as client,
        pytest.raises(Unavailable, match=r"send it again with the idempotency key '.+'") as caught,
    ):
        client.allocate(orderid="o1", sku="LAMP", qty=1)

    assert "s3cret" not in str(caught.value)
    assert time.monotonic() - begun < 25


def test_many_commands_to_a_broker_that_is_away_name_no_key_of_the_message_s_own():
    nowhere = f"redis://127.0.0.1:{free_port()}/0"

    with (
        AllocationClient(nowhere, nowhere) as client,
        pytest.raises(Unavailable, match=r"send it again with its idempotency key$"),
    ):
        next(client.many([("order-1", Allocate("o1", "LAMP", 1))]))


def test_a_short_outage_of_the_broker_goes_unnoticed(server_folder: Path):
    with (
        Redis(server_folder / "restarted") as server,
        AllocationClient(server.url, server.url_of(1)) as client,
        ThreadPoolExecutor(1) as thread,
        redis.Redis.from_url(server.url) as broker,
    ):
        client.delay(Allocate("o1", "LAMP", 1))
        server.kill()
        sent = thread.submit(client.delay, Allocate("o2", "LAMP", 1))
        server.start()

        assert sent.result(30).id
        assert broker.llen("allocation.commands") == 2


def test_importing_the_client_loads_neither_sqlalchemy_nor_the_domain():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, allocation.client; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip

    unwanted = ("sqlalchemy", "pydantic", "psycopg2", "allocation.domain.model", "allocation.service_layer")
    assert [name for name in loaded if name.startswith(unwanted)] == []


def test_a_closed_client_leaves_no_connection_to_the_results(server_folder: Path):
    with (
        Redis(server_folder / "closed") as server,
        redis.Redis.from_url(server.url_of(1), client_name="watcher") as results,
    ):
        with AllocationClient(server.url, server.url_of(1)) as client:
            answers = [client.delay(Allocate(f"o{number}", "LAMP", 1)) for number in range(3)]
            with pytest.raises(NotAnswered):
                client.answer(answers[0], timeout_s=0.1)
            during = len(_connections(results))
        answers.clear()  # each ends its subscription

        # Redis lists a connection until it has read that it is closed.
        eventually(lambda: _connections(results) == [], what="the end of all connections")

    assert during > 0


def test_a_sender_listens_only_for_the_answers_that_it_waits_for(server_folder: Path):
    with (
        Redis(server_folder / "listens") as server,
        redis.Redis.from_url(server.url_of(1)) as results,
        AllocationClient(server.url, server.url_of(1)) as client,
        ThreadPoolExecutor(1) as thread,
    ):

        def listening() -> list[str]:
            return [row["sub"] for row in results.client_list(_type="pubsub")]

        sent = [client.delay(Allocate(f"o{number}", "LAMP", 1)) for number in range(3)]
        assert listening() == []
        waiting = thread.submit(client.answer, sent[0], 3)
        eventually(lambda: listening() == ["1"], what="the wait for an answer")
        with pytest.raises(NotAnswered):
            waiting.result()
        eventually(lambda: listening() == [], what="the end of that")


def never_asked(client: AllocationClient, _number: int) -> None:
    """Send, and discard the answer."""
    client.delay(Allocate("o1", "LAMP", 1))


def there_when_asked(client: AllocationClient, number: int) -> None:
    """Ask for an answer that has come."""
    sent = client.delay(Allocate("o1", "LAMP", 1))
    backend = client.app.backend
    answer = {"task_id": sent.id, "status": "SUCCESS", "result": f"batch-{number}", "children": []}
    backend.client.set(backend.get_key_for_task(sent.id), backend.encode(answer))
    asked = sent.id if number % 2 else sent
    assert client.answer(asked) == f"batch-{number}"


def given_up(client: AllocationClient, number: int) -> None:
    """Ask for an answer that does not come, in a short time."""
    if number % 50 == 0:
        with pytest.raises(NotAnswered):
            client.call(Allocate("o1", "LAMP", 1), timeout_s=0)


@pytest.mark.parametrize("send", [never_asked, there_when_asked, given_up])
def test_a_sender_reads_all_that_it_is_told(server_folder: Path, send: Callable[..., None]):
    """What it leaves grows in its connection, then in Redis, until both are full."""
    with (
        Redis(server_folder / f"told-{send.__name__}") as server,
        AllocationClient(server.url, server.url_of(1)) as client,
    ):
        given_up(client, 0)
        before = unread()
        for number in range(300):
            send(client, number)
        after = unread()

        gc.collect()
        kept = [one for one in gc.get_objects() if type(one) is Answer and one.app is client.app]

    assert after - before < 1000  # one wait can leave three short replies; they are read with the next
    assert kept == []


def _connections(results: redis.Redis) -> list[str]:
    """Return the other clients of the results' database."""
    return [row["addr"] for row in results.client_list() if row["db"] == "1" and row["name"] != "watcher"]


def test_a_command_that_cannot_be_written_as_json_is_no_broker_that_is_away():
    with (
        AllocationClient("memory://", "disabled://") as client,
        pytest.raises(EncodeError, match="not JSON serializable"),
    ):
        client.delay(Allocate("o1", "LAMP", object()))


def test_a_client_recovers_when_its_servers_are_back(server_folder: Path):
    with (
        Redis(server_folder / "back") as server,
        AllocationClient(server.url, server.url_of(1)) as client,
    ):
        waiting = client.delay(Allocate("o1", "LAMP", 1))
        server.kill()
        with pytest.raises(Unavailable):
            client.answer(waiting)
        server.start()

        with redis.Redis.from_url(server.url_of(1)) as results:
            answer = {
                "status": "SUCCESS",
                "result": "b1",
                "task_id": waiting.id,
                "traceback": None,
                "children": [],
            }
            results.set(f"celery-task-meta-{waiting.id}", json.dumps(answer))
        assert client.answer(waiting.id) == "b1"
        assert client.delay(Allocate("o2", "LAMP", 1)).id
