"""A deploy finds messages and deliveries of the previous release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually
from messaging.delivery import new_id
from tests.chaos.world import WORKERS, World
from tests.e2e.conftest import Broker, Shop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def world(server_folder: Path) -> Iterator[World]:
    """The old release, running, with its mail server down."""
    with World(server_folder / f"releases-{new_id()}") as world:
        world.mail.stop()
        yield world


@pytest.fixture
def shop(world: World) -> Iterator[Shop]:
    """The other app."""
    shop = Shop(Broker(world.addresses.broker_url, world.addresses.result_backend_url))
    yield shop
    shop.close()


@pytest.mark.parametrize("group_max", [1, 16], ids=["alone", "in groups"])
def test_the_new_release_handles_messages_and_deliveries_of_the_old_one(
    world: World, shop: Shop, group_max: int
) -> None:
    """A new field, a renamed handler and a removed task lose nothing, also in a group."""
    shop.ask("create_batch", "b", "s", 5)
    assert shop.ask("allocate", "o1", "s", 100) is None
    stop_all(world)
    waiting = [shop.send("allocate", f"o{n}", "s", 100 if n % 2 else 1) for n in range(2, 8)]
    gone = shop.send("change_batch_quantity", "b", 3)

    world.mail.start()
    start_next_release(world, group_max)

    assert [answer.get(timeout=60) for answer in waiting] == ["b", None] * 3
    together = "SELECT count(DISTINCT at) < 6 FROM inbox WHERE task_id = ANY(%s)"
    assert world.ask(together, [answer.id for answer in waiting]) == [(group_max > 1,)]
    with pytest.raises(Exception, match="change_batch_quantity") as told:
        gone.get(timeout=60)
    assert type(told.value).__name__ == "NotRegistered"
    letters = "SELECT task_id, reason FROM dead_letters"
    assert world.ask(letters) == [(gone.id, "unknown task")]
    undone = "SELECT id FROM deliveries WHERE status <> 'done'"
    eventually(lambda: world.ask("SELECT 1 FROM deliveries") and not world.ask(undone), 60, "every delivery")
    assert len(set(world.mail.mails.message_ids())) == 4


def stop_all(world: World) -> None:
    """Stop the old release, as in a deploy."""
    world.supervisor.stop_together(list(world.children))
    assert not any(child.running for child in world.children.values())


def start_next_release(world: World, group_max: int) -> None:
    """Start the programs of the next release."""
    env = {**world.env, "ALLOCATION_GROUP_MAX": str(group_max)}
    children = [
        programs.worker(WORKERS[0], programs.WORK_QUEUES, world.folder, env, 2),
        programs.housekeeping_worker(world.folder, world.env),
        programs.beat(world.folder, world.env),
    ]
    for child in children:
        world.add(as_next_release(child))
    world.wait_for_workers(WORKERS[0], "housekeeping")


def as_next_release(child: Child) -> Child:
    """Make a program run the next release."""
    child.command = ["tests.chaos.next_release" if part == "tasks" else part for part in child.command]
    return child
