"""Redis with two replicas and three Sentinels: workers and senders follow the primary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.utils.nodenames import gethostname
from kombu import Connection
from redis.exceptions import ResponseError

from allocation.client import Allocate, AllocationClient
from local.addresses import masked
from local.ports import LOOPBACK, free_port
from local.processes import programs, readiness
from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.brokers import topology
from messaging.client import NotAnswered
from messaging.delivery import new_id
from messaging.errors import Unavailable
from reliable_celery import results
from reliable_celery.failover import answered_last, is_refusal
from reliable_celery.sentinel import SENTINEL_TIMEOUT_S, Sentinel, as_celery
from testing.freezing import freeze, thaw
from testing.sentinels import MASTER, SENTINEL_PASSWORD, Sentinels
from tests.cluster.workers import ready_worker
from tests.e2e.certificates import Pair, make_pair
from tests.e2e.tls_front import TlsFront
from tests.refused import log_of_refused
from tests.unread import unread

ASKED = Sentinel(MASTER, password=SENTINEL_PASSWORD)
#: Sentinel is asked once a second. It leaves an old primary as it is for 8 s.
LEFT_S = 5.0


@pytest.fixture(scope="module")
def cluster(server_folder: Path) -> Iterator[Sentinels]:
    """A primary that accepts writes only while a replica follows."""
    options = {"min-replicas-to-write": "1", "min-replicas-max-lag": "2"}
    with Sentinels(server_folder / f"sentinel-{new_id()}", options, down_after_ms=1000) as servers:
        yield servers


@pytest.fixture
def worker(cluster: Sentinels, new_database: Callable[[], str], tmp_path: Path) -> Iterator[Child]:
    """A worker on it."""
    env = {"ALLOCATION_DATABASE_URL": new_database(), **cluster.settings}
    with ready_worker(tmp_path, env) as child:
        yield child


@pytest.fixture
def client(cluster: Sentinels) -> Iterator[AllocationClient]:
    """A sender that asks the Sentinels."""
    with AllocationClient(cluster.url(0), cluster.url(1), sentinel=ASKED, timeout_s=5) as sender:
        yield sender


def answered(client: AllocationClient, name: str) -> str | None:
    """Send an order until it is answered, as an app does."""

    def order() -> tuple[str | None]:
        try:
            return (client.allocate(name, "LAMP", 1, key=name),)
        except (NotAnswered, Unavailable) as error:
            raise AssertionError(error) from error

    return eventually(order, 60, f"the answer to {name}")[0]


def test_a_worker_follows_the_primary_and_outlives_a_time_without_replicas(
    cluster: Sentinels, worker: Child, client: AllocationClient
):
    client.create_batch("b1", "LAMP", 10)
    assert readiness.workers_answer(cluster.url(0), "commands", sentinel=ASKED)
    replicas = cluster.replicas
    for replica in replicas:
        replica.kill()
    with cluster.primary.client() as primary:
        eventually(lambda: _refuses(primary), 20, "NOREPLICAS")
        with pytest.raises((NotAnswered, Unavailable)):
            client.allocate("o1", "LAMP", 1, key="o1")

    for replica in replicas:
        replica.start()
    cluster.wait_until_whole()
    assert answered(client, "o1") == "b1"

    old = cluster.primary
    old.kill()
    cluster.wait_for_failover(old)
    assert answered(client, "o2") == "b1"
    assert worker.running, worker.log_tail()


def test_a_worker_says_how_it_stands_without_the_password_of_the_sentinels(cluster: Sentinels, worker: Child):
    node = f"commands@{gethostname()}"
    with Celery(broker=cluster.url(0), set_as_current=False) as app:
        app.conf.broker_transport_options = ASKED.options(cluster.url(0))
        stats = (app.control.inspect([node], timeout=20).stats() or {}).get(node, {})

    assert "sentinel" in stats["broker"]["transport"].lower()
    assert SENTINEL_PASSWORD not in str(stats)
    assert "Control command error" not in worker.log_text()


@pytest.fixture
def whole(cluster: Sentinels) -> Sentinels:
    """The cluster with all its servers, whatever an earlier test did."""
    cluster.restart(*(node for node in cluster.nodes if not node.running))
    cluster.wait_until_whole()
    return cluster


def test_a_primary_that_sentinel_names_no_more_is_left_while_it_still_answers(
    whole: Sentinels, client: AllocationClient
):
    """After a planned failover the old primary answers those who read for 8 s."""
    with client.app.connection_for_write() as connection:
        readers = connection.default_channel.client, client.app.backend.client
        ports = [reader.info("server")["tcp_port"] for reader in readers]
        old = whole.primary

        whole.fail_over()
        new = whole.primary.port
        eventually(lambda: [reader.info("server")["tcp_port"] for reader in readers] == [new, new], LEFT_S)

    assert ports == [old.port, old.port]
    whole.demote(old)


def test_a_sender_reads_all_that_it_is_told(whole: Sentinels, client: AllocationClient):
    """By Sentinel it has a result backend of another class."""
    client.delay(Allocate("o1", "LAMP", 1))
    before = unread()
    for number in range(600):
        sent = client.delay(Allocate("o1", "LAMP", 1))
        if number % 100 == 0:
            with pytest.raises(NotAnswered):
                client.answer(sent, timeout_s=0)

    assert unread() - before < 1000
    with whole.primary.client() as primary:
        primary.delete("allocation.commands")


@pytest.fixture
def encrypted(server_folder: Path, tmp_path: Path) -> Iterator[tuple[Sentinels, list[TlsFront], Pair]]:
    """A cluster behind TLS, its proxies, and its authority; the servers talk to each other without TLS."""
    with ExitStack() as stack:
        opened: list[TlsFront] = []
        pair = make_pair(tmp_path, "servers")

        def front(port: int) -> int:
            opened.append(stack.enter_context(TlsFront(f"redis://{LOOPBACK}:{port}", pair, or_plain=True)))
            return opened[-1].port

        folder = server_folder / f"sentinel-tls-{new_id()}"
        servers = Sentinels(folder, down_after_ms=1000, front=front, scheme="sentinels")
        yield stack.enter_context(servers), opened, pair


def test_sentinels_and_the_primary_that_they_name_are_reached_over_tls(
    encrypted: tuple[Sentinels, list[TlsFront], Pair], new_database: Callable[[], str], tmp_path: Path
):
    """Worker, sender and results ask the Sentinels and Redis over TLS, before and after a failover."""
    cluster, opened, pair = encrypted
    database = {"ALLOCATION_DATABASE_URL": new_database()}
    trusting = {**database, **cluster.settings, "ALLOCATION_TLS_CA_FILE": str(pair.certificate)}
    stranger = {"ALLOCATION_TLS_CA_FILE": str(make_pair(tmp_path, "stranger").certificate)}
    worker = programs.commands_worker(tmp_path / "worker", trusting, 1)
    untrusting = programs.commands_worker(tmp_path / "untrusting", {**trusting, **stranger}, 1)
    url = cluster.url(0), cluster.url(1)
    try:
        worker.start()
        untrusting.start()
        with AllocationClient(*url, sentinel=ASKED, ca_file=pair.certificate, timeout_s=5) as client:
            eventually(lambda: " ready." in worker.log_text(), 60, "the worker")
            client.create_batch("b1", "LAMP", 10)

            old = cluster.primary
            old.kill()
            cluster.wait_for_failover(old)

            assert answered(client, "tls") == "b1"
        assert sum(front.served > 0 for front in opened) >= 3  # a Sentinel, and two that were primary
        eventually(lambda: "No master found" in untrusting.log_text(), 60, "the refusal")
        assert " ready." not in untrusting.log_text()
    finally:
        worker.stop()
        untrusting.stop()


def test_a_frozen_sentinel_holds_up_the_first_connection_alone(cluster: Sentinels):
    """A worker opens some ten connections when it comes back."""
    frozen = cluster.sentinels[0]
    answered_last.clear()
    took_s = []
    freeze(frozen.pid)
    try:
        for _ in range(2):
            start = time.monotonic()
            options = ASKED.options(cluster.url(0))
            with Connection(
                as_celery(cluster.url(0)),
                transport=topology.transport(cluster.url(0)),
                transport_options=options,
            ) as connection:
                connection.default_channel.client.ping()
            took_s.append(time.monotonic() - start)
    finally:
        thaw(frozen.pid)

    assert took_s[0] >= SENTINEL_TIMEOUT_S
    assert took_s[1] < SENTINEL_TIMEOUT_S


def _refuses(primary: redis.Redis) -> bool:
    try:
        primary.set("probe", 1)
    except ResponseError as error:
        return is_refusal(error)
    return False


@pytest.fixture
def redis_of_a_cluster(server_folder: Path) -> Iterator[str]:
    """A server that is a member of a Redis Cluster."""
    server = Redis(server_folder / f"member-{new_id()}")
    prepare = server._prepare

    def prepared() -> Child:
        child = prepare()
        # Its own choice for the cluster's port is in the range that the kernel uses for outgoing connections.
        cluster = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        child.command = [*child.command, *cluster, "--appendonly", "no"]
        return child

    server._prepare = prepared  # type: ignore[method-assign]
    with server:
        yield server.url


def test_redis_cluster_is_refused_with_what_to_use_instead(redis_of_a_cluster: str, tmp_path: Path):
    """A worker would die of MOVED, at some message."""
    env = {"ALLOCATION_BROKER_URL": redis_of_a_cluster, "ALLOCATION_RESULT_BACKEND_URL": redis_of_a_cluster}
    worker = programs.commands_worker(tmp_path, env, 1)

    log = log_of_refused(worker)

    assert "Redis Cluster is not supported" in log
    assert "use one primary with replicas" in log.lower()


def test_an_address_of_sentinels_is_a_list_with_ports_and_its_passwords_are_masked():
    url = "sentinels://app:hush-1@one/2;sentinels://app:hush-2@two:26380/2"

    assert as_celery(url) == "sentinel://app:hush-1@one:26379/2;sentinel://app:hush-2@two:26380/2"
    assert masked(url) == "sentinels://app:***@one/2;sentinels://app:***@two:26380/2"
    assert results.address(url).startswith("reliable_celery.results:SentinelResultBackend+sentinel://")
    assert results.same_server(url, url.replace("/2", "/3"))
    assert not results.same_server(url, "redis://one/2")
    assert ASKED.options("redis://one") == {}
    assert ASKED.options(url, {"ssl_ca_certs": "ca.pem"})["sentinel_kwargs"]["ssl_ca_certs"] == "ca.pem"
