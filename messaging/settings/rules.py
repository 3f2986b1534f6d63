"""Rules between settings: each is a sentence that names the settings and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from messaging.brokers.topology import is_rabbitmq
from reliable_celery import sentinel

if TYPE_CHECKING:
    from messaging.retry import RetryPolicy
    from messaging.settings.fields import MessagingSettings

#: Why a back-off is bounded on Redis.
WAITS_IN_THE_DATABASE = (
    "retries wait in Redis, which may lose them; use scheduled re-runs for longer waits, since they wait in"
    " the database"
)
#: Seconds by which the relay may be late, with a margin: what is due until then is sent before its time.
EARLIER_S = 2.0
#: A hundred years, in seconds. PostgreSQL's times begin in 4713 BC: with a retention of 10,000 years each
#: attempt to delete old rows would be an error.
LONGEST_S = 100 * 365.25 * 86400

ONE_SERVER = ("redis", "rediss", "redis+socket")
REDIS = (*ONE_SERVER, *sentinel.SCHEMES)
SCHEMES = (*REDIS, "amqp", "amqps", "pyamqp")


def broken_rules(settings: MessagingSettings) -> Iterator[str]:
    """Yield a sentence for each rule that the settings break."""
    yield from _lengths(settings)
    yield from _addresses(settings)
    yield from _times_of_a_task(settings)
    yield from _waits(settings)
    yield from _retentions(settings)
    yield from _signing(settings)


def _lengths(settings: MessagingSettings) -> Iterator[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name.endswith("_s") and isinstance(value, int | float) and value > LONGEST_S:
            yield f"{name} must not be more than {LONGEST_S:.0f}, a hundred years in seconds"


def _addresses(settings: MessagingSettings) -> Iterator[str]:
    schemes = [part.partition("://")[0] for part in settings.broker_url.split(";")]
    scheme = next((scheme for scheme in schemes if scheme not in SCHEMES), "")
    if len(schemes) > 1 and (len(set(schemes)) > 1 or schemes[0] in ONE_SERVER):
        yield (
            "broker_url may be a list only of the nodes of one RabbitMQ cluster (amqp://…;amqp://…), or of"
            " Sentinels (sentinel://…;sentinel://…)"
        )
    elif scheme:
        yield (
            f"broker_url must begin with one of {', '.join(SCHEMES)}, not {scheme!r}: with any other broker a"
            " killed worker loses messages"
        )
    scheme = settings.result_backend_url.partition("://")[0]
    if scheme not in REDIS:
        yield (
            f"result_backend_url must begin with one of {', '.join(REDIS)}, not {scheme!r}: with any other a"
            " sender may get no answer, or `revoked` for a command that is carried out"
        )


def _times_of_a_task(settings: MessagingSettings) -> Iterator[str]:
    yield from _less(
        settings, "smtp_timeout_s", "task_time_limit_s",
        "a hanging mail server would otherwise get the sending task killed",
    )  # fmt: skip
    if is_rabbitmq(settings.broker_url):
        return
    yield from _less(
        settings, "task_time_limit_s", "visibility_timeout_s",
        "the message of a running task would be redelivered and counted as a crash",
    )  # fmt: skip
    yield from _less(
        settings, "worker_lease_s", "visibility_timeout_s",
        "the lease must return a killed worker's messages sooner than that",
    )  # fmt: skip
    yield from _less(settings, "event_backoff_max_s", "visibility_timeout_s", WAITS_IN_THE_DATABASE)


def _waits(settings: MessagingSettings) -> Iterator[str]:
    yield from _at_most(
        settings, "event_backoff_max_s", "message_max_eta_s", "workers would refuse our own retries"
    )
    if settings.relay_interval_s + EARLIER_S > settings.message_max_eta_s:
        yield (
            f"relay_interval_s ({settings.relay_interval_s:g}) must not be more than message_max_eta_s"
            f" ({settings.message_max_eta_s:g}) minus {EARLIER_S:g}: workers would refuse deliveries that"
            " the relay sends one interval before their time"
        )
    for first, longest in (
        ("event_backoff_s", "event_backoff_max_s"),
        ("relay_grace_s", "relay_grace_max_s"),
        ("rerun_cooldown_s", "rerun_cooldown_max_s"),
        ("breaker_pause_s", "breaker_pause_max_s"),
    ):
        yield from _at_most(settings, first, longest, "the first wait cannot be longer than the longest")
    for interval, longest in (
        ("relay_interval_s", "relay_grace_max_s"),
        ("rerun_interval_s", "rerun_cooldown_max_s"),
    ):
        yield from _at_most(settings, interval, longest, "due deliveries would have to wait for the next run")


def _retentions(settings: MessagingSettings) -> Iterator[str]:
    longest = settings.dead_letter_retention_s + settings.message_max_eta_s + settings.visibility_timeout_s
    if settings.inbox_retention_s <= longest:
        yield (
            f"inbox_retention_s must be more than {longest:g}, which is dead_letter_retention_s,"
            " message_max_eta_s and visibility_timeout_s: the answer to a command must outlive every copy of"
            " its message"
        )
    yield from _less(
        settings, "result_expires_s", "inbox_retention_s",
        "when a result has expired, its sender is answered from the inbox",
    )  # fmt: skip
    yield from _less(
        settings, "relay_grace_max_s", "done_retention_s",
        "a late copy of a delivery's message must find that the delivery is done",
    )  # fmt: skip
    for retention in "done_retention_s", "inbox_retention_s", "dead_letter_retention_s":
        yield from _at_most(
            settings, "prune_interval_s", retention, "rows would be kept for longer than that"
        )


def _signing(settings: MessagingSettings) -> Iterator[str]:
    parts = ("signing_key", "signing_certificate", "signing_store")
    given = [name for name in (*parts, "signing_key_password") if getattr(settings, name) is not None]
    missing = [name for name in parts if getattr(settings, name) is None]
    if given and missing:
        yield (
            f"set {' and '.join(missing)} too, or remove {' and '.join(given)}: with a part of the settings"
            " for signing, unsigned messages would be accepted"
        )


def backoff_too_long(settings: MessagingSettings, handler: str, policy: RetryPolicy) -> str | None:
    """Return a sentence if a handler with its own policy waits too long between retries."""
    limits = {"message_max_eta_s": settings.message_max_eta_s}
    if not is_rabbitmq(settings.broker_url):
        limits["visibility_timeout_s"] = settings.visibility_timeout_s
    name = min(limits, key=limits.__getitem__)
    if policy.backoff_max_s < limits[name]:
        return None
    return (
        f"backoff_max_s of the handler {handler} ({policy.backoff_max_s:g}) must be less than {name}"
        f" ({limits[name]:g}): {WAITS_IN_THE_DATABASE}"
    )


def _less(settings: MessagingSettings, name: str, limit: str, why: str) -> Iterator[str]:
    value, most = getattr(settings, name), getattr(settings, limit)
    if value >= most:
        yield f"{name} ({value:g}) must be less than {limit} ({most:g}): {why}"


def _at_most(settings: MessagingSettings, name: str, limit: str, why: str) -> Iterator[str]:
    value, most = getattr(settings, name), getattr(settings, limit)
    if value > most:
        yield f"{name} ({value:g}) must not be more than {limit} ({most:g}): {why}"
