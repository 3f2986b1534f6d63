"""Settings from the environment (`ALLOCATION_…`) or a `.env` file; nothing is read at import time."""

from __future__ import annotations

from functools import cache

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from messaging.settings import MessagingSettings


class Settings(MessagingSettings):
    """What can be set; the README lists each with its default."""

    model_config = SettingsConfigDict(env_prefix="ALLOCATION_")

    database_url: str = Field(
        "postgresql+psycopg2://allocation@127.0.0.1:5490/allocation",
        repr=False,
        description="PostgreSQL; the driver is named, since `postgresql://` would mean another one",
    )
    mail_from: str = Field("allocation@example.com", description="the sender of our mails")
    stock_team: str = Field("stock@example.com", description="who hears of orders that went away empty")


@cache
def settings() -> Settings:
    """Read the settings once per process."""
    return Settings()
