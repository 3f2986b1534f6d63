"""A channel of kombu's Redis transport that loses no message (docs/adr/030).

Each of its parts is a file of its own: `trips` fetches and registers messages in one step, `news` waits for
them, `rota` chooses who is woken, `unreadable` sets aside items that are no messages, `settling` acknowledges
and releases; `leases`, `strays`, `later` and `adoption` requeue messages of dead workers, those that this
one has lost track of, due messages, and those of earlier releases; `full` works on a full Redis,
`crashes` counts. This file delivers messages, and closes.
"""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value (`_in_poll = False`).

from __future__ import annotations

from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import virtual
from redis import exceptions

from reliable_celery.redis.crashes import CountingChannel
from reliable_celery.redis.envelope import Message, read_envelope
from reliable_celery.redis.fetch import FETCH, FETCH_SHA
from reliable_celery.redis.full import FrugalChannel
from reliable_celery.redis.trips import FetchingChannel

REPLY_GRACE = 1.0  # seconds that a closing channel waits for an outstanding reply
SLICE = 0.05  # seconds that deliveries may hold up the event loop; the solo pool runs its tasks inside them


class Channel(FetchingChannel, CountingChannel, FrugalChannel):
    """A channel that pops and registers in one step, and waits without popping."""

    Message = Message
    _goes_on = False  # the rest is delivered in the loop's next turn, after it has sent acknowledgements

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        if self.global_keyprefix:
            self.close()
            raise ValueError(
                "global_keyprefix is not supported here: give each project a Redis database of its own"
            )

    # Delivering

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ARG002  kombu calls it
        """Handle what Redis sent; raises Empty when that was no message."""
        self.read_socket()
        if self._goes_on or not self.deliver():
            raise Empty
        return True

    def deliver(self) -> bool:
        """Deliver arrived messages, without an event loop one per call; True when there was one.

        After the channel was closed the event loop may still have to call this once.
        """
        if self.closed or self.connection is None:
            return False
        loop, until, delivered = self.connection.cycle.loop, monotonic() + SLICE, False
        self._goes_on = False
        while self.arrived:
            delivered = self._deliver_one(*self.arrived.popleft()) or delivered
            if self.arrived and loop and monotonic() >= until:
                self._goes_on = True
                loop.call_soon(self.deliver)
                break
            if delivered and not loop:
                break
        return delivered

    def _deliver_one(self, queue: str, tag: str, item: bytes) -> bool:
        payload = self.read_item(queue, tag, item)
        if payload is None:
            return False
        if queue not in self.connection._callbacks:  # cancelled while the message was on its way
            self._give_back(queue, tag, item)
            return False
        self.connection._deliver(_stamped(payload, tag, queue), queue)
        return True

    def _give_back(self, queue: str, tag: str, item: bytes) -> None:
        if queue in self._no_ack_queues:
            with self.conn_or_acquire() as client:
                client.rpush(queue, item)
        else:
            self.qos.restore_by_tag(tag)

    # Getting one message

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:  # noqa: ARG002  as kombu
        for tag, item in iter(lambda: self._pop_one(queue, no_ack), None):
            payload = self.read_item(queue, tag, item)
            if payload is None:
                continue
            message = self.Message(_stamped(payload, tag, queue), channel=self)
            if not no_ack:
                self.qos.append(message, tag)
            return message
        return None

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:  # noqa: ARG002  as kombu
        """The next message of `queue`, not registered; raises Empty."""
        found = self._pop_one(queue, no_ack=True)
        payload = read_envelope(found[1]) if found else None
        if payload is None:
            raise Empty
        return payload

    def _pop_one(self, queue: str, no_ack: bool) -> tuple[str, bytes] | None:
        trip = self.new_trip([queue], 1, {queue} if no_ack else set())
        with self.conn_or_acquire() as client:
            self._maybe_update_queues_expire(client, queue)
            try:
                found = client.evalsha(FETCH_SHA, *self.arguments(trip))
            except exceptions.NoScriptError:
                found = client.eval(FETCH, *self.arguments(trip))
        found = found[0]
        return (found[0][1].decode(), found[0][2]) if found else None

    # Closing

    def _basic_cancel(self, consumer_tag: str) -> Any:
        result = super()._basic_cancel(consumer_tag)
        if not self.active_queues:
            # From here on no trip carries the acknowledgements, and nobody renews the lease.
            self.attempt(self.flush_acks)
            self.attempt(self.leave_rota)
            if self.own_lease:
                self.attempt(self.give_up_lease)
        return result

    def close(self) -> None:
        if not self.closed and self._registered:
            self.attempt(self._settle)
        self._in_poll = None
        super().close()

    def _settle(self) -> None:
        self.end_trip(REPLY_GRACE)
        self.flush_acks()
        self.leave_rota()
        while self.arrived:
            self._give_back(*self.arrived.popleft())
        self.give_back_strays()


def _stamped(payload: dict[str, Any], tag: str, queue: str) -> dict[str, Any]:
    """Set a message's tag to the one under which it is registered, and its queue to the one it came from."""
    properties = payload["properties"]
    properties["delivery_tag"] = tag
    properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "queue": queue}
    return payload
