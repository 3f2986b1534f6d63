"""Settings of one machine: addresses of servers elsewhere, and ports of those that are served here."""

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from local import ROOT


class LocalSettings(BaseSettings):
    """A server whose address is set is used; the others are started here, on loopback, at their ports."""

    model_config = SettingsConfigDict(
        env_prefix="ALLOCATION_", env_file=ROOT / ".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: str | None = Field(None, repr=False)
    broker_url: str | None = Field(None, repr=False)
    result_backend_url: str | None = Field(None, repr=False)
    smtp_url: str | None = Field(None, repr=False)

    #: A Redis server program to use instead of the bundled Valkey.
    redis_server: Path | None = None
    redis_port: int = Field(6390, ge=1, le=65535)
    postgres_port: int = Field(5490, ge=1, le=65535)
    flower_port: int = Field(5555, ge=1, le=65535)
    smtp_port: int = Field(1025, ge=1, le=65535)

    flower_user: str = Field("operator", min_length=1)
    flower_password: SecretStr | None = None

    #: Where the worker of commands serves its metrics; that of housekeeping does at the next port.
    metrics_address: str | None = Field(None, pattern=r"^\S+:\d{1,5}$")

    data_dir: Path = Path(".data")
    worker_concurrency: int = Field(2, ge=1)

    @field_validator("flower_user", "flower_password")
    @classmethod
    def _fits_into_a_login(cls, value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        if "," in text or (isinstance(value, str) and ":" in text):
            raise ValueError("must not contain a comma, and a user must not contain a colon")
        return value

    @property
    def folder(self) -> Path:
        """Return the data folder; a relative one is relative to the project."""
        return (ROOT / self.data_dir.expanduser()).resolve()

    @property
    def given(self) -> dict[str, str]:
        """Return the servers that run elsewhere, each with the variable that sets its address."""
        urls = {
            "broker": "broker_url",
            "results": "result_backend_url",
            "database": "database_url",
            "mail": "smtp_url",
        }
        set_ones = {what: name for what, name in urls.items() if getattr(self, name) is not None}
        return {what: f"ALLOCATION_{name.upper()}" for what, name in set_ones.items()}

    @property
    def needs_redis(self) -> bool:
        """Tell whether the broker or the result backend, or both, are served here."""
        return self.broker_url is None or self.result_backend_url is None

    @property
    def metrics_addresses(self) -> tuple[str, str] | None:
        """Return where the two workers serve their metrics, None if they do not."""
        if self.metrics_address is None:
            return None
        host, _, port = self.metrics_address.rpartition(":")
        return self.metrics_address, f"{host}:{int(port) + 1}"

    def own_ports(self) -> dict[str, int]:
        """Return the ports to listen on here, by the names of their variables."""
        served = {
            "redis_port": self.needs_redis,
            "postgres_port": self.database_url is None,
            "flower_port": True,
            "smtp_port": self.smtp_url is None,
        }
        return {f"ALLOCATION_{name.upper()}": getattr(self, name) for name, ours in served.items() if ours}
