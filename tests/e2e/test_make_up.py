"""`make up`, as a user runs it: everything answers, and nothing is left behind."""

import itertools
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from local import ROOT
from local.ports import LOOPBACK, free_port
from local.waiting import eventually
from tests.e2e.make_up import COMMAND, PORTS, new_environment, printed_login, read_until_ready, run
from tests.e2e.web import request

DRILL = [sys.executable, "-m", "local.drill"]


@pytest.fixture
def environment(server_folder: Path) -> dict[str, str]:
    """Free ports and the test's own data folder, without addresses."""
    return new_environment(server_folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_answers_and_sigterm_leaves_nothing_behind(environment: dict[str, str]):
    """It prints `ready` once everything is ready, and exits with status 0."""
    with run(environment) as up:
        said = read_until_ready(up)
        family = psutil.Process(up.pid).children(recursive=True)

        assert _names(family) >= {"worker", "beat", "flower", "postgres", "redis", "mail_sink"}
        assert _flower_health(environment) == "OK"
        for name in PORTS:
            assert environment[f"ALLOCATION_{name}_PORT"] in said

        pasted = _paste(_read_next_steps(up))
        assert "PostgreSQL" in pasted
        assert "'batch-1'" in pasted

        up.terminate()
        assert up.wait(60) == 0

    assert not [process for process in family if _lives(process)]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_worker_is_restarted_and_ctrl_c_stops_everything(environment: dict[str, str]):
    """The restarted program is stopped as well."""
    with run(environment) as up:
        read_until_ready(up)
        worker = _worker(up)
        worker.kill()

        back = eventually(lambda: _worker(up) if _worker(up) != worker else None, 60, "a new worker")
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0

    assert not _lives(back)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_outlives_a_killed_supervisor(environment: dict[str, str]):
    """Even SIGKILL leaves no server or worker behind."""
    with run(environment) as up:
        read_until_ready(up)
        family = psutil.Process(up.pid).children(recursive=True)

        up.kill()

    eventually(lambda: not [each for each in family if _lives(each)], 60, "the end of every child")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_starts_while_the_mail_server_is_down_and_says_so(environment: dict[str, str]):
    """The backend works without it; our mail catcher does not replace it.

    All of it is said on a terminal with few letters, too.
    """
    port = free_port()
    environment["PYTHONIOENCODING"] = "iso-8859-1"
    environment["ALLOCATION_SMTP_URL"] = f"smtp://me:s3cr3t@{LOOPBACK}:{port}"
    with run(environment) as up:
        said = read_until_ready(up)

        assert f"the mail server smtp://me:***@{LOOPBACK}:{port} does not answer" in said
        assert "# export ALLOCATION_SMTP_URL=?, as in this one" in _read_next_steps(up)
        del environment["ALLOCATION_SMTP_URL"]
        drill = subprocess.run(DRILL, env=environment, cwd=ROOT, check=False, **_CAPTURED)
        assert (drill.returncode, drill.stderr.count("\n")) == (1, 1)
        assert "`make up` has no mail server on port" in drill.stderr
        up.terminate()
        assert up.wait(60) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_drill_fails_a_delivery_that_can_be_rerun_once_the_drill_is_over(environment: dict[str, str]):
    environment["ALLOCATION_EVENT_MAX_RETRIES"] = "0"
    with run(environment) as up:
        read_until_ready(up)
        with subprocess.Popen(DRILL, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as drill:
            assert drill.stdout is not None
            drill.stdout.readline()
            eventually(lambda: "ConnectionRefusedError" in _tool(environment, "deliveries", "list"), 60)
            checked = _tool(environment, "check", status=1)

            drill.send_signal(signal.SIGINT)
            assert drill.wait(60) == 0
        rerun = eventually(lambda: _tool(environment, "deliveries", "rerun", "--all", "--wait", "30"), 60)
        up.terminate()
        assert up.wait(60) == 0

    assert re.search("mail +wrong", checked)
    assert "1 done." in rerun


def test_a_drill_without_make_up_is_refused_in_one_line(environment: dict[str, str]):
    refused = subprocess.run(DRILL, env=environment, cwd=ROOT, check=False, **_CAPTURED)

    assert refused.returncode == 1
    assert refused.stderr == "no drill: `make up` is not running: start it in another terminal\n"


def _tool(environment: dict[str, str], *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "allocation", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, **_CAPTURED)
    assert done.returncode == status, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_login_of_flower_is_printed_kept_for_the_next_start_and_readable_by_its_owner_alone(environment):
    """The printed login can be pasted; one from the environment takes precedence, and is not printed."""
    with run(environment) as up:
        first = printed_login(read_until_ready(up))
        assert _flower_pages(environment, first) == 200
        up.terminate()
        assert up.wait(60) == 0
    kept = Path(environment["ALLOCATION_DATA_DIR"]) / "flower-password"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.chmod(0o644)

    with run(environment) as up:
        assert printed_login(read_until_ready(up)) == first
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        up.terminate()
        assert up.wait(60) == 0

    chosen = {"ALLOCATION_FLOWER_USER": "ada", "ALLOCATION_FLOWER_PASSWORD": "s3cr3t"}
    with run({**environment, **chosen}) as up:
        said = read_until_ready(up)
        assert _flower_pages(environment, "ada:s3cr3t") == 200
        assert _flower_pages(environment, first) == 401
    assert printed_login(said) == "ada:***"
    assert "s3cr3t" not in said


def test_a_login_that_flower_could_not_read_is_refused_in_one_line(environment: dict[str, str]):
    """A comma would split it into two logins; the password is not shown."""
    environment["ALLOCATION_FLOWER_PASSWORD"] = "s3cr3t,x"

    result = subprocess.run(COMMAND, env=environment, cwd=ROOT, check=False, **_CAPTURED)

    assert result.returncode == 1
    assert "ALLOCATION_FLOWER_PASSWORD" in result.stderr
    assert "s3cr3t" not in result.stdout + result.stderr


@pytest.mark.parametrize("name", PORTS)
def test_a_taken_port_is_one_line_that_names_its_variable(environment: dict[str, str], name: str):
    """Nothing is started, and the exit status is 1."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        environment[f"ALLOCATION_{name}_PORT"] = str(other.getsockname()[1])

        result = subprocess.run(COMMAND, env=environment, cwd=ROOT, check=False, **_CAPTURED)

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"set ALLOCATION_{name}_PORT" in result.stderr


def test_given_addresses_are_shown_without_their_passwords(environment: dict[str, str]):
    """Others may see the table."""
    secret = "s3cr3t"
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        environment["ALLOCATION_FLOWER_PORT"] = str(other.getsockname()[1])
        environment["ALLOCATION_BROKER_URL"] = f"redis://:{secret}@redis.example.com/0"
        environment["ALLOCATION_DATABASE_URL"] = f"postgresql+psycopg2://me:{secret}@db.example.com/x"

        result = subprocess.run(COMMAND, env=environment, cwd=ROOT, check=False, **_CAPTURED)

    assert "redis://:***@redis.example.com/0" in result.stdout
    assert "me:***@db.example.com" in result.stdout
    assert secret not in result.stdout + result.stderr


def test_a_server_that_is_set_is_shown_as_not_started_here(environment: dict[str, str], free_port: int):
    """All four are set, so only our own programs are started; the database is down."""
    for name, scheme in ADDRESSES.items():
        environment[f"ALLOCATION_{name}"] = f"{scheme}://{LOOPBACK}:{free_port}/0"

    result = subprocess.run(COMMAND, env=environment, cwd=ROOT, check=False, **_CAPTURED)

    assert result.returncode == 1
    assert "Not started here because its address is set: broker, results, database, mail." in result.stdout
    assert result.stdout.count("elsewhere, by ALLOCATION_") == 4
    assert "The database does not answer" in result.stderr


ADDRESSES = {
    "BROKER_URL": "redis",
    "RESULT_BACKEND_URL": "redis",
    "DATABASE_URL": "postgresql+psycopg2",
    "SMTP_URL": "smtp",
}
_CAPTURED = {"capture_output": True, "text": True, "timeout": 60}


def _read_next_steps(up: subprocess.Popen[str]) -> list[str]:
    """Return the commands for another terminal that it prints after `ready`."""
    assert up.stdout is not None
    lines = list(itertools.takewhile(lambda line: "after a change" not in line, up.stdout))
    return [line.strip() for line in lines if line.startswith("  ")]


def _paste(lines: list[str]) -> str:
    """Run the lines in a shell without this shell's settings, and return their output."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        ["/bin/sh", "-ec", "\n".join(lines)],
        env=environment,
        check=False,
        **_CAPTURED | {"timeout": 120},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def _names(family: list[psutil.Process]) -> set[str]:
    lines = [" ".join(process.cmdline()) for process in family]
    kinds = r"tasks (worker|beat|flower)|bin/(postgres) |(redis|valkey)-server|local\.(mail_sink)"
    found = {next(filter(None, match.groups())) for line in lines if (match := re.search(kinds, line))}
    return {"redis" if name == "valkey" else name for name in found}


def _worker(up: subprocess.Popen[str]) -> psutil.Process | None:
    """The main process of the worker for commands."""
    for child in psutil.Process(up.pid).children():
        if "--hostname=commands@%h" in child.cmdline():
            return child
    return None


def _flower_health(environment: dict[str, str]) -> str:
    port = environment["ALLOCATION_FLOWER_PORT"]
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/healthcheck", timeout=10) as response:
        return str(response.read().decode())


def _flower_pages(environment: dict[str, str], login: str) -> int:
    """Return the status of Flower's first page."""
    port = environment["ALLOCATION_FLOWER_PORT"]
    return request(f"http://{LOOPBACK}:{port}/", login).status


def _lives(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
