"""The state of deliveries that are found by their ids: a condition that no index is used for.

Until the next ANALYZE the planner takes the index of a state for as short as it was at the last one. It would
then read a whole backlog to find one row by its id.
"""

from __future__ import annotations

from messaging.delivery import Status


def is_in(status: Status) -> str:
    """Return the condition that a row of `deliveries` is in a state."""
    return f"deliveries.status || '' = '{status}'"
