"""The relay's search for due deliveries, bounded while a snapshot is held.

Deliveries that were finished since stay in the index of pending ones, and a search from its beginning steps
over all of them. Once that takes long, the searches of the next minute begin where the last one found that
nothing older is pending.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from messaging.delivery import Delivery
from messaging.postgres.outbox import Outbox

#: Seconds; a longer search from the beginning is not repeated for some time.
LONG_S = 0.05
#: Seconds until the next search from the beginning.
ALL_EVERY_S = 60.0

#: A transaction that is under way may still write a row that was due before now, if it began that long ago.
NOTHING_OLDER = text("""
SELECT least(min(due_at), now() - make_interval(secs => :longest_run_s)) - interval '1 microsecond'
FROM deliveries WHERE status = 'pending' AND due_at > coalesce(CAST(:since AS timestamptz), '-infinity')
""")


@dataclass
class DueDeliveries:
    """Finds deliveries whose message is overdue, for one relay."""

    outbox: Outbox
    longest_run_s: float  # of a transaction
    _since: datetime | None = None
    _all_at: float = float("-inf")  # monotonic seconds of the last search from the beginning

    def take(self, limit: int, grace_max_s: float) -> list[Delivery]:
        """Take due deliveries as `Outbox.take_due` does."""
        began = time.monotonic()
        if began >= self._all_at + ALL_EVERY_S:
            self._since, self._all_at = None, began
        due = self.outbox.take_due(limit, grace_max_s, self._since)
        searched_all = self._since is None
        if len(due) < limit and (not searched_all or time.monotonic() - began > LONG_S):
            self._since = self._nothing_older()
        elif searched_all:
            self._all_at = float("-inf")  # it was quick, or there is more
        return due

    def _nothing_older(self) -> datetime | None:
        facts = {"since": self._since, "longest_run_s": self.longest_run_s}
        with self.outbox.engine.begin() as connection:
            since: datetime | None = connection.execute(NOTHING_OLDER, facts).scalar_one()
        return since
