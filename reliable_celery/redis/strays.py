"""Messages that are registered under this consumer's lease although it does not have them.

A reply is lost and its trip runs afterwards, since the network delivers the request late; or Redis cannot be
reached just when a message is requeued. Others leave such a message alone while the lease is valid.
(docs/adr/032)
"""

# mypy: disable-error-code="no-untyped-call, misc"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import Any

from reliable_celery.redis.connection import ConnectedChannel
from reliable_celery.redis.leases import LeasingChannel

logger = logging.getLogger(__name__)

MAX_STRAYS = 1000  # tags that are looked for; the oldest are dropped


class StraysChannel(LeasingChannel, ConnectedChannel):
    """A channel that looks for tags that it let go of without knowing whether Redis did."""

    _look_for_strays_at = 0.0  # monotonic seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Tags of this channel; none of them will be in a reply.
        self.strays: deque[str] = deque(maxlen=MAX_STRAYS)
        super().__init__(*args, **kwargs)

    def look_for_strays(self) -> None:
        """Requeue strays, once in a while; those that were settled are not found."""
        if self.strays and monotonic() >= self._look_for_strays_at:
            self._look_for_strays_at = monotonic() + self.lease_s
            self.attempt(self.give_back_strays)

    def give_back_strays(self) -> None:
        """Requeue strays now."""
        strays = list(self.strays)
        if not strays:
            return
        with self.conn_or_acquire() as client:
            since = client.zmscore(self.unacked_index_key, strays)
            found = [tag for tag, registered in zip(strays, since, strict=True) if registered is not None]
            self.give_back(found, client)
        if found:
            logger.warning("Requeued %d messages that this worker had lost track of", len(found))
