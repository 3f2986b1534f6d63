"""Settings that contradict each other are refused at start, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from allocation.config import Settings
from messaging.brokers.signing import Signing
from messaging.bus import MessageBus
from messaging.messages import Event
from messaging.options import Breaker, handler, options_of
from messaging.retry import RetryPolicy, policy_of, retrying
from messaging.worker.app import check_breakers, check_retry_policies

RABBITMQ = "amqp://127.0.0.1//"
HALF = "unsigned messages would be accepted"

#: Settings, and parts of the refusal.
REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"worker_lease_s": 41}, ["worker_lease_s (41)", "visibility_timeout_s (40)"]),
    ({"task_time_limit_s": 40}, ["task_time_limit_s (40)", "visibility_timeout_s (40)", "as a crash"]),
    ({"event_backoff_max_s": 60}, ["event_backoff_max_s (60)", "visibility_timeout_s (40)"]),
    ({"event_backoff_s": 31}, ["event_backoff_s (31)", "event_backoff_max_s (30)"]),
    ({"smtp_timeout_s": 30}, ["smtp_timeout_s (30)", "task_time_limit_s (30)"]),
    ({"message_max_bytes": 1000}, ["message_max_bytes", "16384"]),
    ({"message_max_eta_s": 20}, ["event_backoff_max_s (30)", "message_max_eta_s (20)"]),
    ({"relay_grace_max_s": 14}, ["relay_grace_s (15)", "relay_grace_max_s (14)"]),
    ({"relay_interval_s": 601}, ["relay_interval_s (601)", "relay_grace_max_s (600)"]),
    ({"rerun_cooldown_max_s": 299}, ["rerun_cooldown_s (300)", "rerun_cooldown_max_s (299)"]),
    ({"rerun_interval_s": 30_000}, ["rerun_interval_s (30000)", "rerun_cooldown_max_s (21600)"]),
    ({"inbox_retention_s": 30 * 86400}, ["inbox_retention_s must be more than", "outlive"]),
    ({"result_expires_s": 46 * 86400}, ["result_expires_s", "inbox_retention_s"]),
    (
        {"done_retention_s": 600, "prune_interval_s": 60},
        ["relay_grace_max_s (600)", "done_retention_s (600)"],
    ),
    ({"prune_interval_s": 8 * 86400}, ["prune_interval_s", "done_retention_s"]),
    ({"broker_url": "memory://"}, ["broker_url", "'memory'"]),
    ({"result_backend_url": "memory://"}, ["result_backend_url", "'memory'", "get no answer"]),
    ({"done_retention_s": float("inf")}, ["done_retention_s", "finite"]),
    ({"signing_certificate": "c.pem", "signing_store": "*.pem"}, ["signing_key", HALF]),
    ({"signing_key": "k.pem"}, ["signing_certificate and signing_store", HALF]),
    ({"signing_key": "k.pem", "signing_certificate": "c.pem"}, ["signing_store", HALF]),
    ({"signing_store": "*.pem"}, ["signing_key and signing_certificate", HALF]),
    ({"signing_key_password": "secret"}, ["signing_key", HALF]),
]


@pytest.mark.parametrize(("given", "named"), REFUSED, ids=[", ".join(row[0]) for row in REFUSED])
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], named: list[str]):
    with pytest.raises(ValueError, match=r"settings|must|greater|finite") as refusal:
        Settings(_env_file=None, **given)

    assert [part for part in named if part not in str(refusal.value)] == []


def test_the_defaults_agree():
    assert Settings(_env_file=None).signing is None


def test_rabbitmq_has_no_visibility_timeout_that_could_be_too_short():
    settings = Settings(
        _env_file=None,
        broker_url=RABBITMQ,
        task_time_limit_s=300,
        worker_lease_s=60,
        event_backoff_max_s=3600,
    )

    assert settings.task_time_limit_s == 300


def test_all_refusals_are_reported_together():
    with pytest.raises(ValueError, match=r"worker_lease_s.*relay_grace_s"):
        Settings(_env_file=None, worker_lease_s=50, relay_grace_s=601)


class Told(Event):
    """A fact."""


def bus_with(backoff_max_s: int) -> MessageBus:
    @retrying(backoff_max_s=backoff_max_s)
    def tell(_event: Told, _uow: object) -> None:
        """Do nothing."""

    return MessageBus({}, {Told: [tell]})


def test_a_handlers_own_policy_must_agree_with_the_settings_too():
    settings = Settings(_env_file=None)

    with pytest.raises(
        ValueError, match=r"handler tell \(40\) must be less than visibility_timeout_s \(40\)"
    ):
        check_retry_policies(bus_with(40), settings)

    check_retry_policies(bus_with(39), settings)
    check_retry_policies(bus_with(3600), Settings(_env_file=None, broker_url=RABBITMQ))


def test_a_handlers_own_policy_may_omit_the_longest_wait():
    """As in the README: `@retrying(max_retries=8)`."""
    own = retrying(max_retries=8)(lambda: None)

    check_retry_policies(MessageBus({}, {Told: [own]}), Settings(_env_file=None))


@pytest.mark.parametrize("max_retries", [-1, 1001])
def test_a_handler_cannot_have_more_retries_than_a_message_may_have(max_retries: int):
    own = retrying(max_retries=max_retries)(lambda: None)

    with pytest.raises(ValueError, match=r"max_retries of the handler <lambda> .* must be 0 to 1000"):
        check_retry_policies(MessageBus({}, {Told: [own]}), Settings(_env_file=None))


@pytest.mark.parametrize(("backoff_s", "allowed"), [(0, False), (31, False), (1, True), (30, True)])
def test_a_handlers_first_wait_is_a_second_or_more_and_at_most_its_longest(backoff_s: int, allowed: bool):
    """With 0, Celery would wait for three minutes."""
    own = handler(backoff_s=backoff_s)(called_tell())

    with (
        nullcontext()
        if allowed
        else pytest.raises(
            ValueError,
            match=rf"backoff_s of the handler tell \({backoff_s}\) must be 1 to backoff_max_s \(30\)",
        )
    ):
        check_retry_policies(MessageBus({}, {Told: [own]}), Settings(_env_file=None))


def test_the_first_pause_of_a_handlers_breaker_cannot_be_longer_than_the_longest():
    own = handler(breaker=Breaker(pause_s=1000))(called_tell())
    bus = MessageBus({}, {Told: [own]})

    with pytest.raises(ValueError, match=r"of tell \(1000\) must not be more than pause_max_s \(600\)"):
        check_breakers(bus, Settings(_env_file=None))

    check_breakers(bus, Settings(_env_file=None, breaker_pause_max_s=1000))


@pytest.mark.parametrize(
    "declare",
    [
        lambda own: handler(max_retries=8)(handler(in_order_by="sku")(own)),
        lambda own: retrying(max_retries=8)(handler(max_retries=9)(own)),
        lambda own: handler(max_retries=9)(retrying(max_retries=8)(own)),
        lambda own: retrying(max_retries=8)(retrying(backoff_max_s=9)(own)),
    ],
)
def test_a_handler_whose_options_would_replace_others_is_refused(declare: Callable[..., object]):
    with pytest.raises(ValueError, match=r"tell has (options|retries) already"):
        declare(called_tell())


def test_a_handler_may_have_retries_by_one_decorator_and_other_options_by_the_other():
    own = retrying(max_retries=8)(handler(rate="3/s")(called_tell()))

    assert policy_of(own, RetryPolicy()).max_retries == 8
    assert options_of(own).rate == "3/s"


def called_tell() -> Callable[..., None]:
    """Return a handler without options."""

    def tell(_event: Told, _uow: object) -> None:
        """Do nothing."""

    return tell


def no_key(folder: Path) -> Signing:
    return Signing(folder / "none.pem", folder / "a.pem", str(folder / "*.pem"))


def folder_as_key(folder: Path) -> Signing:
    return Signing(folder, folder / "a.pem", str(folder / "*.pem"))


def no_certificate(folder: Path) -> Signing:
    return Signing(folder / "a.pem", folder / "none.pem", str(folder / "*.pem"))


def empty_pattern(folder: Path) -> Signing:
    return Signing(folder / "a.pem", folder / "a.pem", "")


def pattern_without_files(folder: Path) -> Signing:
    return Signing(folder / "a.pem", folder / "a.pem", str(folder / "*.crt"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_key, "signing key cannot be read"),
        (folder_as_key, "signing key cannot be read"),
        (no_certificate, "signing certificate cannot be read"),
        (empty_pattern, "No file matches the signing store ''"),
        (pattern_without_files, "No file matches the signing store"),
    ],
)
def test_an_app_that_cannot_sign_is_not_created(make: Callable[[Path], Signing], why: str, tmp_path: Path):
    """Otherwise it would accept unsigned messages, or refuse all."""
    (tmp_path / "a.pem").write_text("not read that far")

    with pytest.raises(ValueError, match=why):
        make(tmp_path).switch_on(Celery(set_as_current=False))


def test_a_refusal_shows_no_address():
    """Addresses contain passwords, and the refusal ends up in logs."""
    with pytest.raises(ValueError, match="worker_lease_s") as refusal:
        Settings(_env_file=None, worker_lease_s=50, broker_url="redis://:secret@127.0.0.1/0")

    assert "secret" not in str(refusal.value)
