"""Settings from the environment (`ALLOCATION_…`) or a `.env` file; nothing is read at import time."""

from __future__ import annotations

from functools import cache

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from messaging.settings import MessagingSettings


class Settings(MessagingSettings):
    """What can be set; the README lists each with its default."""

    model_config = SettingsConfigDict(env_prefix="ALLOCATION_")

    database_url: str = Field("postgresql+psycopg2://allocation@127.0.0.1:5490/allocation", repr=False)
    mail_from: str = "allocation@example.com"
    stock_team: str = "stock@example.com"


@cache
def settings() -> Settings:
    """Read the settings once per process."""
    return Settings()
