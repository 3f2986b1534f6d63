"""The shop's databases, and shops on them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from examples.vip_customers.demo import VIP
from examples.vip_customers.tasks import Settings, project
from local.processes import programs
from local.servers.postgres_server import Postgres
from messaging.project.runtime import Runtime
from testing import databases
from tests.vip_customers.shops import FakeShop, PostgresShop, Shop


@pytest.fixture(scope="session")
def vip_template(postgres: Postgres) -> str:
    """The name of a migrated database of the shop, used only as a template."""
    url = databases.copy_database(postgres, "template1")
    programs.migrate(url, VIP)
    return url.rpartition("/")[2]


@pytest.fixture
def vip_database(postgres: Postgres, vip_template: str) -> Iterator[str]:
    """The URL of an empty database of the shop."""
    url = databases.copy_database(postgres, vip_template)
    yield url
    databases.drop_database(postgres, url)


@pytest.fixture
def vip_runtime(vip_database: str) -> Iterator[Runtime]:
    """The shop's runtime on its own database."""
    runtime = Runtime(replace(project, settings=lambda: Settings(database_url=vip_database)))
    yield runtime
    runtime.engine.dispose()


@pytest.fixture
def postgres_shop(vip_runtime: Runtime) -> PostgresShop:
    """A shop whose deliveries are made by the test."""
    return PostgresShop(vip_runtime)


@pytest.fixture(params=["fake", "postgres"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """Every acceptance test runs on both shops, so that they stay the same."""
    build: dict[str, Callable[[], Shop]] = {
        "fake": FakeShop,
        "postgres": lambda: request.getfixturevalue("postgres_shop"),
    }
    return build[request.param]()
