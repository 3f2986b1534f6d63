"""Settings that every project on this bus has; a project names its prefix and adds its own."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from messaging.retry import RetryPolicy


class MessagingSettings(BaseSettings):
    """Addresses, and the times and counts of deliveries. Durations are seconds."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True)

    database_url: str = Field(repr=False)  # of the project's own: its deliveries are nobody else's
    broker_url: str = Field("redis://127.0.0.1:6390/0", repr=False)
    result_backend_url: str = Field("redis://127.0.0.1:6390/1", repr=False)
    smtp_url: str = Field("smtp://127.0.0.1:1025", repr=False)
    smtp_timeout_s: float = Field(10, gt=0)
    mail_from: str

    event_max_retries: int = Field(5, ge=0)
    event_backoff_s: int = Field(1, ge=1)
    event_backoff_max_s: int = Field(60, ge=1)
    event_jitter: bool = True

    command_attempts: int = Field(4, ge=1)
    max_crashes: int = Field(3, ge=1)
    bulk_max: int = Field(1000, ge=1)

    relay_interval_s: float = Field(5, gt=0)
    relay_grace_s: float = Field(15, gt=0)
    relay_grace_max_s: float = Field(600, gt=0)
    relay_batch: int = Field(500, ge=1)

    rerun_interval_s: float = Field(60, gt=0)
    rerun_cooldown_s: float = Field(300, gt=0)
    rerun_cooldown_max_s: float = Field(6 * 3600, gt=0)
    rerun_max: int = Field(5, ge=0)
    rerun_batch: int = Field(100, ge=1)

    prune_interval_s: float = Field(3600, gt=0)
    done_retention_s: float = Field(7 * 86400, gt=0)
    inbox_retention_s: float = Field(45 * 86400, gt=0)
    dead_letter_retention_s: float = Field(30 * 86400, gt=0)

    visibility_timeout_s: int = Field(120, ge=1)
    task_time_limit_s: int = Field(60, ge=1)
    result_expires_s: int = Field(86400, ge=1)
    worker_concurrency: int = Field(2, ge=1)
    message_max_bytes: int = Field(1_048_576, ge=1)

    @model_validator(mode="after")
    def _answers_outlive_messages(self) -> Self:
        longest = self.dead_letter_retention_s + self.visibility_timeout_s
        if self.inbox_retention_s <= longest:
            raise ValueError(
                f"inbox_retention_s must be more than {longest:g}, which is dead_letter_retention_s and"
                " visibility_timeout_s: the answer to a command must outlive every copy of its message"
            )
        return self

    @property
    def housekeeping(self) -> dict[str, float]:
        """Return how often beat runs each housekeeping task, in seconds."""
        return {
            "relay": self.relay_interval_s,
            "rerun": self.rerun_interval_s,
            "prune": self.prune_interval_s,
        }

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return the policy of every handler that has none of its own."""
        return RetryPolicy(
            self.event_max_retries, self.event_backoff_s, self.event_backoff_max_s, self.event_jitter
        )
