"""Clusters for these tests, each of its own servers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local.processes import programs
from messaging.delivery import new_id
from testing.databases import FAST
from testing.postgres_pair import PostgresPair


@pytest.fixture
def pair(server_folder: Path) -> Iterator[PostgresPair]:
    """A primary with its synchronous standby, migrated through the address of both."""
    with PostgresPair(server_folder / f"pair-{new_id()}", dict(FAST)) as servers:
        programs.migrate(servers.url)
        yield servers
