"""pytest-celery's nodes as local processes; its own run in containers."""

from __future__ import annotations

import signal
from typing import Any

from celery.utils.nodenames import gethostname
from pytest_celery.api.container import CeleryTestContainer

from local.processes.child import Child
from tests.e2e.conftest import Backend


class LocalServer(CeleryTestContainer):
    """A running server as a broker or result backend node; its fixture starts and stops it."""

    def __init__(self, url: str) -> None:  # no super(): there is no container
        self._url = url

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self._url, "host_url": self._url}

    def ready(self) -> bool:
        return True


class LocalWorker(CeleryTestContainer):
    """A worker process as a worker node."""

    def __init__(self, backend: Backend, child: Child) -> None:  # no super(): there is no container
        self._backend = backend
        self._child = child

    @property
    def id(self) -> str:
        return str(gethostname())

    @property
    def name(self) -> str:
        return self._child.name

    @property
    def status(self) -> str:
        return "running" if self._child.running else "exited"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    def logs(self, **_: Any) -> str:
        return self._child.log_text()

    def ready(self) -> bool:
        self._backend.wait_for_worker(self._child)
        return True

    def kill(self, signal: int | str = signal.SIGKILL) -> None:  # the plugin's name
        if str(signal) in {"SIGTERM", "15"}:
            self._child.stop()
        else:
            self._child.kill()

    def reload(self) -> None:
        """Do nothing: the state is that of the process."""

    def restart(self, timeout: int = 30) -> None:  # noqa: ARG002  # the plugin's name
        self._child.stop()
        self._child.start()
        self.ready()

    def teardown(self) -> None:
        self._child.stop()

    def worker_name(self) -> str:
        return self._child.name

    def worker_queue(self) -> str:
        return "allocation.commands"
