"""The `/metrics` of a worker: its main process adds up the files of all its processes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

from celery import signals
from prometheus_client import CollectorRegistry, Metric, start_http_server, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from messaging.errors import describe

logger = logging.getLogger(__name__)

#: Files of these kinds outlive their process: what a dead child has counted still counts.
LASTING = ("counter", "histogram")
#: What reading a file raises if its process was killed while it wrote to it.
UNREADABLE = (struct.error, RuntimeError, ValueError, IndexError)
#: Bytes of a new file, and the most that a series needs there besides its name.
FILE_SIZE, LONGEST_REST = 65_536, 64
#: The file in a folder that its worker keeps locked.
IN_USE = "in-use"
#: Stands in a file's name for all processes that have ended.
ENDED = "0"


class Files(Collector):
    """The files of one worker's processes, in a folder that ends with the worker."""

    def __init__(self) -> None:
        remove_unused()
        self.folder = Path(tempfile.mkdtemp(prefix="metrics-"))
        self._in_use = _marked(self.folder)
        self._lock = threading.Lock()
        self.now: Callable[[], Iterable[Metric]] = tuple  # what is known when somebody asks
        values.MmapedDict = OwnDict  # type: ignore[attr-defined]
        # Read whenever a process opens its file.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)
        values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # also where the library was imported before

    def collect(self) -> Iterable[Metric]:
        """Return the sums over all processes."""
        with self._lock:
            self.put_together()
            return [*MultiProcessCollector(None, str(self.folder)).collect(), *self.now()]  # type: ignore[no-untyped-call]

    def put_together(self) -> None:
        """Add the files of processes that have ended to one: a worker may have had thousands of children."""
        for path in self.folder.glob("*.db"):
            kind, pid = path.stem.rsplit("_", 1)
            if pid == ENDED or _runs(int(pid)):
                continue
            try:
                if kind in LASTING:
                    _add(path, self.folder / f"{kind}_{ENDED}.db")
            except UNREADABLE as error:
                logger.warning("What process %s has counted is lost: %s", pid, describe(error))
            except OSError:  # no space for more series; the file itself counts until there is
                continue
            path.unlink()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._in_use.close()


class ReservedDict(MmapedDict):
    """A file whose space is taken before it is used.

    Where a disk is full, writing to memory that stands for a file would kill the process, and so its message.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode and not os.path.exists(filename):  # noqa: PTH110  the library's own texts
            new = Path(f"{filename}.new")  # nobody reads a file that is not whole
            try:
                new.write_bytes(bytes(FILE_SIZE))
            except OSError:
                new.unlink(missing_ok=True)
                raise
            new.rename(filename)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        """Add a series; the file may grow for it."""
        if self._used + len(key.encode()) + LONGEST_REST > self._capacity:
            self._grow(self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self, size: int) -> None:
        with Path(self._fname).open("ab") as file:
            file.write(bytes(size))


class OwnDict(ReservedDict):
    """The file of this process; without space for it, memory that nobody reads.

    An error would leave the library with closed files, and whatever is counted later would raise another one.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            super().__init__(filename, read_mode)
        except OSError as error:
            self._fname, self._positions, self._used = filename, {}, 8  # as of an empty file
            self._m, self._capacity = mmap(-1, FILE_SIZE), FILE_SIZE
            self._leave_file(error)

    def _grow(self, size: int) -> None:
        if self._f is not None:
            try:
                super()._grow(size)
            except OSError as error:
                self._leave_file(error)
            else:
                return
        memory = mmap(-1, 2 * size)
        memory[:size] = self._m[:size]
        self._m, self._capacity = memory, 2 * size

    def _leave_file(self, error: OSError) -> None:
        logger.warning("%s counts no more: %s", Path(self._fname).stem, describe(error))
        self._f = None  # type: ignore[assignment]  # as after `close`


def remove_unused() -> None:
    """Delete the folders of workers that were killed."""
    for mark in Path(tempfile.gettempdir()).glob(f"metrics-*/{IN_USE}"):
        with suppress(OSError), mark.open("ab") as file:  # of another user, or locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)


def _marked(folder: Path) -> BinaryIO:
    """Lock a file in a folder until this process and its children have ended."""
    file = (folder / "new").open("ab")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "new").rename(folder / IN_USE)
    return file


def serve_while_it_runs(files: Files, address: str, pool_size: Callable[[int], Metric]) -> None:
    """Serve the files of this worker from the time that it is ready to its end."""
    servers: list[Any] = []

    def ready(sender: Any, **_: Any) -> None:
        def now() -> Iterator[Metric]:
            # This thread must not count: a child that is forked while it holds the lock of all counts hangs.
            with suppress(AttributeError):  # its pool has stopped
                yield pool_size(sender.pool.num_processes)  # an operator may change it

        files.now = now
        servers.append(serve(files, address))

    def leave_socket(**_: Any) -> None:
        """A child that outlives its parent must not keep the port."""
        for server in filter(None, servers):
            server.socket.close()

    def end(**_: Any) -> None:
        files.remove()

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(leave_socket, weak=False)
    signals.worker_shutdown.connect(end, weak=False)


def serve(files: Files, address: str) -> Any:
    """Serve `/metrics` at `host:port`; None if the port is taken: the worker then works without."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(files)
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        logger.error("No metrics: %s cannot be served: %s", address, error)  # noqa: TRY400  one line says it
        return None
    logger.info("Metrics at http://%s/metrics", address)
    return server


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _add(path: Path, total: Path) -> None:
    """Add one file's values to those of another."""
    counted = list(MmapedDict.read_all_values_from_file(str(path)))  # type: ignore[no-untyped-call]
    sums = ReservedDict(str(total))
    try:
        for key, *_ in counted:  # makes space for all or fails, before anything is added
            sums.read_value(key)  # type: ignore[no-untyped-call]
        for key, value, _, _ in counted:
            so_far, _ = sums.read_value(key)  # type: ignore[no-untyped-call]
            sums.write_value(key, so_far + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        sums.close()  # type: ignore[no-untyped-call]
