"""The definition of a peer: how its workers start, and how lines get into its queue."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """An order line to allocate."""

    orderid: str
    sku: str
    qty: int = 1


Programs = list[list[str]]  # Python's arguments for each program to start


@dataclass(frozen=True)
class Peer:
    """A way to run the job; `workers(n)` returns the programs to start on n cores."""

    name: str
    title: str
    workers: Callable[[int], Programs]
    publish: Callable[[Sequence[Line]], object]
    counter: str = "allocations_position_seq"  # a sequence that grows with every allocated line
    prepare: Callable[[], object] = lambda: None  # creates its tables
    env: dict[str, str] = field(default_factory=dict)
    #: Its usual settings on n cores, by their text in the table: the race is run with the fastest of them.
    choices: Callable[[int], dict[str, Programs]] = lambda _cores: {}
    #: Environment variables of its usual settings, by the end of their text.
    choices_env: dict[str, dict[str, str]] = field(default_factory=dict)
    settings: str = ""  # the settings that it runs with, as shown
    lacks: str = ""  # what it does not do that the others do, as shown

    @property
    def shown(self) -> str:
        """Return its name in the table, with its settings and what it lacks."""
        facts = ", ".join(fact for fact in (self.settings, self.lacks) if fact)
        return f"{self.title} ({facts})" if facts else self.title


def database_url() -> str:
    """Return the database's address for psycopg2, without SQLAlchemy's driver suffix."""
    return os.environ["ALLOCATION_DATABASE_URL"].replace("+psycopg2", "", 1)


def redis_url(database: int) -> str:
    """Return one database of the Redis server; each peer has its own."""
    return f"{os.environ['BENCHMARK_REDIS_URL']}/{database}"
