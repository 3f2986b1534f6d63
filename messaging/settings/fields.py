"""Settings of every project on this bus; a project sets its prefix and adds its own settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from messaging.brokers.signing import Signing
from messaging.brokers.topology import is_rabbitmq
from messaging.options import HandlerOptions
from messaging.retry import RetryPolicy
from messaging.settings.rules import broken_rules
from reliable_celery.sentinel import Sentinel


class MessagingSettings(BaseSettings):
    """Addresses, times and limits. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,  # an empty line in .env
        extra="ignore",
        frozen=True,
        allow_inf_nan=False,  # PostgreSQL accepts no infinite interval: nothing would be deleted any more
        hide_input_in_errors=True,  # addresses contain passwords
    )

    database_url: str = Field(repr=False, description="PostgreSQL; each project has its own database")
    database_shared_sessions: bool = Field(
        False,
        description="PostgreSQL is behind PgBouncer in transaction mode: no prepared statements, limits set"
        " in each transaction",
    )
    broker_url: str = Field(
        "redis://127.0.0.1:6390/0",
        repr=False,
        description="the broker of commands and deliveries: Redis, Redis with Sentinel, or RabbitMQ",
    )
    result_backend_url: str = Field(
        "redis://127.0.0.1:6390/1",
        repr=False,
        description="Redis, or Redis with Sentinel, for results and errors",
    )
    sentinel_master: str = Field("mymaster", min_length=1, description="what Sentinel calls the primary")
    sentinel_user: str | None = Field(None, description="login of Sentinel itself, if it has one")
    sentinel_password: SecretStr | None = Field(None, description="password of that login")
    tls_ca_file: Path | None = Field(
        None,
        description="certificate authorities for `rediss://`, `sentinels://` and `amqps://`; default: the"
        " system's",
    )
    signing_key: Path | None = Field(
        None, description="private key; if set, only signed messages are accepted"
    )
    signing_key_password: SecretStr | None = Field(None, description="password of that key, if it has one")
    signing_certificate: Path | None = Field(None, description="certificate of that key")
    signing_store: str | None = Field(
        None, description="certificates to accept, including our own: a pattern such as `certificates/*.pem`"
    )
    smtp_url: str = Field(
        "smtp://127.0.0.1:1025",
        repr=False,
        description="mail server: `smtp://[user:password@]host:port`, `smtps://`, `?starttls`",
    )
    smtp_timeout_s: float = Field(10, gt=0, description="longest time for one mail")
    mail_from: str = Field("noreply@example.com", description="sender of mails")

    event_max_retries: int = Field(
        5, ge=0, description="retries of an event handler before its delivery fails"
    )
    event_backoff_s: int = Field(
        1, ge=1, description="longest wait before the first retry; doubles each time"
    )
    event_backoff_max_s: int = Field(
        30, ge=1, description="longest wait between retries; on Redis less than the visibility timeout"
    )
    event_jitter: bool = Field(True, description="draw each wait at random from 0 to its longest value")

    breaker_failures: int = Field(
        5, ge=1, description="failures in a row that open a handler's breaker, if it has one"
    )
    breaker_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the attempts in a window whose failure opens it, too, such as 0.5",
    )
    breaker_window_s: float = Field(60, gt=0, description="length of that window")
    breaker_at_least: int = Field(20, ge=1, description="attempts in the window before their share counts")
    breaker_trials: int = Field(1, ge=1, description="deliveries that are tried at once after its pause")
    breaker_pause_s: float = Field(
        30, gt=0, description="first pause of an open breaker; doubles with each trial that fails"
    )
    breaker_pause_max_s: float = Field(600, gt=0, description="longest pause of an open breaker")

    command_attempts: int = Field(
        4,
        ge=1,
        description="attempts at a command on transient database errors before its sender gets the error",
    )
    group_max: int = Field(
        1,
        ge=1,
        le=32,
        description="most messages of a worker that share a transaction (pools prefork and solo), up to 32;"
        " 1: each has its own",
    )
    max_crashes: int = Field(3, ge=1, description="a message that has killed more workers is parked")
    bulk_max: int = Field(1000, ge=1, description="most commands in one message of `many`")

    relay_interval_s: float = Field(
        5, gt=0, description="time between searches for deliveries whose message was lost"
    )
    relay_grace_s: float = Field(
        15,
        gt=0,
        description="wait before the relay sends a delivery's message again; doubles each time",
    )
    relay_grace_max_s: float = Field(600, gt=0, description="longest wait between relay attempts")
    relay_batch: int = Field(500, ge=1, description="deliveries per batch of the relay")

    announce: bool = Field(True, description="publish events to other apps")
    announce_delay_s: int = Field(
        1, ge=0, description="time for which events are collected before they are published together"
    )
    announce_interval_s: float = Field(5, gt=0, description="time between searches for unpublished events")

    rerun_interval_s: float = Field(
        60, gt=0, description="time between scheduled re-runs of failed deliveries"
    )
    rerun_cooldown_s: float = Field(
        300,
        gt=0,
        description="wait before a failed delivery's first scheduled re-run; doubles each time",
    )
    rerun_cooldown_max_s: float = Field(6 * 3600, gt=0, description="longest wait between scheduled re-runs")
    rerun_max: int = Field(
        5, ge=0, description="scheduled re-runs per delivery; after that only an operator re-runs it"
    )
    rerun_batch: int = Field(
        100, ge=1, description="most re-runs of one handler by the schedule that are in progress"
    )

    prune_interval_s: float = Field(3600, gt=0, description="time between deletions of old rows")
    done_retention_s: float = Field(
        7 * 86400, gt=0, description="how long done and discarded deliveries are kept"
    )
    inbox_retention_s: float = Field(
        45 * 86400,
        gt=0,
        description="how long answers to commands are kept, so that repeated messages take effect once",
    )
    dead_letter_retention_s: float = Field(30 * 86400, gt=0, description="how long dead letters are kept")

    worker_lease_s: float = Field(
        10,
        ge=3,  # an idle worker's event loop turns every second
        description="seconds of silence after which a worker's messages go to others",
    )
    visibility_timeout_s: int = Field(
        40,
        ge=1,
        description="the same for workers without a lease (solo pool); longer than two tasks, one after the"
        " other",
    )
    task_time_limit_s: int = Field(30, ge=1, description="a task that takes longer is killed")
    result_expires_s: int = Field(86400, ge=1, description="how long results are kept for their senders")
    worker_alive_file: Path | None = Field(
        None, description="file that a worker touches every 5 s unless it hangs, for a liveness probe"
    )
    worker_concurrency: int = Field(2, ge=1, description="processes per worker; `--concurrency` overrides it")
    traces_url: str | None = Field(
        None,
        description="collector of traces (OTLP over HTTP), such as `http://127.0.0.1:4318`; default:"
        " `OTEL_EXPORTER_OTLP_ENDPOINT`, else none",
    )
    metrics_address: str | None = Field(
        None,
        pattern=r"^\S+:\d{1,5}$",
        description="where a worker serves its metrics, as `host:port`; default: nowhere",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`json` writes the log as one JSON object a line"
    )
    log_slow_s: float = Field(1, gt=0, description="a message that takes longer is logged as a warning")
    flower_operators: str | None = Field(
        None,
        description="names of Flower logins that may act, comma-separated; all others may only look;"
        " default: everyone may act",
    )
    flower_hosts: str | None = Field(
        None, description="Flower's host names besides `localhost`, comma-separated; others are refused"
    )
    message_max_bytes: int = Field(
        1_048_576,
        ge=16_384,  # any single command fits, even with all its text escaped in JSON
        description="larger messages become dead letters",
    )
    message_max_eta_s: int = Field(
        86_400, ge=1, description="messages that are due later than that from now become dead letters"
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if broken := list(broken_rules(self)):
            raise ValueError("; ".join(broken))
        return self

    @property
    def signing(self) -> Signing | None:
        """Return how messages are signed; None if they are not."""
        if self.signing_key is None or self.signing_certificate is None or self.signing_store is None:
            return None  # none of the three is set: `_settings_agree` checks that
        password = self.signing_key_password
        return Signing(
            self.signing_key,
            self.signing_certificate,
            self.signing_store,
            password.get_secret_value() if password else None,
        )

    @property
    def sentinel(self) -> Sentinel:
        """Return how Sentinel is asked."""
        password = self.sentinel_password
        return Sentinel(
            self.sentinel_master, self.sentinel_user, password.get_secret_value() if password else None
        )

    @property
    def housekeeping(self) -> dict[str, float]:
        """Return the interval of each housekeeping task, in seconds."""
        every = {
            "relay": self.relay_interval_s,
            "announce": self.announce_interval_s,
            "rerun": self.rerun_interval_s,
            "prune": self.prune_interval_s,
        }
        if is_rabbitmq(self.broker_url):
            every["collect_dead_letters"] = self.rerun_interval_s
        return every

    def completed(self, options: HandlerOptions) -> HandlerOptions:
        """Return a handler's options with our values where its breaker has none."""
        breaker = options.breaker
        if breaker is None:
            return options
        breaker = replace(
            breaker,
            failures=breaker.failures or self.breaker_failures,
            share=breaker.share or self.breaker_share,
            window_s=breaker.window_s or self.breaker_window_s,
            at_least=breaker.at_least or self.breaker_at_least,
            trials=breaker.trials or self.breaker_trials,
            pause_s=breaker.pause_s or self.breaker_pause_s,
            pause_max_s=breaker.pause_max_s or self.breaker_pause_max_s,
        )
        return replace(options, breaker=breaker)

    @property
    def retry_policy(self) -> RetryPolicy:
        """Return the default policy of handlers."""
        return RetryPolicy(
            self.event_max_retries, self.event_backoff_s, self.event_backoff_max_s, self.event_jitter
        )
