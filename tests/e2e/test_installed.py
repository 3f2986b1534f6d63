"""The package, built like a release and installed into empty environments outside this checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psycopg2
import pytest
import redis

from local import ROOT
from local.ports import free_port
from local.processes.child import Child
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging import __version__
from tests.e2e import pythons
from tests.e2e.conftest import Backend, Broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: The lowest that the package allows.
OLDEST_CELERY = "5.5"
INSTALL_TIMEOUT = 300  # seconds; some megabytes from an index
#: The install command in an example's first lines; the wheel replaces a clone of this repository.
INSTALL = re.compile("^Install: pip install (.+)$", re.MULTILINE)
CLONE = "$HOME/allocation"
#: Each example in Python, and its output once it works.
EXAMPLES = {
    ROOT / "examples" / name: printed
    for name, printed in {
        "senders/plain.py": "plain-batch\n",
        "senders/kombu_by_hand.py": "hand-batch\n",
        "senders/fastapi_app.py": "Uvicorn running",
        "senders/flask_app.py": "Running on",
        "senders/django_app.py": "development server at",
        "listener/listen.py": "Listening to every event",
    }.items()
}
SENDER = """
import os, sys
from allocation.client import AllocationClient
from allocation.domain.errors import InvalidSku

client = AllocationClient(os.environ["ALLOCATION_BROKER_URL"], os.environ["ALLOCATION_RESULT_BACKEND_URL"])
sku = sys.argv[1]
client.create_batch(f"batch-{sku}", sku, 100, timeout_s=60)
print(client.allocate(f"order-{sku}", sku, 3, timeout_s=60))
try:
    client.allocate(f"order-{sku}", "NO-SUCH", 3, timeout_s=60)
except InvalidSku as error:
    print(error)
print([name for name in ("sqlalchemy", "pydantic") if name in sys.modules])
"""


#: It asks for an answer in time, and never for the others.
SENDER_THAT_DOES_NOT_ASK = """
import array, fcntl, os, sys, termios
from allocation.client import Allocate, AllocationClient
from messaging.client import NotAnswered

client = AllocationClient(os.environ["ALLOCATION_BROKER_URL"], os.environ["ALLOCATION_RESULT_BACKEND_URL"])
order = Allocate("order", sys.argv[1], 1)
try:
    client.call(order, timeout_s=0)
except NotAnswered:
    pass
for _ in range(500):
    client.delay(order)
unread = array.array("i", [0])
fcntl.ioctl(client.app.backend.result_consumer._pubsub.connection._sock.fileno(), termios.FIONREAD, unread)
print(unread[0] < 1000)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used from an empty folder."""

    folder: Path
    variables: dict[str, str]

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def empty(self) -> Path:
        empty = self.folder / "an empty folder"
        empty.mkdir(exist_ok=True)
        return empty

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        return subprocess.run(
            [self.python, *arguments], cwd=self.empty, env=self.variables, check=False, text=True,
            capture_output=True, timeout=timeout,
        )  # fmt: skip

    def install(self, *what: str) -> None:
        """Install with pip."""
        done = self.run("-m", "pip", "install", "--quiet", *what, timeout=INSTALL_TIMEOUT)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    """The wheel, which `build` creates from the source distribution."""
    [wheel] = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def broker(redis_server: Redis) -> Broker:
    """One kind of broker is enough here."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Broker(redis_server.url_of(0), redis_server.url_of(1))


