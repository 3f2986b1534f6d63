"""Servers for every test: the suite starts its own, on free ports, and stops them at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from local import ports
from local.processes import programs
from local.servers.mail_server import MailSink
from local.servers.postgres_server import DATABASE, Postgres, hide_client_settings
from local.servers.redis_server import Redis
from testing import databases
from testing.databases import FAST
from testing.rabbitmq import RabbitMQ, find_binary
from tests.programs import MissingPrograms, missing

hide_client_settings()
# Our servers are on loopback, which a proxy does not reach.
_NO_PROXY = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["no_proxy"] = ",".join(filter(None, (_NO_PROXY, ports.LOOPBACK, "localhost")))


def pytest_configure(config: pytest.Config) -> None:
    """Report tests that were skipped for lack of a program in one line."""
    config.pluginmanager.register(MissingPrograms())


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that the servers' own account may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="allocation-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_path(server_folder: Path) -> Path:
    """The test's own folder, in which servers can run as their own account.

    pytest's is in a folder that each run of pytest on this machine closes to other accounts.
    """
    return Path(tempfile.mkdtemp(prefix="test-", dir=server_folder))


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL for the whole run; tests that kill a server start their own."""
    with Postgres(server_folder / "postgres", settings=FAST) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[Redis]:
    """A Redis for the whole run; tests that kill a server start their own."""
    with Redis(server_folder / "redis") as server:
        with redis.Redis.from_url(server.url) as client:
            # A busy disk would stop the server for seconds, and cost workers their connections.
            client.config_set("appendonly", "no")
        yield server


@pytest.fixture(scope="session")
def rabbitmq_installed() -> None:
    """Skip the test if RabbitMQ is not installed."""
    if find_binary() is None:
        missing("rabbitmq-server", "Debian's package of that name")


@pytest.fixture(scope="session")
def rabbitmq_server(rabbitmq_installed: None, server_folder: Path) -> Iterator[RabbitMQ]:
    """A RabbitMQ for the whole run."""
    with RabbitMQ(server_folder / "rabbitmq") as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    """The name of a migrated database, used only as a template."""
    programs.migrate(postgres.url)
    return DATABASE


@pytest.fixture(scope="session")
def new_database(postgres: Postgres, migrated_template: str) -> Callable[[], str]:
    """A function that returns the URL of a fresh, migrated, empty database."""
    return lambda: databases.copy_database(postgres, migrated_template)


@pytest.fixture(scope="session")
def database_url(new_database: Callable[[], str]) -> str:
    """The URL of one migrated database, which all tests share; see `clean_database`."""
    return new_database()


@pytest.fixture
def clean_database(database_url: str) -> str:
    """The shared database with every table emptied before the test."""
    databases.empty_database(database_url)
    return database_url


@pytest.fixture
def mail_sink(server_folder: Path, request: pytest.FixtureRequest) -> Iterator[MailSink]:
    """The test's own mail server; `mail_sink.mails` has the mails that arrived."""
    folder = Path(tempfile.mkdtemp(prefix="mail-", dir=server_folder))
    with MailSink(folder) as sink:
        yield sink


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    return ports.free_port()
