"""The mail sink as a server like the others, and a reader of the mails that it stored."""

import email
import email.policy
import smtplib
import sys
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from local.ports import LOOPBACK
from local.processes.child import Child
from local.servers.server import Server


@dataclass(frozen=True)
class Mails:
    """The mails in a sink's Maildir, oldest first."""

    folder: Path

    def __len__(self) -> int:
        """Count them."""
        return len(self._files())

    def all(self) -> list[EmailMessage]:
        """Read them all."""
        return [_read(file) for file in self._files()]

    def message_ids(self) -> list[str]:
        """Return each mail's Message-ID; a mail that arrived twice is listed twice."""
        return [str(mail["Message-ID"]) for mail in self.all()]

    def clear(self) -> None:
        """Delete them."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted((self.folder / "new").glob("*"), key=lambda file: (file.stat().st_mtime_ns, file.name))


@dataclass
class MailSink(Server):
    """A mail sink over `folder`; `faults` are its options, as in `("--reply", "451 try later")`."""

    faults: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Return the address as `ALLOCATION_SMTP_URL` wants it."""
        return f"smtp://{LOOPBACK}:{self.port}"

    @property
    def mails(self) -> Mails:
        """Return the stored mails, which survive restarts."""
        return Mails(self.folder / "mails")

    def _prepare(self) -> Child:
        command = [sys.executable, "-m", "local.mail_sink", "--port", str(self.port)]
        return Child(
            "mail sink",
            [*command, "--maildir", str(self.mails.folder), *self.faults],
            log=self.folder / "mail_sink.log",
        )

    def _answers(self) -> bool:
        with smtplib.SMTP(LOOPBACK, self.port, timeout=5) as client:
            return client.noop()[0] == 250


def _read(file: Path) -> EmailMessage:
    with file.open("rb") as stream:
        return email.message_from_binary_file(stream, policy=email.policy.default)
