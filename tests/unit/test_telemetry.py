"""What follows the work of a worker, without a worker."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from allocation.bootstrap import project
from allocation.config import Settings
from messaging import tracing
from messaging.project.runtime import Runtime
from messaging.telemetry.log import Lines
from messaging.telemetry.work import Kind, Outcome, Watch, Work

#: Counts something in the folder that it is given, and ends without Python's own exit functions.
COUNTS = """
import os, sys
from messaging.telemetry.scrape import Files
files = Files()
from prometheus_client import CollectorRegistry, Counter
for number in range(int(sys.argv[1])):
    if os.fork() == 0:
        Counter("a", "", registry=CollectorRegistry()).inc()
        os._exit(0)
    os.wait()
value = lambda: next(s.value for m in files.collect() for s in m.samples if s.name == "a_total")
print(value(), value(), len(list(files.folder.glob("*.db"))))
files.remove()
print(files.folder.exists())
"""


#: A worker with the files of processes that were killed at bad moments; it is killed as well.
KILLED = """
import os
from messaging.telemetry.scrape import Files
files = Files()
from prometheus_client import CollectorRegistry, Counter
counter = Counter("a", "", ["b"], registry=CollectorRegistry())
for number in range(1000):
    counter.labels(str(number)).inc()
(files.folder / "histogram_999999.db").touch()
(files.folder / "counter_999998.db").write_bytes(b"\\xff\\x00\\x00\\x00" * 25)
value = lambda: sum(s.value for m in files.collect() for s in m.samples if s.name == "a_total")
print(value(), value(), all(f.stat().st_blocks * 512 >= f.stat().st_size for f in files.folder.glob("*.db")),
      len(list(files.folder.parent.glob("metrics-*"))), flush=True)
os._exit(9)
"""


#: A child that begins while the disk is full, or has too little space for a number of series.
FULL = """
import os, resource, sys
from allocation.bootstrap import project
from messaging.telemetry.scrape import Files
files = Files()
from messaging.telemetry.metrics import Measures
from messaging.telemetry.work import Kind, Watch, Work
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import create_engine
watch = Watch([Measures(project)])
counter = Counter("a", "", ["b"], registry=CollectorRegistry())
for number in range(int(sys.argv[2])):
    counter.labels(str(number))
if os.fork() == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    engine = create_engine("sqlite://")
    for number in range(3):
        with watch.over(Work(Kind.COMMAND, "allocation.allocate", "t1", "q", "t1")), engine.connect():
            counter.labels(f"new {number}").inc()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for number in range(1000):
        counter.labels(f"later {number}").inc()
    os._exit(0)
print(os.wait()[1], len(list(files.collect())) > 3)
files.remove()
"""


#: A worker that adds up what a child has counted, while it has no space for so many series.
NO_SPACE = """
import os, resource
from messaging.telemetry.scrape import Files
files = Files()
from prometheus_client import CollectorRegistry, Counter
if os.fork() == 0:
    counter = Counter("a", "", ["b"], registry=CollectorRegistry())
    for number in range(3000):
        counter.labels(str(number)).inc()
    os._exit(0)
os.wait()
value = lambda: sum(s.value for m in files.collect() for s in m.samples if s.name == "a_total")
for limit in 1000, 70_000, 70_000, resource.RLIM_INFINITY, resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print(value())
print(len(list(files.folder.glob("*.db*"))))
files.remove()
"""


#: A worker that is scraped while another thread has the lock of all counts.
SCRAPED = """
import inspect, threading
from types import SimpleNamespace
from allocation.bootstrap import project
from celery import signals
from messaging.telemetry import scrape
files = scrape.Files()
from messaging.telemetry.metrics import Measures
from prometheus_client import values
scrape.serve_while_it_runs(files, "127.0.0.1:0", Measures(project).pool_size)
class Worker:
    pool = SimpleNamespace(num_processes=3)
signals.worker_ready.send(sender=Worker)
name = "allocation_worker_pool_size"
scraping = threading.Thread(
    target=lambda: print([s.value for m in files.collect() for s in m.samples if s.name == name]), daemon=True
)
with inspect.getclosurevars(values.ValueClass.set).nonlocals["lock"]:
    scraping.start()
    scraping.join(10)
files.remove()
"""


#: A process whose database goes away.
AWAY = """
from contextlib import suppress
from allocation.bootstrap import project
from messaging.telemetry.scrape import Files
files = Files()
from messaging.telemetry.metrics import Measures
from sqlalchemy.pool import QueuePool
Measures(project)
name = "allocation_worker_database_connections"
value = lambda: next(s.value for m in files.collect() for s in m.samples if s.name == name)
import sqlite3
there = True
def connect():
    if not there:
        raise OSError("it is away")
    return sqlite3.connect(":memory:")
pool = QueuePool(connect, pool_size=0)
first, second = pool.connect(), pool.connect()
print(value())
there = False
first.invalidate()
second.close()
for _ in range(5):
    with suppress(OSError):
        pool.connect().invalidate()
