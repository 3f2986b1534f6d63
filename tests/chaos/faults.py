"""Faults during a load: workers, and commands that kill them; `outages` has those of servers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

from local import ROOT
from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually
from messaging.operator.cli.tool import REFUSED, NoAnswer
from tests.chaos import outages as outages  # registers its faults
from tests.chaos.clock import Clock
from tests.chaos.fault import FAULTS as FAULTS
from tests.chaos.fault import OUTAGE_S, fault, last
from tests.chaos.fault import Fault as Fault
from tests.chaos.traffic import Traffic
from tests.chaos.world import WORKERS, World

HOUR_S = 3600


# Processes


@fault("SIGKILL of a pool child")
def kill_child(world: World, _traffic: Traffic, rng: random.Random) -> None:
    with suppress(psutil.NoSuchProcess, IndexError):
        children = psutil.Process(world.children[rng.choice(WORKERS)].pid).children()
        rng.choice(children).kill()


@fault("SIGKILL of a worker's main process")
def kill_worker(world: World, _traffic: Traffic, rng: random.Random) -> None:
    world.kill(rng.choice(WORKERS))


@fault("SIGKILL of a worker's main process in full work, 8 times")
def kill_worker_8_times(world: World, traffic: Traffic, rng: random.Random) -> None:
    for _ in range(8):
        _kill_at_work(world, traffic, rng, world.children[rng.choice(WORKERS)])


def _kill_at_work(world: World, traffic: Traffic, rng: random.Random, worker: Child) -> None:
    world.wait_until_ready(worker.name)
    traffic.burst(15)
    last(rng.uniform(0.02, 0.3))
    world.kill(worker.name)
    world.start_again(worker.name)


@fault("SIGKILL of workers that refuse many orders, as the stock for them arrives, 5 times")
def kill_at_refusals(world: World, traffic: Traffic, rng: random.Random) -> None:
    for turn in range(5):
        doomed = rng.choice([WORKERS, WORKERS[:1], WORKERS[1:]])
        world.wait_until_ready(*doomed)
        sku = f"{traffic.prefix}-late{turn}"
        orders = [traffic.order("allocate", orderid=f"{sku}-o{n}", sku=sku, qty=1) for n in range(25)]
        eventually(lambda orders=orders: any(one.answered for one in orders), 60, "a refusal")  # type: ignore[misc]
        last(rng.uniform(0, 0.05))  # acknowledgements wait for others
        world.kill(*doomed)
        traffic.order("create_batch", ref=f"b-{sku}", sku=sku, qty=20, eta=None)
        world.start_again(*doomed)


@fault("SIGKILL of all workers at once, the housekeeping's too")
def kill_all_workers(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.kill(*WORKERS, "housekeeping")


@fault("SIGKILL of beat")
def kill_beat(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.kill("beat")


@fault("SIGTERM of all workers in the middle of the load, then a start: a deploy")
def deploy(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.together(*(lambda name=name: world.supervisor.pause(name) for name in WORKERS))
    for name in WORKERS:
        world.supervisor.resume(name)


@fault("SIGSTOP of a worker for longer than its lease, then SIGCONT")
def freeze_worker(world: World, _traffic: Traffic, rng: random.Random) -> None:
    main = psutil.Process(world.children[rng.choice(WORKERS)].pid)
    family = [main, *main.children(recursive=True)]
    for process in family:
        process.suspend()
    last(float(world.env["ALLOCATION_WORKER_LEASE_S"]) + 3)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@fault("two beats and three relays")
def two_beats_three_relays(world: World, _traffic: Traffic, rng: random.Random) -> None:
    beat = programs.beat(world.folder / "second", world.env)
    beat.name = "beat2"
    queue = programs.HOUSEKEEPING_QUEUE
    more = [programs.worker(f"relay{number}", queue, world.folder, world.env, 1) for number in (2, 3)]
    for child in (beat, *more):
        world.add(world.ours(child))
    world.wait_for_workers("relay2", "relay3")
    world.kill(rng.choice(WORKERS))  # so that there is something to relay
    last(OUTAGE_S)
    world.remove("beat2", "relay2", "relay3")


@fault(
    "a worker whose clock jumps by hours, forward and back, SIGKILL while it is ahead",
    bends_time=True,
    needs="clock",
)
def clock_jumps(world: World, traffic: Traffic, rng: random.Random) -> None:
    clock = Clock(world.folder)
    clock.jump_to(0)
    jumping = world.worker("jumping")
    jumping.env = {**(jumping.env or {}), **clock.environment()}
    world.add(jumping)
    world.wait_for_workers(jumping.name)
    for offset_s in (HOUR_S, -HOUR_S, HOUR_S):
        clock.jump_to(offset_s)
        traffic.burst(20)
        last(OUTAGE_S)
    traffic.burst(20)
    last(rng.uniform(0.02, 0.2))
    world.kill(jumping.name)
    world.remove(jumping.name)


# Operators


@fault("everything paused and resumed by operators while workers are killed, 3 times")
def pause_everything(world: World, traffic: Traffic, rng: random.Random) -> None:
    for _ in range(3):
        _operator(world, "pause", "--all", "--reason", "a fault")
        traffic.burst(15)
        last(rng.uniform(0.1, OUTAGE_S))
        world.kill(rng.choice(WORKERS))
        traffic.burst(15)
        _operator(world, "resume", "--all")


@fault("a handler in order that fails half of the time, workers killed, operators re-run everything, 3 times")
def order_under_fire(world: World, traffic: Traffic, rng: random.Random) -> None:
    world.ask("INSERT INTO moods VALUES (0.5)")
    for _ in range(3):
        traffic.burst(15)
        last(rng.uniform(0.1, OUTAGE_S))
        world.kill(rng.choice(WORKERS))
        _operator(world, "rerun", "--all", *rng.choice([(), ("--canary", "2", "--wait", "1")]), fails=True)
    world.ask("DELETE FROM moods")


@fault("PostgreSQL stopped at once while an operator's re-run tries some first, and while the others follow")
def postgres_during_rerun(world: World, traffic: Traffic, rng: random.Random) -> None:
    world.ask("INSERT INTO moods VALUES (0.9)")
    traffic.burst(30)
    last(OUTAGE_S)
    world.ask("DELETE FROM moods")
    with ThreadPoolExecutor(1) as pool:  # the server would end with a thread that starts it
        rerun = pool.submit(_operator, world, "rerun", "--all", "--canary", "2", fails=True)
        last(rng.uniform(0.5, 4))
        outages.postgres_immediate(world, traffic, rng)
        rerun.result()


#: Our app with the operator's tool.
TOOL = """
from messaging.operator.cli import operator_tool
from tests.chaos.app import project
operator_tool(project, "tests.chaos.app:app")()
"""


def _operator(world: World, *words: str, fails: bool = False) -> None:
    """Use the operator's tool; `fails`: it may say that not everything succeeded, or no server answered."""
    done = subprocess.run(
        [sys.executable, "-c", TOOL, "deliveries", *words], env={**os.environ, **world.env}, cwd=ROOT,
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in ((0, REFUSED, NoAnswer.exit_code) if fails else (0,)), done.stdout + done.stderr


# Commands that kill


@fault("a command that kills its worker's child each time")
def deadly_command(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "child")


@fault("a command that kills its worker's main process each time")
def deadly_command_main(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "main")


@fault("a command that hangs until its time limit each time")
def hanging_command(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "nobody")


def _wait_until_parked(traffic: Traffic, whom: str) -> None:
    deadly = traffic.order("kill_worker", whom=whom)
    eventually(lambda: deadly.answered, 120, "the answer to the command that kills its worker")


@fault("an event whose handler kills its worker each time")
def deadly_event(world: World, traffic: Traffic, _rng: random.Random) -> None:
    deadly = traffic.order("raise_poison", sku=f"{traffic.prefix}-sku0")
    parked = (
        "SELECT status = 'failed' FROM deliveries WHERE causation_id = %s"
        " AND last_error LIKE 'WorkerCrashed%%'"
    )
    eventually(lambda: world.ask(parked, deadly.id)[0][0], 120, "the end of the event that kills its worker")
