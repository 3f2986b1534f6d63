"""How often, and how soon, a failed event handler is retried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class RetryPolicy:
    """Celery's back-off: min(`backoff_max_s`, `backoff_s` * 2**retries); jitter draws from 0 to that."""

    max_retries: int = 5
    backoff_s: int = 1  # seconds
    backoff_max_s: int = 30  # seconds
    jitter: bool = True


def retrying(**options: Any) -> Callable[[Handler], Handler]:
    """Give one event handler its own `RetryPolicy`: `@retrying(max_retries=8)`.

    Raises:
        ValueError: the handler has retries of its own already.
    """
    policy = RetryPolicy(**options)

    def mark(handler: Handler) -> Handler:
        if hasattr(handler, "retry_policy") or getattr(handler, "retry_changes", None):
            raise ValueError(f"{handler.__name__} has retries already: declare all of them in one @handler")
        handler.retry_policy = policy  # type: ignore[attr-defined]  # functions accept attributes
        return handler

    return mark


def policy_of(handler: Callable[..., Any], default: RetryPolicy) -> RetryPolicy:
    """Return the policy that `retrying` set on a handler, else the default with what `handler` changes."""
    policy: RetryPolicy | None = getattr(handler, "retry_policy", None)
    return policy or replace(default, **getattr(handler, "retry_changes", {}))
