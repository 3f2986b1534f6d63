"""The time of a schedule. It stands still while somebody works, and jumps to the next who waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

#: Unix time at which every schedule begins.
EPOCH = 1_800_000_000.0


class Clock:
    """Stands in for the module `time` in the code that is simulated."""

    def __init__(self, sleep: Callable[[float], object]) -> None:
        self.at = EPOCH
        self.sleep = sleep

    def time(self) -> float:
        """Return Unix time."""
        return self.at

    def time_ns(self) -> int:
        """Return Unix time in nanoseconds."""
        return int(self.at * 1_000_000) * 1000

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self.at

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.fromtimestamp(self.at, UTC)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have all modules of `messaging` read this clock."""
        modules = [module for name, module in sys.modules.items() if name.startswith("messaging")]
        reading = [module for module in modules if getattr(module, "time", None) is time]
        _set(reading, self)
        try:
            yield
        finally:
            _set(reading, time)


def _set(modules: list[ModuleType], clock: Any) -> None:
    for module in modules:
        module.time = clock  # type: ignore[attr-defined]  # each has it
