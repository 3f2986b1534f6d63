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


@contextmanager
def simulated_world() -> Iterator[World]:
    """Give a world, and take its server down at the end."""
    folder = Path(tempfile.mkdtemp(prefix="allocation-simulation-"))
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
