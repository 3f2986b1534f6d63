"""`python -m tests.cluster.partitions`: cut cables between servers and workers in network namespaces.

Each host has a namespace of its own on a bridge. Packets vanish without an error, as with a cut cable or a
firewall that drops. Needs root on Linux; `make chaos-cluster` runs everywhere and plays on loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psycopg2

from allocation.client import AllocationClient
from local.processes import programs
from local.processes.child import Child
from local.servers.postgres_server import DATABASE, ROLE
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.client import NotAnswered
from messaging.errors import Unavailable
from testing.databases import FAST
from testing.postgres_pair import SUPERUSER, Node, PostgresPair
from tests.chaos.world import SETTINGS

INSIDE = "CLUSTER_PARTITIONS_INSIDE"
NETWORK, HUB = "10.99.0.0/24", 1
NOWHERE = "02:00:00:00:00:ff"
ONE, TWO, NEAR, FAR = "one", "two", "near", "far"  # two servers of PostgreSQL, two workers
HOSTS = {ONE: 2, TWO: 3, NEAR: 4, FAR: 5}
SENDERS, PATIENCE_S, CUT_S = 4, 3.0, 15.0
NOTICED_S = 2.0


def main() -> None:
    """Play each fault once and print what it cost."""
    if INSIDE not in os.environ:
        command = [sys.executable, "-m", "tests.cluster.partitions"]
        unshare = ["/usr/bin/unshare", "--net", "--mount", "--propagation", "private", *command]
        os.execve(unshare[0], unshare, {**os.environ, INSIDE: "1"})  # noqa: S606
    _make_network()
    folder = Path(tempfile.mkdtemp(prefix="allocation-partitions-"))
    folder.chmod(0o755)
    try:
        for number, (what, fault) in enumerate(FAULTS.items()):
            with _world(folder / str(number)) as world:
                print(f"{what}: {_play(world, fault)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# The network


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["/usr/sbin/ip", *arguments], check=True)


def address(number: int) -> str:
    """Return a host's address."""
    return f"10.99.0.{number}"


def mac(number: int) -> str:
    """Return a host's hardware address."""
    return f"02:00:00:00:00:{number:02x}"


