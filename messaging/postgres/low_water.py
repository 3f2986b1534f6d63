"""A position below which a table has no more rows to find, so that no read has to step over dead ones.

Rows that were deleted or finished stay in the index while a snapshot is held (a backup, a forgotten
transaction). A search from the beginning would step over all of them, and take longer each time.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

#: Seconds after which the next search begins at the beginning, whatever was found before.
BEGIN_ANEW_S = 300.0


@dataclass
class LowWater:
    """Rises with what was taken, once no transaction of that time can add a row below any more."""

    mark: int = 0
    _next: tuple[int, int] | None = None  # the mark to come, and the first transaction that began after it
    _since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        """Return where to begin."""
        with self._lock:
            if time.monotonic() - self._since > BEGIN_ANEW_S:
                self.mark, self._next, self._since = 0, None, time.monotonic()
            return self.mark

    def taken(self, position: int, oldest_running: int, next_to_begin: int) -> None:
        """Note that everything visible up to `position` was taken, with the transactions of that snapshot."""
        with self._lock:
            if self._next is not None and oldest_running >= self._next[1]:
                self.mark, self._next = max(self.mark, self._next[0]), None
            if self._next is None:
                self._next = position, next_to_begin
