"""Mail servers that are very slow, or have the wrong certificate."""

from __future__ import annotations

import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from local.servers.mail_server import MailSink
from messaging.adapters.mail import JobMails, SmtpServer, compose
from messaging.worker.app import MessagingApp
from tests.e2e.certificates import make_pair
from tests.e2e.tls_front import TlsFront
from tests.integration.outbox import app_on, ask, put, receive

Talk = Callable[[socket.socket], None]

MAIL = compose("1", "a@example.com", "b@example.com", "a subject", "a text")

REPLIES = {
    b"EHLO": b"250 ok",
    b"MAIL": b"250 ok",
    b"RCPT": b"250 ok",
    b"DATA": b"354 go on",
    b"QUIT": b"221 bye",
}


def drip(client: socket.socket) -> None:
    """Send the greeting, one character at a time."""
    while True:
        client.sendall(b"2")
        time.sleep(0.2)


def greet_without_end(client: socket.socket) -> None:
    """Send greeting lines without end."""
    while True:
        client.sendall(b"220-wait\r\n")
        time.sleep(0.2)


def slowly(pause_s: float, until: bytes = b"") -> Talk:
    """Return a server that is slow at each step, and never answers the last one."""

    def talk(client: socket.socket) -> None:
        lines = client.makefile("rb")
        client.sendall(b"220 here\r\n")
        in_data = False
        for line in lines:
            if in_data and line != b".\r\n":
                continue
            step = b"." if in_data else line[:4].upper()
            if step == until:
                time.sleep(60)
            time.sleep(pause_s)
            client.sendall((b"250 taken" if in_data else REPLIES[step]) + b"\r\n")
            in_data = step == b"DATA"

    return talk


@contextmanager
def mail_server(talk: Talk) -> Iterator[str]:
    """Return the address of a server that talks like this to every client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):
                talk(client)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "talk",
    [drip, greet_without_end, slowly(0.45), slowly(0, until=b"DATA")],
    ids=["drip", "endless", "slow", "stuck"],
)
def test_a_mail_ends_within_its_timeout_however_slowly_the_server_answers(talk: Talk):
    with mail_server(talk) as url:
        start = time.monotonic()

        with pytest.raises((OSError, smtplib.SMTPException), match=r"longer than 1\.5 s"):
            SmtpServer(url, 1.5).send(MAIL)

    assert time.monotonic() - start < 4


def test_a_mail_ends_within_its_timeout_however_slow_name_servers_are(
    mail_sink: MailSink, monkeypatch: pytest.MonkeyPatch
):
    """Unresponsive name servers block the resolver for a minute, longer than a task may run."""
    silent = threading.Event()
    for function in "getaddrinfo", "getfqdn":
        monkeypatch.setattr(socket, function, lambda *_args, **_options: silent.wait(60))
    start = time.monotonic()

    with pytest.raises(TimeoutError, match=r"Looking up mail\.example took longer than"):
        SmtpServer("smtp://mail.example:25", 1.5).send(MAIL)

    assert time.monotonic() - start < 4
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getfqdn", lambda: silent.wait(60))
    SmtpServer(mail_sink.url, 10).send(MAIL)  # our own name must not cause a failure
    silent.set()
    assert len(mail_sink.mails) == 1


def test_a_mail_to_a_slow_server_behind_tls_ends_in_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pair = make_pair(tmp_path, "mail")
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))
    with mail_server(slowly(0.45)) as url, TlsFront(url, pair) as front:
        start = time.monotonic()

        with pytest.raises((OSError, smtplib.SMTPException), match=r"longer than 1\.5 s"):
            SmtpServer(f"smtps://127.0.0.1:{front.port}", 1.5).send(MAIL)

    assert time.monotonic() - start < 4


def test_an_accepted_mail_counts_as_sent_even_if_quit_is_not_answered():
    with mail_server(slowly(0, until=b"QUIT")) as url:
        start = time.monotonic()

        SmtpServer(url, 30).send(MAIL)

    assert time.monotonic() - start < 10


def test_a_mail_server_behind_tls_gets_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mail_sink: MailSink
):
    pair = make_pair(tmp_path, "mail")
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.certificate))

    with TlsFront(mail_sink.url, pair) as front:
        SmtpServer(f"smtps://127.0.0.1:{front.port}", 10).send(MAIL)

    assert mail_sink.mails.message_ids() == ["<1@example.com>"]


def test_a_mail_server_with_a_self_signed_certificate_is_refused(tmp_path: Path, mail_sink: MailSink):
    with (
        TlsFront(mail_sink.url, make_pair(tmp_path, "mail")) as front,
        pytest.raises(OSError, match="certificate verify failed"),
    ):
        SmtpServer(f"smtps://127.0.0.1:{front.port}", 10).send(MAIL)

    assert len(mail_sink.mails) == 0


def test_all_mails_of_a_job_together_end_in_time():
    with mail_server(slowly(0.1)) as url:
        start = time.monotonic()
        mails = JobMails(SmtpServer(url, 10), "a@example.com", "job", start + 2)

        def send_many() -> None:
            for _ in range(100):
                mails.send("b@example.com", "a subject", "a text")

        with pytest.raises((OSError, smtplib.SMTPException), match="longer than"):
            send_many()

    assert time.monotonic() - start < 5


def test_a_mail_after_the_time_of_its_job_says_that_it_is_too_late():
    mails = JobMails(SmtpServer("smtp://127.0.0.1:1", 10), "a@example.com", "job", time.monotonic() - 1)

    with pytest.raises(TimeoutError, match="longer than"):
        mails.send("b@example.com", "a subject", "a text")


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The app, with a very slow mail server and a time limit far below a mail's timeout."""
    with mail_server(greet_without_end) as url:
        yield from app_on(clean_database, smtp_url=url, smtp_timeout_s=4.9, task_time_limit_s=5)


def test_a_delivery_to_a_slow_mail_server_fails_with_that_reason_before_its_time_limit(app: MessagingApp):
    delivery_id = put(app, status="pending")
    start = time.monotonic()

    receive(app, delivery_id, "send_out_of_stock_notification")

    assert time.monotonic() - start < 5
    [(error,)] = ask(app, "SELECT last_error FROM deliveries")
    assert "took longer than" in error
