"""A world on a PostgreSQL of its own, whose settings make simulations quick."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.processes import programs
from local.servers.postgres_server import Postgres
from testing.databases import FAST
from tests.simulation.database import SETTINGS
from tests.simulation.world import World

#: Where files take the least time to empty, if there is room for a server's.
MEMORY, ROOM = Path("/dev/shm"), 2**30


@contextmanager
def simulated_world() -> Iterator[World]:
    """Give a world, and take its server down at the end."""
    folder = Path(tempfile.mkdtemp(prefix="allocation-simulation-", dir=_memory()))
    try:
        with Postgres(folder / "postgres", settings={**FAST, **SETTINGS}) as server:
            programs.migrate(server.url)
            world = World(server.url)
            try:
                yield world
            finally:
                world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _memory() -> Path | None:
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM else None
