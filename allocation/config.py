"""Settings from the environment (`ALLOCATION_…`) or a `.env` file; nothing is read at import time."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from messaging.settings import MessagingSettings

#: The addresses that follow from a port, where `make up` serves what they name.
ON_PORT = {
    "redis_port": ("broker_url", "result_backend_url"),
    "postgres_port": ("database_url",),
    "smtp_port": ("smtp_url",),
}


class Settings(MessagingSettings):
    """What can be set (docs/reference/settings.md)."""

    model_config = SettingsConfigDict(env_prefix="ALLOCATION_")

    database_url: str = Field(
        "postgresql+psycopg2://allocation@127.0.0.1:5490/allocation",
        repr=False,
        description="PostgreSQL, one server or several (`host1:5432,host2:5432`); the driver is named, since"
        " `postgresql://` would mean another one",
    )
    redis_port: int = Field(6390, ge=1, le=65535, description="port of our Redis")
    postgres_port: int = Field(5490, ge=1, le=65535, description="port of our PostgreSQL")
    smtp_port: int = Field(1025, ge=1, le=65535, description="port of the mail sink")
    mail_from: str = Field("allocation@example.com", description="sender of mails")
    stock_team: str = Field(
        "stock@example.com", description="address that is notified of orders that could not be allocated"
    )

    @model_validator(mode="before")
    @classmethod
    def _addresses_follow_ports(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Move the default addresses to the ports that are set; an address that is set stays."""
        fields = cls.model_fields
        moved = {
            name: fields[name].default.replace(f":{fields[port].default}", f":{given[port]}")
            for port, names in ON_PORT.items()
            if port in given
            for name in names
        }
        return moved | given


@cache
def settings() -> Settings:
    """Read the settings once per process."""
    return Settings()
