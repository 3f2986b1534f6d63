"""What an event handler declares about itself: its retries and what its deliveries must wait for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])


UNITS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "day": 86400}


@dataclass(frozen=True)
class Breaker:
    """When a handler that keeps failing is stopped, and for how long.

    After the pause some deliveries are tried. If one of them succeeds, all others go on; if one fails, the
    next pause is twice as long. A failed trial never uses up a delivery's last attempt.

    Attributes:
        failures: so many in a row stop it; None here and below: the setting `breaker_…` of this name.
        share: of the attempts in `window_s`, from 0 to 1, that fail.
        window_s: seconds.
        at_least: attempts in the window before their share counts.
        pause_s: seconds; doubles each time.
        pause_max_s: the longest pause in seconds.
        trials: deliveries that are tried at the same time after the pause.
        ignore: errors that do not count as failures.
    """

    failures: int | None = None
    share: float | None = None
    window_s: float | None = None
    at_least: int | None = None
    pause_s: float | None = None
    pause_max_s: float | None = None
    trials: int | None = None
    ignore: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        numbers = (self.failures, self.window_s, self.at_least, self.pause_s, self.pause_max_s, self.trials)
        if any(number is not None and not 0 < number < math.inf for number in numbers):
            raise ValueError(f"The numbers of {self!r} must be greater than 0")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share must be greater than 0 and at most 1, not {self.share!r}")


@dataclass(frozen=True)
class Rate:
    """At most `count` in `per_s` seconds, spread evenly."""

    count: int
    per_s: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the rate of `50/min`, `3/s`, `1000/h` or `5/day`.

        Raises:
            ValueError: the text is not a rate.
        """
        found = re.fullmatch(rf"([1-9]\d{{0,8}})/({'|'.join(UNITS)})", text, re.ASCII)
        if found is None:
            raise ValueError(f"{text!r} is not a rate: write 3/s, 50/min, 1000/h or 5/day")
        return cls(int(found[1]), UNITS[found[2]])

    @property
    def every_s(self) -> float:
        """Return the seconds between two."""
        return self.per_s / self.count


@dataclass(frozen=True)
class HandlerOptions:
    """Options of one event handler; without any, its deliveries never wait.

    Attributes:
        in_order_by: a field of the event: deliveries with the same value keep the order of their commits.
        breaker: stops the handler while it keeps failing.
        max_concurrent: deliveries that run at once.
        rate: deliveries per time, spread evenly: `3/s`, `50/min`, `1000/h` or `5/day`.
        limit_by: a field of the event: each of its values has these two limits of its own.
        shares_transaction: its deliveries may share a transaction with others that have arrived
            (docs/adr/012). One that fails is made again, alone, and only that counts: the handler should do
            nothing outside the database.
    """

    in_order_by: str | None = None
    breaker: Breaker | None = None
    max_concurrent: int | None = None
    rate: str | None = None
    limit_by: str | None = None
    shares_transaction: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.rate is not None:
            Rate.parse(self.rate)
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, not {self.max_concurrent!r}")
        if self.limit_by is not None and not (self.rate or self.max_concurrent):
            raise ValueError("limit_by needs max_concurrent or rate")

    @property
    def waits(self) -> bool:
        """Return whether its deliveries may have to wait."""
        return replace(self, shares_transaction=False) != NO_OPTIONS


NO_OPTIONS = HandlerOptions()


def handler(
    *,
    max_retries: int | None = None,
    backoff_s: int | None = None,
    backoff_max_s: int | None = None,
    jitter: bool | None = None,
    **options: Any,
) -> Callable[[Handler], Handler]:
    """Declare options of an event handler: `@handler(max_retries=8, in_order_by="sku")`.

    Args:
        max_retries: retries before its delivery fails; the settings have the default, as of the next three.
        backoff_s: seconds before the first retry, at least 1; doubles each time.
        backoff_max_s: the longest wait in seconds between retries.
        jitter: draw each wait at random from 0 to its longest value.
        options: see `HandlerOptions`.

    Raises:
        ValueError: the handler has options already, or retries of its own by `retrying`.
    """
    retry = {
        "max_retries": max_retries, "backoff_s": backoff_s, "backoff_max_s": backoff_max_s, "jitter": jitter,
    }  # fmt: skip
    changes = {name: value for name, value in retry.items() if value is not None}
    declared = HandlerOptions(**options)

    def mark(function: Handler) -> Handler:
        if hasattr(function, "options") or (changes and hasattr(function, "retry_policy")):
            raise ValueError(f"{function.__name__} has options already: declare all of them in one @handler")
        function.retry_changes = changes  # type: ignore[attr-defined]  # functions accept attributes
        function.options = declared  # type: ignore[attr-defined]
        return function

    return mark


def options_of(function: Callable[..., Any]) -> HandlerOptions:
    """Return the options that `handler` declared."""
    declared: HandlerOptions = getattr(function, "options", NO_OPTIONS)
    return declared
