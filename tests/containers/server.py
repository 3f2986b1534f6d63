"""A server set up by typing the commands in docs/how-to/on-a-server.md."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from allocation.client import AllocationClient
from local import ROOT
from local.ports import LOOPBACK, free_port
from tests.containers.docker import docker
from tests.containers.figures import PAGE

SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
START = 300  # seconds; a build on a busy machine takes that long
PORTS = ("POSTGRES", "REDIS", "FLOWER", "SMTP")
WORKERS, PROCESSES = 2, 3
STOCK_TEAM = "buyers@example.com"


def typed(heading: str) -> list[str]:
    """Return the blocks of commands in a section of the page."""
    sections = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))
    return SHELL.findall(sections[heading])


class Server:
    """A copy of the project in a folder, with its own containers, ports and image."""

    def __init__(self, folder: Path, compose: list[str]) -> None:
        """Copy the tracked files; start nothing."""
        self.folder = folder
        self.project = f"allocation-test-{uuid4().hex[:8]}"
        self.image = f"{self.project}:latest"
        self._compose = compose
        self._environment = {**_without_settings(), "COMPOSE_PROJECT_NAME": self.project}
        self.ports = {name: free_port() for name in PORTS}
        _copy_checkout(folder)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything that it created."""
        self.compose("down", "--volumes", "--timeout", "5")
        for image in docker("images", "--quiet", self.project).split():
            docker("image", "rm", "--force", image)

    def start(self) -> None:
        """Type the page's commands, with our own settings before the last line."""
        *prepare, up = typed("Start")[0].splitlines()
        self.type("\n".join(prepare))
        self._set_more()
        self.type(up)

    def _set_more(self) -> None:
        more = {f"{name}_PORT": port for name, port in self.ports.items()}
        more |= {"IMAGE": self.image, "STOCK_TEAM": STOCK_TEAM}
        more |= {"WORKERS": WORKERS, "WORKER_CONCURRENCY": PROCESSES}
        if version := os.environ.get("ALLOCATION_PYTHON_VERSION"):
            more["PYTHON_VERSION"] = version
        with (self.folder / ".env").open("a") as file:
            file.writelines(f"ALLOCATION_{name}={value}\n" for name, value in more.items())

    def setting(self, name: str) -> str:
        """Return a line of `.env`."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")[
            f"ALLOCATION_{name}"
        ]

    def type(self, text: str) -> str:
        """Run shell commands from the page, with this server's Compose and image."""
        text = text.replace("docker compose", shlex.join(self._compose)).replace("git pull\n", "")
        text = text.replace("docker tag allocation allocation:", f"docker tag {self.image} {self.project}:")
        return self._run("bash", "-euo", "pipefail", "-c", text)

    def compose(self, *arguments: str) -> str:
        """Run Compose, and return its output."""
        return self._run(*self._compose, *arguments)

    def psql(self, statement: str) -> str:
        """Query the database."""
        return self.compose("exec", "-T", "postgres", "psql", "-qtAU", "allocation", "-c", statement).strip()

    def lock_in_background(self, sku: str, seconds: int) -> None:
        """Make every command for a product wait."""
        lock = f"SELECT * FROM products WHERE sku = '{sku}' FOR UPDATE"  # noqa: S608  ours
        statement = f"BEGIN; {lock}; SELECT pg_sleep({seconds}); COMMIT"
        self.compose("exec", "-d", "postgres", "psql", "-qU", "allocation", "-c", statement)

    def ids(self, *services: str) -> list[str]:
        """Return the running containers of some services, or of all."""
        return self.compose("ps", "-q", *services).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return Docker's information about a container."""
        known: dict[str, Any] = json.loads(docker("inspect", container))[0]
        return known

    def url(self, database: int, user: str = "", password: str | None = None) -> str:
        """Return Redis' address for an account; by default the one in `.env`."""
        password = self.setting("REDIS_PASSWORD") if password is None else password
        return f"redis://{user}:{password}@{LOOPBACK}:{self.ports['REDIS']}/{database}"

    def client(self) -> AllocationClient:
        """Return a sender with the password in `.env`."""
        return AllocationClient(self.url(0), self.url(1), timeout_s=60)

    def _run(self, *command: str) -> str:
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=START,
        )
        assert result.returncode == 0, (
            f"{shlex.join(command)}: {result.stdout[-3000:]}{result.stderr[-3000:]}"
        )
        return result.stdout


def _without_settings() -> dict[str, str]:
    """Return the environment of a user who has only `.env`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATION_")}


def _copy_checkout(folder: Path) -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, text=True, capture_output=True)  # noqa: S607
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