print(value())
there = True
third = pool.connect()
print(value())
third.close()
files.remove()
"""


def said(program: str, folder: Path, *args: str) -> tuple[list[str], str]:
    """Run a program with a folder for its files; return the words that it prints, and its errors."""
    done = subprocess.run(
        [sys.executable, "-c", program, *args], env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout.split(), done.stderr


def order() -> Work:
    """A command in a worker."""
    return Work(Kind.COMMAND, "allocation.allocate", "t1", "allocation.commands", "t1")


def test_the_files_of_ended_processes_are_added_to_one(tmp_path: Path):
    assert said(COUNTS, tmp_path, "5") == (["5.0", "5.0", "1", "False"], "")


def test_a_scrape_takes_no_lock_that_a_child_would_inherit(tmp_path: Path):
    """Children are forked meanwhile, and such a child would wait for ever as it counts its first message."""
    assert said(SCRAPED, tmp_path) == (["[3]"], "")


def test_a_worker_cleans_up_after_others_that_were_killed(tmp_path: Path):
    """It also counts in space that its files have taken: writing where a disk is full would kill it."""
    for _ in range(2):
        words, errors = said(KILLED, tmp_path)

        assert words == ["1000.0", "1000.0", "True", "1"]
        assert errors.count("has counted is lost") == 2


@pytest.mark.parametrize(("space", "series"), [("1000", "0"), ("70000", "3000")])
def test_a_process_without_space_for_its_files_works_on_and_counts_nothing(
    tmp_path: Path, space: str, series: str
):
    words, errors = said(FULL, tmp_path, space, series)

    assert words == ["0", "True"]
    assert "counts no more" in errors
    assert "Traceback" not in errors


def test_what_an_ended_process_has_counted_is_added_once_also_if_there_is_no_space_for_it(tmp_path: Path):
    assert said(NO_SPACE, tmp_path) == (["3000.0"] * 5 + ["1"], "")


def test_connections_in_use_are_counted_right_after_the_database_was_away(tmp_path: Path):
    assert said(AWAY, tmp_path) == (["2.0", "0.0", "1.0"], "")


def test_a_taken_port_is_an_error_in_the_log_alone(caplog, monkeypatch):
    from messaging.telemetry import scrape

    monkeypatch.setattr(scrape.values, "ValueClass", scrape.values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    files = scrape.Files()
    server = scrape.serve(files, "127.0.0.1:0")

    assert scrape.serve(files, f"127.0.0.1:{server.server_port}") is None
    assert "cannot be served" in caplog.text
    server.shutdown()
    server.server_close()
    files.remove()


def test_a_watcher_that_fails_changes_nothing(caplog):
    class Broken:
        def begin(self, _work: Work) -> None:
            raise RuntimeError("begin")

        def end(self, _work: Work, _begun: object) -> None:
            raise RuntimeError("end")

    with Watch([Broken()]).over(order()) as work:
        pass

    assert work.outcome is Outcome.DONE
    assert caplog.text.count("Telemetry failed; the work goes on") == 2


def test_an_error_of_the_worker_passes_and_is_noted():
    with pytest.raises(LookupError), Watch().over(order()) as work:
        raise LookupError("of the worker")

    assert (work.outcome, work.why) == (Outcome.ERROR, "LookupError: of the worker")


@pytest.mark.parametrize(
    "header",
    ["", "00-1-2-01", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'A' * 32}-{'1' * 16}-01", 1, None, [], {}],
)
def test_a_header_that_is_no_trace_is_ignored(header: object):
    assert tracing.checked(header) is None
    assert tracing.checked_many([header]) == (None,)
    assert tracing.checked_many(header) == ()


def test_a_trace_is_taken_from_its_header():
    header = f"00-{'a' * 32}-{'1' * 16}-01"

    assert tracing.checked(header) == header


def test_what_is_not_switched_on_is_not_loaded():
    """redis-py loads a part of OpenTelemetry by itself."""
    code = (
        "import sys, tasks; from messaging import tracing\n"
        "ONLY_OURS = ('opentelemetry.exporter', 'opentelemetry.sdk.trace', 'prometheus_client')\n"
        "assert tracing.current() is None\n"
        "print([name for name in sys.modules if name.startswith(ONLY_OURS)])"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL", "ALLOCATION_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_an_extra_that_is_asked_for_and_missing_is_named(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['opentelemetry'] = None")
    env = {**os.environ, "ALLOCATION_TRACES_URL": "http://127.0.0.1:4318", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import tasks"], env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    assert "opentelemetry" in done.stderr
    assert done.returncode != 0


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.INFO)


def test_a_name_from_a_sender_stays_in_its_line(caplog):
    runtime = Runtime(replace(project, settings=lambda: Settings(_env_file=None)))
    caplog.set_level(logging.INFO)

    with Watch([Lines(runtime)]).over(
        Work(Kind.COMMAND, "no\nsuch \ud800", "t1", "allocation.commands", "t1")
    ):
        pass

    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert "no\\nsuch" in record.getMessage()


#: Processes that write long lines at the same time, as those of a worker do.
WRITES = """
import logging, os, sys
from celery import signals
from messaging.telemetry import log
log.set_up("test", as_json=True)
logger = logging.getLogger("test")
logger.addHandler(logging.StreamHandler())
signals.after_setup_logger.send(None, logger=logger)
for _ in range(4):
    if os.fork() == 0:
        for _ in range(25):
            logger.warning("x" * 20_000)
        os._exit(0)
for _ in range(4):
    os.wait()
"""


def test_lines_of_several_processes_do_not_mix_in_a_full_pipe():
    """A collector of logs may read more slowly than a worker writes."""
    read = ""
    with subprocess.Popen([sys.executable, "-c", WRITES], stderr=subprocess.PIPE, text=True) as writers:
        assert writers.stderr is not None
        while some := writers.stderr.read(4096):
            read += some
            time.sleep(0.0002)

    assert [len(json.loads(line)["message"]) for line in read.splitlines()] == [20_000] * 100
