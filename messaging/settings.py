"""Settings that every project on this bus has; a project names its prefix and adds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from messaging.brokers import is_rabbitmq
from messaging.retry import RetryPolicy
from messaging.settings_rules import broken_rules
from messaging.signing import Signing


class MessagingSettings(BaseSettings):
    """Addresses, and the times and counts of deliveries. Durations are seconds."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,  # a line of .env that was not filled in
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,  # PostgreSQL takes no endless interval: nothing would be deleted any more
        hide_input_in_errors=True,  # addresses hold passwords
    )

    database_url: str = Field(repr=False, description="PostgreSQL; each project has a database of its own")
    broker_url: str = Field(
        "redis://127.0.0.1:6390/0",
        repr=False,
        description="where commands and deliveries queue: Redis or RabbitMQ",
    )
    result_backend_url: str = Field(
        "redis://127.0.0.1:6390/1", repr=False, description="where senders find results and errors"
    )
    tls_ca_file: Path | None = Field(
        None, description="authorities to trust in `rediss://` and `amqps://` addresses, else the system's"
    )
    signing_key: Path | None = Field(
        None, description="our private key; with it only signed messages are accepted"
    )
    signing_key_password: SecretStr | None = Field(
        None, description="the password of that key, if it has one"
    )
    signing_certificate: Path | None = Field(None, description="the certificate of that key")
    signing_store: str | None = Field(
        None, description="whose messages are accepted, ours too: a pattern such as `certificates/*.pem`"
    )
    smtp_url: str = Field(
        "smtp://127.0.0.1:1025",
        repr=False,
        description="the mail server: `smtp://[user:password@]host:port`, `smtps://`, `?starttls`",
    )
    smtp_timeout_s: float = Field(10, gt=0, description="how long a mail server may take")
    mail_from: str = Field("noreply@example.com", description="the sender of our mails")

    event_max_retries: int = Field(
        5, ge=0, description="tries of an event handler after its first, before the delivery is failed"
    )
    event_backoff_s: int = Field(
        1, ge=1, description="the longest wait before the first of them; it doubles each time"
    )
    event_backoff_max_s: int = Field(
        30, ge=1, description="the longest wait of all; on Redis less than the visibility timeout"
    )
    event_jitter: bool = Field(True, description="draw each wait from 0 to that, so that failures spread")

    command_attempts: int = Field(
        4,
        ge=1,
        description="tries of a command at transient database errors, before its sender gets the error",
    )
    max_crashes: int = Field(3, ge=1, description="workers that a message may kill before it is parked")
    bulk_max: int = Field(1000, ge=1, description="commands in one message of many")

    relay_interval_s: float = Field(
        5, gt=0, description="how often deliveries are looked for whose message was lost"
    )
    relay_grace_s: float = Field(
        15,
        gt=0,
        description="how long a message may take before the relay sends another; it doubles each time",
    )
    relay_grace_max_s: float = Field(600, gt=0, description="the longest grace")
    relay_batch: int = Field(500, ge=1, description="deliveries that the relay takes at once")

    announce: bool = Field(True, description="tell other apps of each event, on the exchange of events")
    announce_delay_s: int = Field(
        1, ge=0, description="how long events are collected before they are announced together"
    )
    announce_interval_s: float = Field(
        5, gt=0, description="how often events are looked for that were not announced"
    )

    rerun_interval_s: float = Field(
        60, gt=0, description="how often failed deliveries are looked for that may run again"
    )
    rerun_cooldown_s: float = Field(
        300,
        gt=0,
        description="rest of a failed delivery before its first scheduled re-run; it doubles each time",
    )
    rerun_cooldown_max_s: float = Field(6 * 3600, gt=0, description="the longest rest")
    rerun_max: int = Field(
        5, ge=0, description="scheduled re-runs of a delivery; then only an operator runs it again"
    )
    rerun_batch: int = Field(100, ge=1, description="scheduled re-runs at once, shared by the handlers")

    prune_interval_s: float = Field(3600, gt=0, description="how often what ended long ago is deleted")
    done_retention_s: float = Field(
        7 * 86400, gt=0, description="how long done and discarded deliveries are kept"
    )
    inbox_retention_s: float = Field(
        45 * 86400,
        gt=0,
        description="how long answers to commands are kept, which make a repeated message harmless",
    )
    dead_letter_retention_s: float = Field(30 * 86400, gt=0, description="how long dead letters are kept")

    worker_lease_s: float = Field(
        10,
        ge=3,  # an idle worker turns its loop every second
        description="after so long without a sign of life Redis gives a worker's messages to another",
    )
    visibility_timeout_s: int = Field(
        40,
        ge=1,
        description="after this also those of a worker that gives no signs of life (solo pool); longer than"
        " any task",
    )
    task_time_limit_s: int = Field(30, ge=1, description="a task that takes longer is ended")
    result_expires_s: int = Field(86400, ge=1, description="how long a result waits for its sender")
    worker_concurrency: int = Field(
        2, ge=1, description="processes of a worker whose command line names no number"
    )
    flower_hosts: str | None = Field(
        None, description="host names of Flower besides `localhost`, separated by commas; others are refused"
    )
    message_max_bytes: int = Field(
        1_048_576,
        ge=16_384,  # any single command of the contract fits, its texts escaped as JSON may escape them
        description="a larger message is a dead letter",
    )
    message_max_eta_s: int = Field(
        86_400, ge=1, description="a message that is to wait longer is a dead letter"
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if broken := list(broken_rules(self)):
            raise ValueError("; ".join(broken))
        return self

    @property
    def signing(self) -> Signing | None:
        """Return how messages are signed; None where they are not."""
        if self.signing_key is None or self.signing_certificate is None or self.signing_store is None:
            return None  # none of the three is set, as `_settings_agree` has seen to
        password = self.signing_key_password
        return Signing(
            self.signing_key,
            self.signing_certificate,
            self.signing_store,
            password.get_secret_value() if password else None,
        )

    @property
    def housekeeping(self) -> dict[str, float]:
        """Return how often beat runs each housekeeping task, in seconds."""
        every = {
            "relay": self.relay_interval_s,
            "announce": self.announce_interval_s,
            "rerun": self.rerun_interval_s,
            "prune": self.prune_interval_s,
        }
        if is_rabbitmq(self.broker_url):
            every["collect_dead_letters"] = self.rerun_interval_s
        return every

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return the policy of every handler that has none of its own."""
        return RetryPolicy(
            self.event_max_retries, self.event_backoff_s, self.event_backoff_max_s, self.event_jitter
        )
