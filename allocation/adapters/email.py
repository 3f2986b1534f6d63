"""Tell the stock team by mail."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from messaging.mail import SmtpServer, compose


@dataclass
class SmtpNotifications:
    """Implements the port `Notifications`; `job_id` makes a repeated mail recognisable."""

    server: SmtpServer
    sender: str
    recipient: str
    job_id: str

    def __post_init__(self) -> None:
        """Number the mails of one handler from 1."""
        self._numbers = count(1)

    def send(self, subject: str, text: str) -> None:
        """Send one mail to the stock team."""
        message_id = f"{self.job_id}.{next(self._numbers)}"
        self.server.send(compose(message_id, self.sender, self.recipient, subject, text))