@pytest.fixture(scope="module")
def environment_of(
    tmp_path_factory: pytest.TempPathFactory, backend: Backend
) -> Callable[[str], Environment]:
    """A function that creates an empty environment with a version of Python."""
    strange = ("PYTHON", "VIRTUAL_ENV", "ALLOCATION_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(strange)}

    def make(version: str) -> Environment:
        folder = tmp_path_factory.mktemp(f"python{version}")
        subprocess.run([pythons.found()[version], "-m", "venv", str(folder)], check=True, timeout=120)
        return Environment(folder, {**plain, **backend.env})

    return make


@pytest.fixture(scope="module")
def server(wheel: Path, environment_of: Callable[[str], Environment]) -> Environment:
    """The newest Python with the packages for workers and Flower."""
    environment = environment_of(list(pythons.found())[-1])
    environment.install(f"{wheel}[flower]")
    return environment


@pytest.fixture(scope="module")
def worker(server: Environment, backend: Backend) -> Iterator[Child]:
    """A worker in an empty folder, which uses the installed package."""
    arguments = ("-A", "tasks", "worker", "--loglevel=INFO", "--hostname=installed@%h", "--concurrency=1")
    child = Child(
        "installed", [server.python, "-m", "celery", *arguments],
        log=backend.folder / "installed.log", env=server.variables, cwd=server.empty,
    )  # fmt: skip
    child.start()
    backend.wait_for_worker(child)
    yield child
    child.stop()


@pytest.mark.parametrize("version", pythons.found())
def test_the_wheel_alone_sends_commands_from_each_python(
    version: str, wheel: Path, environment_of: Callable[[str], Environment], worker: Child
):
    app = environment_of(version)
    app.install(str(wheel))

    _send(app, f"LAMP-{version}")
    assert app.run("-m", "pip", "check").returncode == 0


@pytest.fixture(scope="module")
def installed_for(wheel: Path, environment_of: Callable[[str], Environment]) -> Callable[[Path], Environment]:
    """A function that installs what an example's first lines say."""

    @cache
    def environment(line: str) -> Environment:
        environment = environment_of(list(pythons.found())[-1])
        environment.install(*(word.replace(CLONE, str(wheel)) for word in shlex.split(line)))
        return environment

    return lambda example: environment(INSTALL.findall(example.read_text())[0])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_runs_from_an_empty_folder_with_the_packages_that_it_names(
    example: Path, installed_for: Callable[[Path], Environment], backend: Backend, worker: Child
):
    environment = installed_for(example)
    program = Child(
        example.name, [environment.python, shutil.copy(example, environment.empty)],
        log=backend.folder / f"{example.name}.log", cwd=environment.empty,
        env={
            **environment.variables, "PORT": str(free_port()), "PYTHONUNBUFFERED": "1",
            "BROKER_URL": environment.variables["ALLOCATION_BROKER_URL"],
            "RESULTS_URL": environment.variables["ALLOCATION_RESULT_BACKEND_URL"],
        },
    )  # fmt: skip
    program.start()

    try:
        eventually(lambda: EXAMPLES[example] in program.log_text(), 60, f"an answer, see {program.log}")
    finally:
        program.stop()


def test_an_app_keeps_its_older_celery(
    wheel: Path, environment_of: Callable[[str], Environment], worker: Child
):
    app = environment_of(next(iter(pythons.found())))
    app.install(f"celery[redis]=={OLDEST_CELERY}.*")
    app.install(str(wheel))

    _send(app, "LAMP-old")
    assert app.run("-m", "celery", "--version").stdout.startswith(OLDEST_CELERY)
    assert app.run("-c", SENDER_THAT_DOES_NOT_ASK, "LAMP-old").stdout == "True\n"


def _send(app: Environment, sku: str) -> None:
    """Send commands with only the typed client."""
    sent = app.run("-c", SENDER, sku)

    assert sent.stdout.splitlines() == [f"batch-{sku}", "Invalid sku NO-SUCH", "[]"], sent.stderr


@pytest.fixture(scope="module")
def client_only(wheel: Path, environment_of: Callable[[str], Environment]) -> Environment:
    """The newest Python with the package and none of its extras."""
    environment = environment_of(list(pythons.found())[-1])
    environment.install(str(wheel))
    return environment


def test_the_version_is_printed_without_extras_too(client_only: Environment):
    said = client_only.run("-m", "allocation", "--version")

    assert (said.returncode, said.stdout, said.stderr) == (0, f"allocation {__version__}\n", "")


@pytest.mark.parametrize("program", [("allocation", "check"), ("celery", "-A", "tasks", "worker")])
def test_a_missing_extra_is_one_line(client_only: Environment, program: tuple[str, ...]):
    said = client_only.run("-m", *program)

    assert said.returncode == 1
    assert said.stdout == ""
    assert said.stderr.count("\n") == 1
    assert said.stderr.endswith("install allocation[worker]\n")


def test_signing_says_which_extra_it_needs(client_only: Environment):
    (client_only.empty / "key.pem").touch()
    said = client_only.run(
        "-c",
        "from allocation.client import AllocationClient; from messaging.brokers.signing import Signing\n"
        "from pathlib import Path; key = Path('key.pem')\n"
        "AllocationClient('redis://', 'redis://', signing=Signing(key, key, '*.pem'))",
    )

    assert said.stderr.splitlines()[-1].endswith("install allocation[signing]")


def test_the_operators_tool_works_without_the_checkout(server: Environment, worker: Child):
    created = server.run("-m", "allocation", "create-batch", "batch-by-hand", "CHAIR", "5")

    assert created.returncode == 0, created.stderr
    assert server.run("-m", "allocation", "--version").stdout == f"allocation {__version__}\n"


def test_the_migrations_are_installed(server: Environment, postgres: Postgres):
    with closing(psycopg2.connect(postgres.url_of("postgres").replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE never_migrated")
    empty = replace(
        server,
        variables={**server.variables, "ALLOCATION_DATABASE_URL": postgres.url_of("never_migrated")},
    )

    assert empty.run("-m", "allocation", "stock", "LAMP").returncode == 3
    assert empty.run("-m", "allocation", "migrate").returncode == 0
    assert "Invalid sku LAMP" in empty.run("-m", "allocation", "stock", "LAMP").stderr


def test_the_pages_of_flower_are_installed(server: Environment):
    loaded = server.run(
        "-c",
        "from messaging.flower import loader, pages;"
        " print(*sorted(page.name for page in loader.OURS.glob('*.html')))",
    )

    pages = sorted(Path(page).name for page in _files("messaging/flower/templates/*.html"))
    assert loaded.stdout.split() == pages, loaded.stderr


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names} == {
        "allocation", "messaging", "reliable_celery", "tasks", "celeryconfig.py",
        f"allocation-{__version__}.dist-info",
    }  # fmt: skip
    assert {"allocation/py.typed", "messaging/py.typed", "reliable_celery/py.typed", "tasks/py.typed"} <= set(
        names
    )
    assert set(_files("messaging/postgres/migrations/versions/*.py")) <= set(names)
    assert set(_files("allocation/adapters/migrations/*.py")) <= set(names)
    assert set(_files("messaging/flower/templates/*.html")) <= set(names)


def test_a_source_distribution_is_built_too(built: Path):
    assert [file.name for file in built.glob("*.tar.gz")] == [f"allocation-{__version__}.tar.gz"]


def _files(pattern: str) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in ROOT.glob(pattern)]
