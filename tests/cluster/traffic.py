"""The chaos run's sender on a cluster, that also remembers how long nobody was answered."""

# mypy: disable-error-code="no-untyped-call"
# kombu and Celery are untyped in parts.

from __future__ import annotations

import random
from itertools import pairwise

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from local.addresses import Addresses
from messaging.client.app import close_app, make_app
from tests.chaos.sent import Message
from tests.chaos.traffic import TRY_AGAIN, Traffic
from tests.cluster.world import ASKED, ClusterWorld


class ClusterTraffic(Traffic):
    """Sends to a cluster as an app with plain Celery does, which sends again what it could not send."""

    publish_retry = True

    def __init__(self, world: ClusterWorld, rng: random.Random, prefix: str, patience_s: float) -> None:
        self._world = world
        super().__init__(world.addresses, rng, prefix, patience_s, may_expire=False)

    def _connect(self, addresses: Addresses) -> None:
        self.app = Celery("shop", broker=addresses.broker_url, set_as_current=False)
        self.app.conf.broker_transport_options = self._world.transport_options()
        self.results = self._world.results()
        self._note_errors()

    def _note_errors(self) -> None:
        with self.app.connection_for_write() as connection:
            self._away = (
                OperationalError,
                AMQPError,
                RedisError,
                *connection.recoverable_connection_errors,
            )

    def done_since(self, moment: float) -> int:
        """Return how many messages sent after this moment have a result or a refusal."""
        with self._lock:
            return sum(one.first_sent_at >= moment and _is_done(one) for one in self.messages)

    def longest_gap_s(self, begin: float, end: float) -> float:
        """Return the longest time in a span of the monotonic clock without a result or a refusal."""
        with self._lock:
            at = sorted(one.answered_at or 0.0 for one in self.messages if _is_done(one))
        within = [moment for moment in at if begin <= moment <= end]
        return max(later - earlier for earlier, later in pairwise([begin, *within, end]))


class TypedTraffic(ClusterTraffic):
    """Sends by the app of the typed client, and reads the answers by its connections."""

    def _connect(self, addresses: Addresses) -> None:
        urls = addresses.broker_url, addresses.result_backend_url
        self.app = make_app("allocation", *urls, ASKED, None)
        self.results = self.app.backend.client
        self._note_errors()

    def close(self) -> None:
        """Stop the threads."""
        super().close()
        close_app(self.app)


def _is_done(message: Message) -> bool:
    """Return whether a message has an answer other than to try again."""
    return message.answered_at is not None and any(one.error not in TRY_AGAIN for one in message.commands)
