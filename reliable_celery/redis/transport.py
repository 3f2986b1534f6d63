"""kombu's Redis transport without message loss and with fewer round trips (docs/adr/030).

Setting: `broker_transport = "reliable_celery.redis.transport:Transport"` with a `redis://` or `rediss://`
URL, `:SocketTransport` with a `socket:///path?virtual_host=0` URL, `:SentinelTransport` with
`sentinel://host:26379/0;sentinel://host2:26379` and kombu's option `master_name`. Messages on the queues keep
kombu's format, so stock senders can share a broker with this transport.
"""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value (`_in_poll = False`).

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kombu.transport import redis as stock
from redis import exceptions

from reliable_celery.redis.channel import Channel
from reliable_celery.redis.sentinel_channel import SentinelChannel

logger = logging.getLogger(__name__)


class Poller(stock.MultiChannelPoller):
    """Starts a trip when there is something to send or room for messages, and reads every reply."""

    loop: Any = None  # the event loop, None under drain_events

    @property
    def in_loop(self) -> bool:
        return self.loop is not None

    def on_poll_start(self) -> None:
        for channel in list(self._channels):
            if channel.active_queues:
                channel.tend_leases()
                channel.look_for_strays()
                if channel.wants_trip():
                    self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def on_poll_init(self, poller: Any) -> None:
        self.poller = poller
        self.maybe_restore_messages()

    def maybe_restore_messages(self) -> None:
        if any(channel.is_one_of_many for channel in self._channels):
            return
        try:
            super().maybe_restore_messages()
        except exceptions.ResponseError:
            logger.warning("Redis refused to requeue old messages; the next sweep will try", exc_info=True)

    def on_readable(self, fileno: int) -> None:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP":
            channel.handlers[kind]()
        else:
            super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        if any(channel.deliver() for channel in list(self._channels)):
            return
        longest = min((channel.brpop_timeout for channel in self._channels), default=1)
        super().get(callback, longest if timeout is None else min(timeout, longest))


#: kombu's options of the sweep.
EVERY_SECOND = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}


class Transport(stock.Transport):
    """kombu's Redis transport with these channels."""

    Channel = Channel
    #: Whether its consumers promise to turn their event loop every few seconds. A pool that runs tasks inside
    #: the loop cannot: its messages are redelivered after the visibility timeout.
    holds_leases = False
    #: Of a message with more bytes a consumer gets the first ones, one more than this, which are no message;
    #: the rest is read by nobody. A Redis string has no more than the default.
    max_item_bytes = 536_870_912

    def __init__(self, client: Any, *args: Any, **kwargs: Any) -> None:
        # Look for messages that are due, or of dead workers, every second; kombu does every 100 s.
        client.transport_options = {**EVERY_SECOND, **(client.transport_options or {})}
        super().__init__(client, *args, **kwargs)
        self.cycle = Poller()
        self._ticks: set[Any] = set()  # what it has the event loop call
        #: Called as (queue, raw bytes) for an item that is no kombu message, in the consuming thread. It
        #: returns once that is recorded; if it raises, the item is redelivered after the visibility timeout.
        self.on_unreadable: Callable[[str, bytes], object] = self._refuse_unreadable

    @staticmethod
    def _refuse_unreadable(queue: str, raw: bytes) -> None:
        raise LookupError(f"set transport.on_unreadable to record the {len(raw)} bytes from {queue}")

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        poller: Any = self.cycle
        poller.loop, before = loop, set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        self._ticks |= loop.on_tick - before

    def close_connection(self, connection: Any) -> None:
        """Close, and leave the event loop, which kombu would have call a closed connection for ever."""
        super().close_connection(connection)
        poller: Any = self.cycle
        if poller.loop is not None:
            poller.loop.on_tick -= self._ticks


class SocketTransport(Transport):
    """The same over a Unix socket; the channel reads the path from its address."""

    can_parse_url = True


class SentinelTransport(Transport):
    """The same on the primary that Sentinel names, also after a failover."""

    Channel = SentinelChannel
    default_port = stock.SentinelTransport.default_port

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        # The channel asks all Sentinels; kombu would go on to the next address, and to its own transport.
        client.cycle = None
