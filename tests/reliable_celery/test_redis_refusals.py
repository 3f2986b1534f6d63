"""A Redis that refuses commands for a while: workers wait for it instead of ending."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread

import pytest
import redis

from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.failover import is_refusal
from tests.reliable_celery.celery_fixtures.processes import make_worker, marks, running, sender, unfinished

BUSY_S = 6
#: Keeps Redis busy. ARGV: for how long (s).
SLOW = """
local began = redis.call('TIME')
repeat
    local now = redis.call('TIME')
until now[1] + now[2] / 1000000 >= began[1] + began[2] / 1000000 + ARGV[1]
"""


@pytest.fixture
def own_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may break."""
    with Redis(server_folder / tmp_path.name) as own:
        yield own


@contextmanager
def cannot_save(server: Redis) -> Iterator[None]:
    """Let it refuse writes since its disk takes no snapshot."""
    data = server.folder / "data"
    with redis.Redis.from_url(server.url) as client:
        client.config_set("save", "3600 1")
        data.chmod(0o555)
        try:
            client.bgsave()
            eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            with pytest.raises(redis.exceptions.ResponseError, match="MISCONF"):
                client.set("a", "b")
            yield
        finally:
            data.chmod(0o755)
            client.bgsave()
            eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")


@contextmanager
def is_busy(server: Redis) -> Iterator[None]:
    """Let it refuse everything since a script runs."""
    with (
        redis.Redis.from_url(server.url) as client,
        redis.Redis.from_url(server.url, socket_timeout=60) as other,
    ):
        client.config_set("lua-time-limit", 100)
        slow = Thread(target=other.eval, args=(SLOW, 0, BUSY_S))
        slow.start()
        eventually(lambda: refuses(client))
        yield
        slow.join()


def refuses(client: redis.Redis) -> bool:
    try:
        return not client.ping()
    except redis.exceptions.ResponseError as error:
        return str(error).startswith("BUSY ")


@pytest.mark.parametrize("refusing", [cannot_save, is_busy])
def test_a_worker_that_has_to_requeue_a_message_meanwhile_waits_and_goes_on(
    own_server: Redis,
    redis_server: Redis,
    broker: redis.Redis,
    tmp_path: Path,
    refusing: Callable[[Redis], AbstractContextManager[None]],
):
    """Its message is handled again afterwards."""
    app = sender(own_server, task_ignore_result=True)
    worker = make_worker(redis_server, tmp_path, "waits", broker_url=own_server.url)
    with running(worker):
        app.send_task("fixture.reject", (1, 2, 2.0))
        eventually(lambda: marks(redis_server) == {1: 1}, 30, "the first run", every=0.01)
        with refusing(own_server):
            eventually(lambda: "reject requeue=True" in worker.log_text(), 30, "the end of the first run")

        eventually(lambda: not worker.running or marks(redis_server) == {1: 2}, 30, "the second run")
        assert worker.running
        eventually(lambda: unfinished(own_server) == 0, 30)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("MISCONF Errors writing to the AOF file", True),
        ("BUSY Redis is busy running a script.", True),
        ("ERR Error running script (call to f_1): @user_script:3: @user_script: 3: -MISCONF Redis is", True),
        (
            "ERR Error running script (call to f_1): @user_script:3: @user_script: 3: -READONLY You can't",
            True,
        ),
        ("BUSYGROUP Consumer Group name already exists", False),
        ("ERR unknown command 'BUSY '", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_a_refusal_is_known_by_its_text(text: str, refuses: bool):
    """Redis 6.2 reports one inside a script with the script's place before it."""
    assert is_refusal(redis.exceptions.ResponseError(text)) is refuses
