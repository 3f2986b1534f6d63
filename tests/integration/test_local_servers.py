"""The servers of one machine: real programs that stop, die and restart on their data."""

import os
import smtplib
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import psycopg2
import pytest
import redis

from local.ports import LOOPBACK, PortInUseError, free_port, is_free
from local.processes.child import ChildFailedError
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import NoRedisError, Redis, find_binary
from local.servers.server import Server
from testing.databases import FAST


@pytest.fixture
def own_postgres(server_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL that the test may kill; the blank in its path is intended."""
    with Postgres(server_folder / "own postgres", settings=FAST) as server:
        yield server


@pytest.fixture
def own_redis(server_folder: Path) -> Iterator[Redis]:
    """A Redis that the test may kill; the blank in its path is intended."""
    with Redis(server_folder / "own redis") as server:
        yield server


def test_postgres_keeps_what_was_committed_when_it_is_killed(own_postgres: Postgres):
    """SIGKILL loses no committed data."""
    _query(own_postgres, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")

    own_postgres.kill()
    assert not own_postgres.running
    own_postgres.start()

    assert _query(own_postgres, "SELECT answer FROM kept") == [(42,)]


def test_postgres_is_waited_for_while_it_recovers(server_folder: Path):
    """Longer than for another start: killed, it would begin anew."""
    folder = server_folder / "recovering"
    with Postgres(folder):
        pass
    (folder / "data" / "recovery.signal").touch()
    slow = {"restore_command": "[ -e slept ] || sleep 5; touch slept; false"}

    with Postgres(folder, settings=slow, start_timeout=3.0) as server:
        assert _query(server, "SELECT 42") == [(42,)]


def test_postgres_stops_while_somebody_is_connected(own_postgres: Postgres):
    """An open session does not delay the stop."""
    connection = psycopg2.connect(_plain(own_postgres))

    own_postgres.stop()

    assert not own_postgres.running
    assert is_free(own_postgres.port)
    connection.close()


def test_postgres_gives_the_role_no_power_over_the_machine(own_postgres: Postgres):
    """A client can use the database, but not run programs as the server's account."""
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        _query(own_postgres, "COPY (SELECT 1) TO PROGRAM 'true'")


def test_redis_keeps_what_it_acknowledged_when_it_is_killed(own_redis: Redis):
    """The append-only file restores everything."""
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("kept", "42")

    own_redis.kill()
    assert not own_redis.running
    own_redis.start()

    with redis.Redis.from_url(own_redis.url) as client:
        assert client.get("kept") == b"42"


def test_a_full_redis_refuses_writes_and_evicts_nothing(own_redis: Redis):
    """A broker must not evict messages."""
    with redis.Redis.from_url(own_redis.url) as client:
        settings = client.config_get("*")

    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"


def test_a_server_that_does_not_start_shows_its_log(server_folder: Path):
    """The error ends with the program's output."""
    broken = Postgres(server_folder / "broken", settings={"shared_buffers": "nonsense"})

    with pytest.raises(ChildFailedError, match="invalid value for parameter"):
        broken.start()


@pytest.mark.parametrize("kind", [Postgres, Redis, MailSink])
def test_a_taken_port_is_an_error_that_names_it(kind: type[Server], server_folder: Path):
    """A server does not start next to another one, nor mistake that one's answers for its own."""
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(PortInUseError, match=str(port)):
            kind(server_folder / "taken", port).start()


def test_a_free_port_can_be_listened_on():
    """A port from free_port is free."""
    assert is_free(free_port())


def test_the_sink_keeps_every_mail_with_its_message_id(mail_sink: MailSink):
    """Mails are files, oldest first."""
    _send(mail_sink, "<first@test>")
    _send(mail_sink, "<second@test>")

    assert len(mail_sink.mails) == 2
    assert mail_sink.mails.message_ids() == ["<first@test>", "<second@test>"]
    assert mail_sink.mails.all()[0]["Subject"] == "Ünicode"


def test_the_sink_keeps_its_mails_after_a_kill(mail_sink: MailSink):
    """Accepted mails stay."""
    _send(mail_sink, "<kept@test>")

    mail_sink.kill()
    mail_sink.start()

    assert mail_sink.mails.message_ids() == ["<kept@test>"]


def test_the_sink_can_refuse_and_then_keeps_nothing(mail_sink: MailSink):
    """A 451 asks the sender to retry."""
    _restart_with(mail_sink, "--reply", "451 try later")

    with pytest.raises(smtplib.SMTPDataError, match="451"):
        _send(mail_sink, "<refused@test>")

    assert len(mail_sink.mails) == 0


def test_the_sink_can_hang_up_on_a_sender_whose_mail_it_has(mail_sink: MailSink):
    """The sender cannot know that the mail arrived."""
    _restart_with(mail_sink, "--drop-after-data")

    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
        _send(mail_sink, "<taken@test>")

    assert mail_sink.mails.message_ids() == ["<taken@test>"]


def test_the_sink_can_be_slower_than_a_sender_waits(mail_sink: MailSink):
    """The sender's timeout ends the attempt."""
    _restart_with(mail_sink, "--delay", "30")

    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        _send(mail_sink, "<slow@test>", timeout=0.5)


def _send(sink: MailSink, message_id: str, timeout: float = 20.0) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"] = "shop@example.com", "stock@example.com"
    mail["Subject"], mail["Message-ID"] = "Ünicode", message_id
    mail.set_content("Out of stock")
    client = smtplib.SMTP(LOOPBACK, sink.port, timeout=timeout)
    try:
        client.send_message(mail)
    finally:
        client.close()


def _restart_with(sink: MailSink, *faults: str) -> None:
    sink.stop()
    sink.faults = faults
    sink.start()


def _plain(server: Postgres) -> str:
    return server.url.replace("+psycopg2", "", 1)


def _query(server: Postgres, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(_plain(server))
    try:
        with connection, connection.cursor() as run:
            run.execute(statement)
            return run.fetchall() if run.description else []
    finally:
        connection.close()


def test_the_bundled_redis_runs_whatever_else_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every machine runs the same server."""
    _program(tmp_path / "redis-server")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("ALLOCATION_REDIS_SERVER", raising=False)

    assert find_binary().parent.parent.name == "_binaries"


def test_the_setting_names_another_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name on the PATH, or a path."""
    program = _program(tmp_path / "my-redis")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    for name in ("my-redis", str(program)):
        monkeypatch.setenv("ALLOCATION_REDIS_SERVER", name)
        assert find_binary() == program


def test_a_missing_redis_program_is_named(monkeypatch: pytest.MonkeyPatch):
    """No other server runs in its place."""
    monkeypatch.setenv("ALLOCATION_REDIS_SERVER", "/nowhere/redis-server")

    with pytest.raises(NoRedisError, match="ALLOCATION_REDIS_SERVER=/nowhere/redis-server: no such program"):
        find_binary()


def _program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path.resolve()
