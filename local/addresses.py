"""Where everything is, and how to show it without giving secrets away."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass(frozen=True)
class Addresses:
    """The addresses of a running backend."""

    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    result_backend_url: str = field(repr=False)
    smtp_url: str = field(repr=False)
    flower_url: str

    def environment(self) -> dict[str, str]:
        """Return the variables that make the project's programs use these."""
        return {
            "ALLOCATION_DATABASE_URL": self.database_url,
            "ALLOCATION_BROKER_URL": self.broker_url,
            "ALLOCATION_RESULT_BACKEND_URL": self.result_backend_url,
            "ALLOCATION_SMTP_URL": self.smtp_url,
        }

    def shown(self) -> dict[str, str]:
        """Return each address by what it is, without its secrets."""
        return {
            "broker": masked(self.broker_url),
            "results": masked(self.result_backend_url),
            "database": masked(self.database_url),
            "Flower": masked(self.flower_url),
            "mail": masked(self.smtp_url),
        }


def masked(url: str) -> str:
    """Return `url` with `***` for its password and for its query, where drivers take passwords too."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    netloc = f"{user}{':***' if colon else ''}{at}{host}"
    return urlunsplit(parts._replace(netloc=netloc, query="***" if parts.query else "", fragment=""))
