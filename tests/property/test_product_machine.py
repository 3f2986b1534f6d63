"""Products in PostgreSQL compared with a plain model: commands one by one, and many at once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, create_engine, text

from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import AllocationError
from allocation.service_layer.messagebus import bus
from messaging.delivery import new_id
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.postgres.outbox import Outbox

State = dict[str, tuple[int, tuple[tuple[str, int], ...]]]  # batch → purchased, (order, qty) in order


@dataclass
class Stock:
    """The simplest model of allocation: one product, batches with their lines."""

    batches: dict[str, tuple[int, date | None]] = field(default_factory=dict)
    lines: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def do(self, command: Command) -> Any:
        """Run a command; return the error's class name if it is refused."""
        match command:
            case CreateBatch(ref=ref, qty=qty, eta=eta):
                return self._create(ref, (qty, eta))
            case Allocate(orderid=order, qty=qty):
                return self._allocate((order, qty))
            case ChangeBatchQuantity(ref=ref, qty=qty):
                return self._change(ref, qty)
        raise AssertionError(command)

    def _create(self, ref: str, content: tuple[int, date | None]) -> str | None:
        if self.batches.setdefault(ref, content) != content:
            return "BatchAlreadyExists"
        self.lines.setdefault(ref, [])
        return None

    def _allocate(self, line: tuple[str, int]) -> str | None:
        if not self.batches:
            return "InvalidSku"
        for ref, lines in self.lines.items():
            if line in lines:
                return ref
        soonest = sorted(self.batches, key=lambda ref: (self.batches[ref][1] or date.min, ref))
        for ref in soonest:
            if self.batches[ref][0] - sum(qty for _, qty in self.lines[ref]) >= line[1]:
                self.lines[ref].append(line)
                return ref
        return None

    def _change(self, ref: str, qty: int) -> str | None:
        if ref not in self.batches:
            return "UnknownBatch"
        self.batches[ref] = (qty, self.batches[ref][1])
        while sum(size for _, size in self.lines[ref]) > qty:
            self.lines[ref].pop()
        return None

    def state(self) -> State:
        """Return everything, to compare."""
        return {ref: (qty, tuple(self.lines[ref])) for ref, (qty, _) in self.batches.items()}


class Products(RuleBasedStateMachine):
    """Runs each command on PostgreSQL and on the model."""

    engine: Engine
    pool: ThreadPoolExecutor

    def __init__(self) -> None:
        super().__init__()
        self.prefix = f"{uuid4().hex}-"  # of names, so that each run has its own product
        self.model = Stock()

    refs = st.sampled_from(["b1", "b2", "b3"])
    quantities = st.integers(1, 12)
    etas = st.sampled_from([None, date(2026, 1, 2), date(2026, 1, 5)])
    allocate = st.builds(Allocate, st.sampled_from(["o1", "o2", "o3", "o4", "o5"]), st.just("s"), quantities)
    create = st.builds(CreateBatch, refs, st.just("s"), quantities, etas)
    change = st.builds(ChangeBatchQuantity, refs, st.integers(0, 12))
    commands = st.one_of(allocate, create, allocate, change, allocate)

    @rule(command=commands)
    def one(self, command: Command) -> None:
        """A single command does what the model does."""
        assert self._run(command) == self.model.do(command)

    @rule(together=st.lists(commands, min_size=2, max_size=4))
    def several_at_once(self, together: list[Command]) -> None:
        """Concurrent commands have the outcome of some sequential order."""
        answers = list(self.pool.map(self._run, together))
        found = self._state()
        for order in itertools.permutations(range(len(together))):
            model = copy.deepcopy(self.model)
            told = {number: model.do(together[number]) for number in order}
            if model.state() == found and all(told[n] == answer for n, answer in enumerate(answers)):
                self.model = model
                return
        raise AssertionError(f"no order of {together} gives {answers} and {found}")

    @invariant()
    def postgres_and_the_model_agree(self) -> None:
        """Batches, allocated quantities and lines are the same."""
        assert self._state() == self.model.state()

    def _run(self, command: Command) -> Any:
        """Run a command as a worker does."""
        names = {"ref", "orderid", "sku"}
        own = {name: self.prefix + value if name in names else value for name, value in vars(command).items()}
        command, task_id = type(command)(**own), new_id()
        job, outbox = CommandJob(task_id, command, task_id), Outbox(self.engine)
        uow = project.unit_of_work(Settings(_env_file=None), self.engine, job, outbox)
        try:
            result = bus.handle_command(command, [], uow)
        except AllocationError as refusal:
            return type(refusal).__name__
        return result.removeprefix(self.prefix) if result else result

    def _state(self) -> State:
        with self.engine.begin() as connection:
            batches = connection.execute(
                text(
                    "SELECT reference, purchased_quantity, allocated_quantity FROM batches WHERE sku = :sku"
                ),
                {"sku": f"{self.prefix}s"},
            ).all()
            lines = connection.execute(
                text(
                    "SELECT batch_reference, orderid, qty FROM allocations WHERE sku = :sku ORDER BY position"
                ),
                {"sku": f"{self.prefix}s"},
            ).all()
        cut = len(self.prefix)
        state = {
            ref[cut:]: (qty, tuple((o[cut:], q) for b, o, q in lines if b == ref)) for ref, qty, _ in batches
        }
        assert {ref[cut:]: kept for ref, _, kept in batches} == {
            ref: sum(qty for _, qty in held) for ref, (_, held) in state.items()
        }
        return state


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Connections for the machine's concurrent commands."""
    engine = create_engine(database_url, pool_size=5)
    yield engine
    engine.dispose()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_products_in_postgres_behave_as_the_model_does(engine: Engine) -> None:
    """Whatever the commands, one by one or concurrent, nothing is over-allocated, lost or doubled."""
    with ThreadPoolExecutor(4) as pool:
        machine = type("Machine", (Products,), {"engine": engine, "pool": pool})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25,
                stateful_step_count=15,
                deadline=None,
                print_blob=True,  # the failed sequence, as a line that replays it
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
