"""What the local servers share: start, stop, kill, and restart over the same data."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from local.ports import PortInUseError, free_port, is_free
from local.processes.child import Child
from local.waiting import NotInTimeError, eventually

START_TIMEOUT = 60.0  # seconds; a busy machine with two cores needs a few
RECOVERY_TIMEOUT = 600.0  # seconds for a server that says that it recovers: killed, it would begin anew


@dataclass
class Server(ABC):
    """A server on loopback over `folder`, which holds its data and its log; a context manager."""

    folder: Path
    port: int = field(default_factory=free_port)
    start_timeout: float = field(default=START_TIMEOUT, repr=False)  # seconds
    _child: Child | None = field(default=None, init=False, repr=False)

    @property
    @abstractmethod
    def url(self) -> str:
        """The address as the settings want it."""

    @abstractmethod
    def _prepare(self) -> Child:
        """Prepare the data and return the process to start."""

    @abstractmethod
    def _answers(self) -> bool:
        """Make a real request to the server; an exception means "not yet"."""

    def _recovers(self, error: BaseException | None) -> bool:  # noqa: ARG002 - for those that can tell
        """Tell whether this error of `_answers` says that the server still reads its data."""
        return False

    def start(self) -> Self:
        """Start over the existing data, if any, and return when the server answers.

        Raises `PortInUseError` or, with the log's tail, `ChildFailedError` or `NotInTimeError`.
        """
        if not is_free(self.port):
            raise PortInUseError(self.port)
        self.folder = self.folder.resolve()
        self._child = self._prepare()
        self._child.start()
        try:
            self._wait_ready(self._child)
        except BaseException:
            self._child.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop the server cleanly and keep its data."""
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """SIGKILL the server and its processes; its data stays as it is at that moment."""
        if self._child is not None:
            self._child.kill()

    @property
    def running(self) -> bool:
        """Tell whether the server's process runs."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """Return the id of the main process."""
        if self._child is None:
            raise RuntimeError(f"{type(self).__name__} was never started")
        return self._child.pid

    def __enter__(self) -> Self:
        """Start, unless it runs already."""
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _wait_ready(self, child: Child) -> None:
        """Poll until the server answers; give up if its process ends, whatever else listens on the port."""

        def answers_or_ended() -> bool:
            return not child.running or self._answers()

        what = f"an answer from {child.name} on port {self.port} (log: {child.log})"
        try:
            eventually(answers_or_ended, self.start_timeout, what)
        except NotInTimeError as error:
            if not self._recovers(error.__cause__):
                raise
            eventually(answers_or_ended, RECOVERY_TIMEOUT, what)
        if not child.running:
            raise child.ended_early()
