"""What an event handler declares about itself: its retries and what its deliveries must wait for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class HandlerOptions:
    """Options of one event handler; without any, its deliveries never wait."""

    in_order_by: str | None = None  # a field of the event: deliveries with the same value keep their order

    @property
    def any(self) -> bool:
        """Return whether one of them is set."""
        return self != HandlerOptions()


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
        backoff_s: seconds before the first retry; doubles each time.
        backoff_max_s: the longest wait in seconds between retries.
        jitter: draw each wait at random from 0 to its longest value.
        options: see `HandlerOptions`.
    """
    retry = {
        "max_retries": max_retries, "backoff_s": backoff_s, "backoff_max_s": backoff_max_s, "jitter": jitter,
    }  # fmt: skip
    declared = HandlerOptions(**options)

    def mark(function: Handler) -> Handler:
        function.retry_changes = {  # type: ignore[attr-defined]  # functions accept attributes
            name: value for name, value in retry.items() if value is not None
        }
        function.options = declared  # type: ignore[attr-defined]
        return function

    return mark


def options_of(function: Callable[..., Any]) -> HandlerOptions:
    """Return the options that `handler` declared."""
    declared: HandlerOptions = getattr(function, "options", NO_OPTIONS)
    return declared
