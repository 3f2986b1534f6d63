"""A position below which a table has no more rows to find, so that no read has to step over dead ones.

Rows that were deleted stay in the index while a snapshot is held (a backup, a forgotten transaction). A
search from the beginning would step over all of them, and take longer each time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LowWater:
    """Rises with what was taken, once no transaction of that time can add a row below any more.

    For one run, which takes batch after batch: a failover or a restored backup may set positions back.
    """

    mark: int = 0
    _next: tuple[int, int] | None = None  # the mark to come, and the first transaction that began after it

    def taken(self, position: int, oldest_running: int, next_to_begin: int) -> None:
        """Note that everything visible up to `position` was taken, with the transactions of that snapshot."""
        if self._next is not None and oldest_running >= self._next[1]:
            # More may have been committed late, below the mark to come, than fits into this batch.
            self.mark, self._next = min(self._next[0], position), None
        if self._next is None:
            self._next = position, next_to_begin
