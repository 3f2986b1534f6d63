"""The addresses of a backend, and how to show them without secrets."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from local.service import ALLOCATION, Service


@dataclass(frozen=True)
class Addresses:
    """The addresses of a running backend."""

    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    result_backend_url: str = field(repr=False)
    smtp_url: str = field(repr=False)
    flower_url: str

    def environment(self, service: Service = ALLOCATION) -> dict[str, str]:
        """Return the variables that point the project's programs at these addresses."""
        return {
            service.variable("database_url"): self.database_url,
            service.variable("broker_url"): self.broker_url,
            service.variable("result_backend_url"): self.result_backend_url,
            service.variable("smtp_url"): self.smtp_url,
        }

    def shown(self) -> dict[str, str]:
        """Return each address by its name, without secrets."""
        return {
            "broker": masked(self.broker_url),
            "results": masked(self.result_backend_url),
            "database": masked(self.database_url),
            "Flower": masked(self.flower_url),
            "mail": masked(self.smtp_url),
        }


def masked(url: str) -> str:
    """Return `url` with `***` for its password and for its query, where drivers take passwords too.

    An address may be a list of addresses, separated by semicolons.
    """
    if ";" in url:
        return ";".join(map(masked, url.split(";")))
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    netloc = f"{user}{':***' if colon else ''}{at}{host}"
    return urlunsplit(parts._replace(netloc=netloc, query="***" if parts.query else "", fragment=""))
