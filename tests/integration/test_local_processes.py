"""Child processes: restarted while wanted, stopped otherwise, and killed with their parent."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local import ROOT
from local.drill import MailOutages
from local.ports import LOOPBACK
from local.processes.child import Child
from local.processes.supervisor import Supervisor
from local.servers.mail_server import MailSink
from local.servers.server import Server
from local.waiting import NotInTimeError, eventually

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("deaf", flush=True)
time.sleep(600)
"""
PARENT = """
import sys, time
from pathlib import Path
from local.processes.child import Child
child = Child("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    """A supervisor that is stopped with all its children."""
    supervisor = Supervisor()
    yield supervisor
    supervisor.stop()


def test_a_child_that_dies_is_restarted(supervisor: Supervisor, tmp_path: Path):
    """Whatever signal kills it."""
    child = Child("sleeper", SLEEPER, tmp_path / "log")
    supervisor.start("sleeper", child)
    supervisor.watch()
    first = child.pid

    os.kill(first, signal.SIGKILL)

    eventually(lambda: child.pid != first and child.running, what="the restart")


def test_a_child_that_keeps_dying_is_restarted_less_and_less_often(tmp_path: Path):
    """The pauses between its restarts grow."""
    lines: list[str] = []
    supervisor = Supervisor(lines.append)
    supervisor.start("fails", Child("fails", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log"))

    supervisor.watch()
    try:
        eventually(lambda: sum("died" in line for line in lines) >= 3, what="three deaths")
    finally:
        supervisor.stop()

    deaths = [line for line in lines if "died" in line]
    assert [line.split()[-2] for line in deaths[:3]] == ["0.5", "1", "2"]


def test_a_child_is_restarted_though_nobody_can_be_told(tmp_path: Path):
    """Again and again: the first report that fails must not end the watch."""

    def refuse(_line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    supervisor = Supervisor(refuse)
    child = Child("sleeper", SLEEPER, tmp_path / "log")
    supervisor.start("sleeper", child)
    supervisor.watch()
    try:
        for _ in range(2):
            killed = child.pid
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: child.pid != killed and child.running, what="the restart")  # noqa: B023
    finally:
        supervisor.stop()


class Recovering(Server):
    """A server that answers after its first start, and then says for ever that it recovers."""

    starts = 0
    url = ""

    def _prepare(self) -> Child:
        self.starts += 1
        return Child("recovering", SLEEPER, self.folder / "log")

    def _answers(self) -> bool:
        return self.starts == 1

    def _recovers(self, error: BaseException | None) -> bool:  # noqa: ARG002
        return True


def test_a_server_that_recovers_for_long_holds_up_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C ends `make up` at any time."""
    monkeypatch.setattr("local.servers.server.RECOVERY_TIMEOUT", 40)
    server = Recovering(tmp_path, start_timeout=0.1)
    supervisor = Supervisor()
    supervisor.start("server", server)
    supervisor.watch()
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.pid != killed, what="the restart")

    began = time.monotonic()
    supervisor.stop()

    assert time.monotonic() - began < 20  # seconds
    assert not server.running


def test_a_mail_server_whose_port_is_taken_after_a_drill_starts_once_it_is_free(
    supervisor: Supervisor, tmp_path: Path
):
    """Meanwhile everything else goes on."""
    mail = MailSink(tmp_path / "mail")
    supervisor.start("mail", mail)
    supervisor.watch()
    outages = MailOutages(supervisor, tmp_path)
    with (tmp_path / "drill").open("w") as drill:
        fcntl.flock(drill, fcntl.LOCK_EX)
        outages.follow()
    assert not mail.running

    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOOPBACK, mail.port))
        other.listen()
        outages.follow()
        assert not mail.running

    eventually(lambda: mail.running, what="the mail server")


def test_a_paused_child_stays_down_until_it_is_resumed(supervisor: Supervisor, tmp_path: Path):
    """A deliberate stop is not a crash; another child's restart shows that the supervisor was watching."""
    paused, neighbour = (Child(name, SLEEPER, tmp_path / name) for name in ("paused", "neighbour"))
    supervisor.start("paused", paused)
    supervisor.start("neighbour", neighbour)
    supervisor.watch()

    supervisor.pause("paused")
    first = neighbour.pid
    neighbour.kill()
    eventually(lambda: neighbour.pid != first, what="the neighbour's restart")
    assert not paused.running

    supervisor.resume("paused")
    assert paused.running


def test_a_child_that_ignores_sigterm_is_killed_with_everything_it_started(tmp_path: Path):
    """Including processes in their own session."""
    child = Child("stubborn", [sys.executable, "-c", STUBBORN], tmp_path / "log", stop_timeout=0.3)
    child.start()
    eventually(lambda: "deaf" in child.log_text(), what="the child being deaf to SIGTERM")
    family = psutil.Process(child.pid).children(recursive=True)

    child.stop()

    assert not child.running
    assert family
    assert not any(_lives(process.pid) for process in family)


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path):
    """SIGKILL leaves a parent no time to stop anything, so the kernel does."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _lives(child)

        parent.kill()

    eventually(lambda: not _lives(child), what="the end of the orphan")


def test_a_timeout_names_the_condition_and_what_was_last_seen():
    """The message is enough to see what went wrong."""
    with pytest.raises(NotInTimeError, match=r"three mails did not happen within 0.1 s; last: saw 0"):
        eventually(lambda: 0, timeout=0.1, what="three mails")


def test_an_error_while_waiting_means_not_yet():
    """The last error is reported."""
    with pytest.raises(NotInTimeError, match="ZeroDivisionError"):
        eventually(lambda: 1 / 0, timeout=0.1, what="a quotient")


def _lives(pid: int) -> bool:
    """A zombie does not count as running."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
