"""Notify the stock team by mail."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.adapters.mail import JobMails


@dataclass(frozen=True)
class MailNotifications:
    """Implements the port `Notifications`."""

    mails: JobMails
    recipient: str

    def send(self, subject: str, text: str) -> None:
        """Send one mail to the stock team."""
        self.mails.send(self.recipient, subject, text)