def _make_network() -> None:
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "none", "/run/netns"], check=True)
    ip("link", "set", "lo", "up")
    ip("link", "add", "hub", "address", mac(HUB), "type", "bridge")
    ip("address", "add", f"{address(HUB)}/24", "dev", "hub")
    ip("link", "set", "hub", "up")
    for name, number in HOSTS.items():
        ip("netns", "add", name)
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"to-{name}", "master", "hub", "up")
        ip("-n", name, "link", "set", "eth0", "address", mac(number), "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "address", "add", f"{address(number)}/24", "dev", "eth0")
        ip("neighbour", "replace", address(number), "lladdr", mac(number), "dev", "hub")
    for name in HOSTS:
        for number in (HUB, *HOSTS.values()):
            mend(name, number)


def cut(host: str, number: int) -> None:
    """Have what a host sends to another one vanish."""
    ip("-n", host, "neighbour", "replace", address(number), "lladdr", NOWHERE, "dev", "eth0")


def mend(host: str, number: int) -> None:
    """Let it arrive again."""
    ip("-n", host, "neighbour", "replace", address(number), "lladdr", mac(number), "dev", "eth0")


def cable(host: str, state: str) -> None:
    """Plug a host's cable in (`up`) or pull it (`down`)."""
    ip("link", "set", f"to-{host}", state)


def inside(host: str, child: Child) -> Child:
    """Have a program run on a host."""
    command = list(child.command)
    if child.user is not None:
        ids = [f"--reuid={child.user.pw_uid}", f"--regid={child.user.pw_gid}", "--clear-groups"]
        command = ["/usr/bin/setpriv", *ids, *command]
        child.user = None
    child.command = ["/usr/sbin/ip", "netns", "exec", host, *command]
    return child


# The servers


@dataclass
class FarNode(Node):
    """A PostgreSQL on a host of its own."""

    name: str = ONE

    def _prepare(self) -> Child:
        return inside(self.name, super()._prepare())

    def _options(self) -> list[str]:
        return [*super()._options(), "-c", "listen_addresses=*"]

    def _answers(self) -> bool:
        try:
            psycopg2.connect(
                host=self.host, port=self.port, user=ROLE, dbname=DATABASE, connect_timeout=2
            ).close()
        except psycopg2.OperationalError as error:
            return "pg_hba" in str(error)  # the rule for other hosts comes next
        return True


class FarPair(PostgresPair):
    """Both on hosts of their own."""

    rules = f"host all all {NETWORK} trust\nhost replication {SUPERUSER} {NETWORK} trust\n"

    def __post_init__(self) -> None:
        """Plan both."""
        self.primary: FarNode = FarNode(
            self.folder / ONE, settings=self.settings, host=address(HOSTS[ONE]), name=ONE
        )
        self.standby: FarNode = FarNode(
            self.folder / TWO,
            settings=self.settings,
            follows=self.primary,
            host=address(HOSTS[TWO]),
            name=TWO,
        )


class FarRedis(Redis):
    """A Redis on the bridge itself."""

    def url_of(self, database: int) -> str:
        """Return the address of one database, for all hosts."""
        return f"redis://{address(HUB)}:{self.port}/{database}"

    def _prepare(self) -> Child:
        child = super()._prepare()
        child.command = [*child.command, "--bind", "0.0.0.0", "--protected-mode", "no"]  # noqa: S104
        return child


@dataclass
class World:
    """What runs, and what its senders were told."""

    pair: FarPair
    redis: FarRedis
    answered: dict[str, float] = field(default_factory=dict)  # order id -> monotonic seconds
    over: threading.Event = field(default_factory=threading.Event)

    def send(self, sender: int) -> None:
        """Send one order after the other, each until it is answered."""
        urls = self.redis.url_of(0), self.redis.url_of(1)
        number = 0
        with AllocationClient(*urls, timeout_s=PATIENCE_S) as client:
            while not self.over.is_set():
                number += 1
                order = f"{sender}-{number}"
                while not self.over.is_set() and not _is_answered(
                    client, order, f"LAMP-{sender}-{number % 5}"
                ):
                    time.sleep(0.1)
                else:
                    if not self.over.is_set():
                        self.answered[order] = time.monotonic()
                time.sleep(0.1)


def _is_answered(client: AllocationClient, order: str, sku: str) -> bool:
    try:
        client.allocate(order, sku, 1, key=order)
    except (NotAnswered, Unavailable):
        return False
    return True


@contextmanager
def _world(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        pair = stack.enter_context(FarPair(folder / "pair", dict(FAST)))
        redis = stack.enter_context(FarRedis(folder / "redis"))
        programs.migrate(pair.url)
        env = {
            **SETTINGS,
            "ALLOCATION_DATABASE_URL": pair.url,
            "ALLOCATION_BROKER_URL": redis.url_of(0),
            "ALLOCATION_RESULT_BACKEND_URL": redis.url_of(1),
        }
        for name in (NEAR, FAR):
            worker = inside(name, programs.worker(name, programs.WORK_QUEUES, folder, env, 2))
            worker.start()
            stack.callback(worker.kill)
            eventually(lambda worker=worker: " ready." in worker.log_text(), 90, name)  # type: ignore[misc]
        with AllocationClient(redis.url_of(0), redis.url_of(1), timeout_s=30) as client:
            for sender in range(SENDERS):
                for number in range(5):
                    client.create_batch(f"b-{sender}-{number}", f"LAMP-{sender}-{number}", 100_000)
        yield World(pair, redis)


def _play(world: World, fault: Callable[[World], None]) -> str:
    threads = [threading.Thread(target=world.send, args=(sender,)) for sender in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(world.answered) > 20, 60, "the first answers")
        begin = time.monotonic()
        fault(world)
        over = time.monotonic()
        eventually(
            lambda: sum(at > over for at in world.answered.values()) > 20, 90, "answers after the fault"
        )
    finally:
        world.over.set()
        for thread in threads:
            thread.join()
    at = sorted(moment for moment in world.answered.values() if moment >= begin)
    gap_s = max(later - earlier for earlier, later in pairwise([begin, *at]))
    rows = world.pair.primary.ask("SELECT orderid, count(*) FROM allocations GROUP BY orderid")
    done = dict(rows)
    lost = [order for order in world.answered if order not in done]
    doubled = [order for order, count in done.items() if count > 1]
    return (
        f"{len(world.answered)} answered, {len(lost)} answered then lost, {len(doubled)} doubled,"
        f" gap {gap_s:.1f} s"
    )


# The faults


def primary_cut_off(world: World) -> None:
    """Pull the primary's cable, promote the standby, end the old primary, plug its cable in."""
    cable(world.pair.primary.name, "down")
    time.sleep(NOTICED_S)
    world.pair.promote()
    time.sleep(CUT_S)
    world.pair.standby.kill()
    cable(world.pair.standby.name, "up")


def worker_without_database(world: World) -> None:
    """Drop what one worker sends to both servers of PostgreSQL."""
    for number in (HOSTS[ONE], HOSTS[TWO]):
        cut(FAR, number)
    time.sleep(CUT_S)
    for number in (HOSTS[ONE], HOSTS[TWO]):
        mend(FAR, number)


def worker_without_broker(world: World) -> None:
    """Drop what one worker sends to the broker."""
    cut(FAR, HUB)
    time.sleep(CUT_S)
    mend(FAR, HUB)


FAULTS: dict[str, Callable[[World], None]] = {
    "the primary cut off from all and alive, standby promoted": primary_cut_off,
    "what one worker of two sends to the database is dropped for 15 s": worker_without_database,
    "what one worker of two sends to the broker is dropped for 15 s": worker_without_broker,
}


if __name__ == "__main__":
    main()
