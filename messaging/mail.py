"""Mail over SMTP, with an id that stays the same when a mail is sent again."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from itertools import count
from typing import Protocol
from urllib.parse import unquote, urlsplit

from messaging.settings import MessagingSettings


@dataclass(frozen=True)
class SmtpServer:
    """`smtp://[user:password@]host:port`, `smtps://` for TLS from the start, `?starttls` to switch to it."""

    url: str
    timeout_s: float

    def send(self, mail: EmailMessage) -> None:
        """Hand a mail over.

        Raises:
            OSError, smtplib.SMTPException: the server is away or refuses.
        """
        with self._connect() as server:
            server.send_message(mail)

    def greet(self) -> None:
        """Connect and log in, to see whether a mail could be handed over.

        Raises:
            OSError, smtplib.SMTPException: the server is away or refuses.
        """
        with self._connect() as server:
            server.noop()

    def _connect(self) -> smtplib.SMTP:
        parts = urlsplit(self.url)
        if parts.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                parts.hostname or "", parts.port or 465, timeout=self.timeout_s
            )
        else:
            server = smtplib.SMTP(parts.hostname or "", parts.port or 25, timeout=self.timeout_s)
        if parts.query == "starttls":
            server.starttls(context=ssl.create_default_context())
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        return server


def compose(message_id: str, sender: str, recipient: str, subject: str, text: str) -> EmailMessage:
    """Return a mail; `message_id` is the left part of its Message-ID, one per delivery and mail."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{message_id}@{sender.partition('@')[2] or 'localhost'}>"
    mail["From"], mail["To"] = sender, recipient
    # Python decodes what looks like an encoded word and would write the line breaks in it as headers.
    mail["Subject"] = subject.replace("=?", "= ?")
    mail.set_content(text)
    return mail


class Mails(Protocol):
    """The port by which handlers send mails, each at least once; a repeat carries the same id."""

    def send(self, recipient: str, subject: str, text: str) -> None:
        """Send one mail."""


@dataclass
class JobMails:
    """Implements `Mails` for one command or delivery; tried again, each mail has the same id again."""

    server: SmtpServer
    sender: str
    job_id: str

    def __post_init__(self) -> None:
        """Number the mails from 1."""
        self._numbers = count(1)

    def send(self, recipient: str, subject: str, text: str) -> None:
        """Send one mail; raises what `SmtpServer.send` raises."""
        message_id = f"{self.job_id}.{next(self._numbers)}"
        self.server.send(compose(message_id, self.sender, recipient, subject, text))


def mails_of(settings: MessagingSettings, job_id: str) -> JobMails:
    """Return the mails of a job, over the server that the settings name."""
    return JobMails(SmtpServer(settings.smtp_url, settings.smtp_timeout_s), settings.mail_from, job_id)
