"""Mail over SMTP; a mail that is sent again keeps its Message-ID."""

from __future__ import annotations

import io
import math
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from itertools import count
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from messaging.settings import MessagingSettings

T = TypeVar("T")

#: Seconds for QUIT: the mail has been accepted by then.
GOODBYE_S = 1.0

#: Seconds to look up our own host name; otherwise our address is used.
OWN_NAME_S = 1.0

#: Bytes sent in one step; the remaining time is checked before each.
STEP = 65_536

#: Share of a job's time limit that its mails may take together; the rest is for recording the outcome.
SHARE = 0.8


class Conversation(smtplib.SMTP):
    """Talks to a mail server within a deadline, however slowly it answers: smtplib limits only single steps.

    Raises:
        TimeoutError, smtplib.SMTPServerDisconnected: it took too long.
    """

    def __init__(self, host: str, port: int, timeout_s: float, **options: Any) -> None:
        self._timeout_s, self.ends_at = timeout_s, time.monotonic() + timeout_s
        super().__init__(host, port, local_hostname=own_name(), timeout=timeout_s, **options)

    def left(self) -> float:
        """Return the remaining seconds."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"The mail server took longer than {self._timeout_s:.3g} s")
        return left

    def send(self, s: Any) -> None:
        """Send smtplib's next bytes."""
        data = s.encode(self.command_encoding) if isinstance(s, str) else bytes(s)
        for start in range(0, len(data), STEP):
            if self.sock:
                self.sock.settimeout(self.left())
            super().send(data[start : start + STEP])

    def getreply(self) -> tuple[int, bytes]:
        """Read an answer."""
        if self.file is None and self.sock:
            self.file = io.BufferedReader(_Answers(self.sock, self.left))
        return super().getreply()

    def leave(self) -> None:
        """Send QUIT and close the connection; errors no longer matter."""
        self.ends_at = min(self.ends_at, time.monotonic() + GOODBYE_S)
        with suppress(OSError, smtplib.SMTPException):
            self.quit()
        self.close()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """Connect; a host's addresses are tried in turn and share the time."""
        addresses, problem = self._addresses(host, port), None
        for address in addresses:
            try:
                connected: socket.socket = super()._get_socket(  # type: ignore[misc]
                    address, port, min(self.left(), timeout / len(addresses))
                )
            except OSError as error:
                problem = error
            else:
                return connected
        raise problem or OSError(f"{host} has no address")

    def _addresses(self, host: str, port: int) -> list[str]:
        infos = within(
            self.left(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), f"Looking up {host}"
        )
        return [str(info[4][0]) for info in infos]


def within(seconds: float, ask: Callable[[], T], what: str) -> T:
    """Return the result of a name lookup, which could otherwise block for a minute.

    Raises:
        TimeoutError: the name server did not answer in time.
        OSError: the lookup failed.
    """
    answers: list[T | OSError] = []

    def wait() -> None:
        try:
            answers.append(ask())
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise TimeoutError(f"{what} took longer than {seconds:.3g} s")
    if isinstance(answers[0], OSError):
        raise answers[0]
    return answers[0]


def own_name() -> str:
    """Return the name that we give to mail servers, like smtplib's."""
    try:
        name = within(OWN_NAME_S, socket.getfqdn, "Looking up our own name")
        if "." in name:
            return name
        address = within(OWN_NAME_S, lambda: socket.gethostbyname(socket.gethostname()), "Our own address")
    except OSError:
        return "[127.0.0.1]"
    return f"[{address}]"


class TlsConversation(Conversation, smtplib.SMTP_SSL):
    """The same over TLS from the start."""


class _Answers(io.RawIOBase):
    """Reads from a socket until the deadline."""

    def __init__(self, connected: socket.socket, left: Callable[[], float]) -> None:
        self._socket, self._left = connected, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._left())
        try:
            return self._socket.recv_into(buffer)
        except TimeoutError:
            self._left()  # raises an error that says what took too long
            raise


