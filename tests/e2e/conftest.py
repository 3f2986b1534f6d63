"""A real worker with a real broker and database, and another app that sends to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection
from sqlalchemy import create_engine, text

from local.addresses import Addresses
from local.processes import programs, readiness
from local.processes.child import Child
from local.servers.mail_server import MailSink
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.client import close_app
from testing.rabbitmq import RabbitMQ

#: Short times, so that deliveries fail within seconds.
FAST = {
    "ALLOCATION_EVENT_MAX_RETRIES": "2",
    "ALLOCATION_EVENT_BACKOFF_MAX_S": "1",
    "ALLOCATION_RELAY_INTERVAL_S": "1",
    "ALLOCATION_RELAY_GRACE_S": "2",
    "ALLOCATION_VISIBILITY_TIMEOUT_S": "8",
    "ALLOCATION_TASK_TIME_LIMIT_S": "5",
    "ALLOCATION_WORKER_LEASE_S": "6",
    "ALLOCATION_SMTP_TIMEOUT_S": "4",
}


QUEUES = ("commands", "events", "housekeeping", "dead")


@dataclass(frozen=True)
class Broker:
    """The addresses of messages and results."""

    broker_url: str
    result_backend_url: str

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue, without those that workers hold."""
        with Connection(self.broker_url) as connection, connection.channel() as channel:
            try:
                count: int = channel.queue_declare(queue=queue, passive=True).message_count
            except ChannelError:  # Redis has no empty queues
                return 0
            return count

    def lose(self, queue: str) -> None:
        """Delete the messages in a queue."""
        with Connection(self.broker_url) as connection, connection.channel() as channel:
            channel.queue_purge(queue)


@pytest.fixture(scope="module")
def broker_of(request: pytest.FixtureRequest, redis_server: Redis) -> Callable[[str], Broker]:
    """A function that returns an empty broker of a kind; results are always in Redis."""

    def empty_broker(kind: str) -> Broker:
        with redis.Redis.from_url(redis_server.url) as client:
            client.flushall()
        if kind == "redis":
            return Broker(redis_server.url_of(0), redis_server.url_of(1))
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq_server")
        rabbitmq.delete_queues(*(f"allocation.{name}" for name in QUEUES))
        return Broker(rabbitmq.url, redis_server.url_of(1))

    return empty_broker


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, broker_of: Callable[[str], Broker]) -> Broker:
    """An empty broker of each supported kind."""
    return broker_of(request.param)


@dataclass
class Backend:
    """The backend under test; its settings as environment variables in `env`."""

    addresses: Addresses
    env: dict[str, str]
    folder: Path

    def worker(self, name: str, *, concurrency: int = 2, queues: str = programs.WORK_QUEUES) -> Child:
        """Return a running worker."""
        child = programs.worker(name, queues, self.folder, self.env, concurrency)
        child.start()
        self.wait_for_worker(child)
        return child

    def wait_for_worker(self, child: Child) -> None:
        """Wait until the worker answers a ping."""

        def answers() -> bool:
            assert child.running, child.log_tail()
            return readiness.workers_answer(self.addresses.broker_url, child.name)

        eventually(answers, 60, f"an answer from worker {child.name}")

    def housekeeping(self) -> Iterator[None]:
        """Run the housekeeping worker and beat."""
        children = [programs.housekeeping_worker(self.folder, self.env), programs.beat(self.folder, self.env)]
        for child in children:
            child.start()
        self.wait_for_worker(children[0])
        yield
        for child in children:
            child.stop()

    def sql(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Query the database."""
        engine = create_engine(self.addresses.database_url)
        try:
            with engine.begin() as connection:
                return [tuple(row) for row in connection.execute(text(query), values)]
        finally:
            engine.dispose()


class Shop:
    """Another app: plain Celery, without any import of this project."""

    def __init__(self, broker: Broker) -> None:
        self.app = Celery(
            "shop", broker=broker.broker_url, backend=broker.result_backend_url, set_as_current=False
        )

    def send(
        self, task: str, *args: Any, task_id: str | None = None, key: str | None = None, **fields: Any
    ) -> Any:
        """Enqueue a command and return Celery's result object."""
        # declare=(): the backend declares the queue; another kind of queue would be refused.
        return self.app.send_task(
            f"allocation.{task}",
            args,
            fields,
            queue="allocation.commands",
            task_id=task_id,
            headers={"idempotency_key": key} if key else {},
            declare=(),
        )

    def ask(self, task: str, *args: Any, **fields: Any) -> Any:
        """Enqueue a command and return its result, or raise its error."""
        return self.send(task, *args, **fields).get(timeout=30)

    def close(self) -> None:
        """Close all connections."""
        close_app(self.app)


@pytest.fixture(scope="module")
def module_mail(server_folder: Path) -> Iterator[MailSink]:
    """A mail server for the tests of one file."""
    with MailSink(Path(tempfile.mkdtemp(prefix="mail-", dir=server_folder))) as sink:
        yield sink


@pytest.fixture(scope="module")
def backend(
    broker: Broker, new_database: Callable[[], str], module_mail: MailSink, server_folder: Path
) -> Backend:
    """This file's own backend: an empty database, an empty broker, no process yet."""
    addresses = Addresses(
        database_url=new_database(),
        broker_url=broker.broker_url,
        result_backend_url=broker.result_backend_url,
        smtp_url=module_mail.url,
        flower_url="",
    )
    folder = Path(tempfile.mkdtemp(prefix="backend-", dir=server_folder))
    return Backend(addresses, {**addresses.environment(), **FAST}, folder)


@pytest.fixture(scope="module")
def worker(backend: Backend) -> Iterator[Child]:
    """One worker for the tests of one file."""
    child = backend.worker("commands")
    yield child
    child.stop()


@pytest.fixture(scope="module")
def housekeeping(backend: Backend) -> Iterator[None]:
    """The housekeeping worker and beat for the tests of one file."""
    yield from backend.housekeeping()


@pytest.fixture
def shop(broker: Broker) -> Iterator[Shop]:
    """The other app."""
    shop = Shop(broker)
    yield shop
    shop.close()


@pytest.fixture
def other_shop(broker: Broker) -> Iterator[Shop]:
    """Another one; it can reuse an id without getting the late answer to the first use."""
    shop = Shop(broker)
    yield shop
    shop.close()


@pytest.fixture
def sku(shop: Shop) -> str:
    """The test's own product, with one piece in stock."""
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=1)
    return sku


@pytest.fixture
def mail_is_down(module_mail: MailSink) -> Iterator[MailSink]:
    """Stop the mail server until the end of the test."""
    module_mail.stop()
    yield module_mail
    if not module_mail.running:
        module_mail.start()
