"""These tests run only when named (`make test-containers`), never as part of the whole suite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.docker import compose_command
from tests.containers.figures import Figures
from tests.containers.server import Server
from tests.programs import missing

FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option to write the measured figures into the page."""
    parser.addoption("--write-docs", action="store_true", help="write the figures into the page")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Ignore this folder unless it was named: it builds an image, and takes minutes."""
    here, started_in = Path(__file__).parent, config.invocation_params.dir
    named = (started_in / argument.partition("::")[0] for argument in config.args)
    return None if any(path.is_relative_to(here) for path in named) else True


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[Figures]:
    """The measured figures; printed at the end, and written on request if all tests passed."""
    figures = Figures()
    yield figures
    pytestconfig.stash[FIGURES] = figures
    if pytestconfig.getoption("write_docs") and not request.session.testsfailed:
        figures.write()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the measured figures."""
    if FIGURES in config.stash:
        terminalreporter.section("figures")
        terminalreporter.write_line(config.stash[FIGURES].table())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server set up as in the page."""
    compose = compose_command()
    if compose is None:
        missing("Docker", "a daemon that answers, with Compose 2 or docker-compose")
    with Server(tmp_path_factory.mktemp("server"), compose) as server:
        server.start()
        yield server