@dataclass(frozen=True)
class SmtpServer:
    """`smtp://[user:password@]host:port`, `smtps://` for TLS from the start, `?starttls` to switch to it."""

    url: str
    timeout_s: float  # for one mail, including the connection

    def send(self, mail: EmailMessage, within_s: float = math.inf) -> None:
        """Send a mail within `within_s` or `timeout_s` seconds, whichever is less.

        Raises:
            OSError, smtplib.SMTPException: the server is unavailable, refuses or takes too long.
        """
        if within_s <= 0:  # no valid timeout of a socket
            raise TimeoutError("The mails of this handler took longer than their total time limit")
        with self._talk(min(within_s, self.timeout_s)) as server:
            server.send_message(mail)

    def greet(self) -> None:
        """Connect and log in, to check that mails could be sent.

        Raises:
            OSError, smtplib.SMTPException: the server is unavailable, refuses or takes too long.
        """
        with self._talk(self.timeout_s) as server:
            server.noop()

    @contextmanager
    def _talk(self, timeout_s: float) -> Iterator[Conversation]:
        server = self._connect(timeout_s)
        try:
            self._log_in(server)
            yield server
        finally:
            server.leave()

    def _connect(self, timeout_s: float) -> Conversation:
        parts = urlsplit(self.url)
        if parts.scheme == "smtps":
            # smtplib's default context would trust any server.
            trust = ssl.create_default_context()
            return TlsConversation(parts.hostname or "", parts.port or 465, timeout_s, context=trust)
        return Conversation(parts.hostname or "", parts.port or 25, timeout_s)

    def _log_in(self, server: Conversation) -> None:
        parts = urlsplit(self.url)
        if parts.query == "starttls":
            server.starttls(context=ssl.create_default_context())
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))


def compose(message_id: str, sender: str, recipient: str, subject: str, text: str) -> EmailMessage:
    """Return a mail; `message_id` is the left part of its Message-ID, unique per delivery and mail."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{message_id}@{sender.partition('@')[2] or 'localhost'}>"
    mail["From"], mail["To"] = sender, recipient
    # Python decodes encoded words and would write line breaks in them as headers.
    mail["Subject"] = subject.replace("=?", "= ?")
    mail.set_content(text)
    return mail


class Mails(Protocol):
    """The port by which handlers send mails, each at least once; a repeat has the same id."""

    def send(self, recipient: str, subject: str, text: str) -> None:
        """Send one mail."""


@dataclass
class JobMails:
    """Implements `Mails` for one command or delivery; on a retry each mail has the same id."""

    server: SmtpServer
    sender: str
    job_id: str
    ends_at: float = math.inf  # monotonic seconds; when all mails must be sent
    sent: list[str] = field(default_factory=list)  # ids of mails that were sent

    def __post_init__(self) -> None:
        """Number the mails from 1."""
        self._numbers = count(1)

    def send(self, recipient: str, subject: str, text: str) -> None:
        """Send one mail; raises the same errors as `SmtpServer.send`."""
        message_id = f"{self.job_id}.{next(self._numbers)}"
        mail = compose(message_id, self.sender, recipient, subject, text)
        self.server.send(mail, self.ends_at - time.monotonic())
        self.sent.append(str(mail["Message-ID"]))


def mails_of(settings: MessagingSettings, job_id: str, sent: list[str] | None = None) -> JobMails:
    """Return the mails of a job that starts now, through the server in the settings.

    `sent` gets the ids of those that were sent. All of them end before the job's time limit, at which its
    process is killed.
    """
    server = SmtpServer(settings.smtp_url, settings.smtp_timeout_s)
    ends_at = time.monotonic() + settings.task_time_limit_s * SHARE
    return JobMails(server, settings.mail_from, job_id, ends_at, [] if sent is None else sent)
