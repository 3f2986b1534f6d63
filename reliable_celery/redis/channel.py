"""A channel of kombu's Redis transport that pops and registers messages in one step (docs/adr/030)."""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value (`_in_poll = False`).

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from queue import Empty
from time import monotonic
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis import exceptions

from reliable_celery.redis.envelope import UNREADABLE, Message, hide, is_envelope, read_envelope
from reliable_celery.redis.adoption import AdoptingChannel
from reliable_celery.redis.fetch import FETCH, FETCH_SHA, Trip
from reliable_celery.redis.full import FrugalChannel
from reliable_celery.redis.later import LaterChannel
from reliable_celery.redis.leases import LeasingChannel
from reliable_celery.redis.restore import Pushes, hidden, read_entry

logger = logging.getLogger(__name__)

MAX_BATCH = 16  # messages a trip; more would only keep them from other workers
MAX_ACKS = 1000  # acknowledgements a trip; Lua can unpack some 8,000 values
REPLY_GRACE = 1.0  # seconds a closing channel waits for a reply that is on its way
ACK_DELAY = 0.1  # seconds an acknowledgement waits for company, while there is enough to do
SLICE = 0.05  # seconds the event loop is kept with deliveries; the solo pool runs its tasks inside them


class QoS(stock.QoS):
    """Messages arrive registered; acknowledgements wait for the next trip."""

    def append(self, message: Message, delivery_tag: str) -> None:
        if str(delivery_tag).startswith(self.channel.tag_prefix):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self.channel.acks_can_wait:
            self.channel.ack_later(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            super().reject(delivery_tag, requeue=True)
        else:
            self.ack(delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:  # noqa: ARG002  as kombu
        """Give back what nobody has acknowledged in time, by Redis' clock; kombu goes by the worker's."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        self.channel.adopt(self.channel.acknowledged_queues)
        self.channel.give_back_due()
        with self.channel.conn_or_acquire() as client:
            for tag in self.channel.overdue(client, num):
                self.restore_by_tag(tag, client)

    def restore_unacked(self, client: Any = None) -> None:
        self.channel.flush_acks()
        super().restore_unacked(client)

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:
        """Put one message back; what is no kombu message is hidden in one first."""
        pushes = Pushes()
        with self.channel.conn_or_acquire(client) as client:
            value = client.hget(self.unacked_key, tag)
            if value is not None:
                self.channel._do_restore_message(*read_entry(value), pushes, leftmost)
            if value is None or pushes.keys:
                pushes.move(client, self.unacked_key, self.unacked_index_key, tag)


class Channel(LaterChannel, LeasingChannel, AdoptingChannel, FrugalChannel):
    """A channel that pops and registers in one step, and waits without popping.

    It waits by client-side caching: EXISTS on a tracking connection makes Redis tell when a list changes.
    """

    QoS = QoS
    Message = Message
    _sync_client: Any = None
    _trip: Trip | None = None  # sent and not yet answered
    _prefetch_at_once = 0  # the prefetch without what a stock consumer holds for later
    _ack_until = 0.0  # monotonic seconds; an acknowledgement waits no longer for company
    _pause_until = 0.0  # monotonic seconds; Redis refused a trip
    _look_again_at = 0.0  # monotonic seconds; from then on look without having been told

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.acks: deque[str] = deque()
        self._trips = 0
        self._no_ack_queues: set[str] = set()
        self._arrived: deque[tuple[str, str, bytes]] = deque()  # (queue, tag, item), not yet delivered
        self._read_reply: Callable[[Any], None] = self._read_batch
        super().__init__(connection, **kwargs)
        if self.global_keyprefix:
            self.close()
            raise ValueError(
                "global_keyprefix is not supported here: give each project a Redis database of its own"
            )

    # One redis-py client per channel: making one copies some 170 callbacks, and kombu makes one per command.

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._sync_client is None:
            self._sync_client = super()._create_client()
        return self._sync_client

    def _disconnect_pools(self) -> None:
        self._sync_client = None
        super()._disconnect_pools()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection is None or self.connection.client is None:
            # kombu would read attributes of None here; no caller expects that, and the worker would die.
            raise exceptions.ConnectionError("the channel's connection is closed")
        params: dict[str, Any] = super()._connparams(asynchronous)
        return params

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        self._look_again_at = 0.0
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        result = super()._basic_cancel(consumer_tag)
        if not self.active_queues:
            # From here on no trip takes the acknowledgements along, and nobody gives signs of life.
            self._try(self.flush_acks)
            if self.own_lease:
                self._try(self.give_up_lease)
        return result

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Celery's own consumer raises the prefetch by one for each message that it holds for later."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._prefetch_at_once = min(self._prefetch_at_once or prefetch_count, prefetch_count)

    @property
    def acknowledged_queues(self) -> list[str]:
        """The queues read here whose messages stay registered until they are acknowledged."""
        return [queue for queue in self.active_queues if queue not in self._no_ack_queues]

    def held_tags(self) -> list[str]:
        """Return the tags of all messages here that are not settled."""
        return [*super().held_tags(), *(tag for _, tag, _ in self._arrived)]

    @property
    def acks_can_wait(self) -> bool:
        """Whether a trip will come by without the application's doing."""
        return bool(self.connection and self.connection.cycle.in_loop and self.active_queues)

    def ack_later(self, tag: str) -> None:
        """Acknowledge with the next trip."""
        if not self.acks:
            self._ack_until = monotonic() + ACK_DELAY
        self.acks.append(tag)

    def wants_trip(self) -> bool:
        now = monotonic()
        if self._in_poll or now < self._pause_until:
            return False
        if now < self._look_again_at:
            return bool(self.acks)
        return self._room() >= self._worthwhile() or (bool(self.acks) and now >= self._ack_until)

    def _worthwhile(self) -> int:
        """How many free places are worth a trip; while fewer are free, there is enough to do."""
        return min(max(1, self._prefetch_at_once // 4), MAX_BATCH)

    def _room(self) -> int:
        """How many messages may be taken now."""
        if self._arrived or not self.qos.can_consume():
            return 0
        if not self.qos.prefetch_count or "can_consume" in vars(self.qos):
            # No limit: one at a time, as kombu does. Or worker_disable_prefetch limits otherwise.
            return 1
        return min(self.qos.can_consume_max_estimate(), MAX_BATCH)

    def _new_trip(self, queues: list[str], room: int, no_ack: set[str]) -> Trip:
        lists = [(self._q_for_pri(queue, step), queue) for step in self.priority_steps for queue in queues]
        acks = [self.acks.popleft() for _ in range(min(len(self.acks), MAX_ACKS))]
        self._trips += 1
        prefix = f"{self.tag_prefix}{self._trips}."
        return Trip(lists, room, acks, frozenset(no_ack), prefix, self.own_lease, self.lease_s)

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002  kombu calls it
        if self._trip is not None:
            self._put_right(self._trip)
        queues = self._queue_cycle.consume(len(self.active_queues))
        room = self._room() if monotonic() >= self._look_again_at else 0
        self._trip = trip = self._new_trip(queues, room, self._no_ack_queues)
        self._send(
            self._read_batch,
            ["EVALSHA", FETCH_SHA, *self._arguments(trip)],
        )

    def _arguments(self, trip: Trip) -> list[str | int | float]:
        return trip.arguments(self.unacked_key, self.unacked_index_key, self.leases_key)

    def _send(self, read_reply: Callable[[Any], None], *commands: list[Any]) -> None:
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        self._read_reply = read_reply
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> bool:  # noqa: ARG002  kombu calls it
        """Handle what Redis sent; Empty when no message came of it."""
        connection = self.client.connection
        try:
            if self._in_poll:
                self._read_reply(connection)
            else:
                self._read_news(connection)
        except self.connection_errors:
            connection.disconnect()
            raise
        delivered = self.deliver()
        if not delivered:
            raise Empty
        return True

    def _read_batch(self, connection: Any) -> None:
        trip = self._trip
        if trip is None:
            raise RuntimeError("an answer to no question")
        try:
            found = connection.read_response()
        except exceptions.NoScriptError:
            self._send(self._read_batch, ["EVAL", FETCH, *self._arguments(trip)])
            return
        except exceptions.ReadOnlyError as exc:
            raise exceptions.ConnectionError("Redis became a replica") from exc
        except exceptions.ResponseError:
            logger.exception("Redis refused to hand out messages; trying again in %s s", self.brpop_timeout)
            self._pause_until = monotonic() + self.brpop_timeout
            self._trip, self._in_poll = None, None
            self.acks.extendleft(trip.acks)
            return
        self._trip, self._in_poll = None, None
        for index, tag, item in found:
            queue = trip.lists[index][1]
            self._arrived.append((queue, tag.decode(), item))
            self._queue_cycle.rotate(queue)  # the next trip begins with another, so that none starves
        if len(found) < trip.room or monotonic() < self._look_again_at:
            # In the second case news may have come ahead of the reply, and redis-py dropped them.
            self._arm(trip)

    def _arm(self, trip: Trip) -> None:
        """Have Redis tell us when one of the lists changes, and learn whether one already did."""
        keys = [key for key, _ in trip.lists]
        self._send(
            self._read_armed,
            ["CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"],
            ["CLIENT", "CACHING", "YES"],
            ["EXISTS", *keys],
        )

    def _read_armed(self, connection: Any) -> None:
        replies = [self._reply_or_error(connection) for _ in range(3)]
        self._in_poll = None
        for error in replies:
            if isinstance(error, Exception):
                logger.warning("Redis tells no news (%s): looking every %s s", error, self.brpop_timeout)
                break
        # Changed already, or news are in redis-py's buffer, where the event loop does not see them.
        changed = isinstance(replies[2], int) and replies[2] > 0
        self._look_again_at = (
            0.0 if changed or connection.can_read(timeout=0) else monotonic() + self.brpop_timeout
        )

    @staticmethod
    def _reply_or_error(connection: Any) -> Any:
        try:
            return connection.read_response()
        except exceptions.ResponseError as exc:
            return exc

    def _read_news(self, connection: Any) -> None:
        connection.read_response(push_request=True)
        self._look_again_at = 0.0

    def deliver(self) -> bool:
        """Hand over what arrived, one message a call without an event loop; True when there was one."""
        loop, until, delivered = self.connection.cycle.loop, monotonic() + SLICE, False
        while self._arrived:
            delivered = self._deliver_one(*self._arrived.popleft()) or delivered
            if self._arrived and loop and monotonic() >= until:
                loop.call_soon(self.deliver)
                break
            if delivered and not loop:
                break
        return delivered

    def _deliver_one(self, queue: str, tag: str, item: bytes) -> bool:
        payload = read_envelope(item)
        if payload is None or payload.get("content-type") == UNREADABLE:
            self._set_aside(queue, tag, item, payload)
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

    # What is no kombu message

    def _set_aside(self, queue: str, tag: str, item: bytes, payload: dict[str, Any] | None) -> None:
        """Give `item` to the transport's hook; when that fails, leave it for the visibility timeout."""
        try:
            raw = item if payload is None else bytes.fromhex(payload["body"])
            self.connection.on_unreadable(queue, raw)
        except Exception:
            logger.exception("Kept unacknowledged, from queue %s: %r", queue, item[:1024])
            self._try(lambda: self._keep_aside(tag, payload is None))
        else:
            self.qos.ack(tag)

    def _keep_aside(self, tag: str, unreadable: bool) -> None:
        if unreadable:
            self.hide_unreadable(tag)
        self.disown(tag)

    def hide_unreadable(self, tag: str | bytes) -> None:
        """Replace what is registered under `tag` by an envelope around it, which stock sweeps can carry."""
        with self.conn_or_acquire() as client:
            value = client.hget(self.unacked_key, tag)
            if value is None:
                return
            client.hset(self.unacked_key, tag, dumps(hidden(value)))

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        if not is_envelope(payload):
            payload = hide(dumps(payload).encode(), routing_key)
        for table, name in (payload, "headers"), (payload["properties"], "delivery_info"):
            table[name] = table.get(name) or {}  # kombu marks both as redelivered
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool | None:
        if not is_envelope(message) or "delivery_tag" not in message["properties"]:
            logger.warning("Ignored a broadcast on %s that is no kombu message: %.1024r", exchange, message)
            return None
        delivered: bool | None = super()._deliver_fanout_message(message, exchange)
        return delivered

    # basic_get

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> virtual.Message | None:  # noqa: ARG002  as kombu
        for tag, item in iter(lambda: self._pop_one(queue, no_ack), None):
            payload = read_envelope(item)
            if payload is None or payload.get("content-type") == UNREADABLE:
                self._set_aside(queue, tag, item, payload)
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
        trip = self._new_trip([queue], 1, {queue} if no_ack else set())
        with self.conn_or_acquire() as client:
            self._maybe_update_queues_expire(client, queue)
            try:
                found = client.evalsha(FETCH_SHA, *self._arguments(trip))
            except exceptions.NoScriptError:
                found = client.eval(FETCH, *self._arguments(trip))
        return (found[0][1].decode(), found[0][2]) if found else None

    # Letting go

    def forget(self, delivery_tag: str) -> None:
        """Leave a message to the visibility timeout, and have its place in the prefetch for another."""
        self._try(lambda: self.disown(delivery_tag))
        virtual.QoS.ack(self.qos, delivery_tag)

    def flush_acks(self) -> None:
        """Send the acknowledgements that wait for a trip."""
        tags = list(self.acks)
        if tags:
            with self.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.hdel(self.unacked_key, *tags).zrem(self.unacked_index_key, *tags).execute()
        for _ in tags:
            self.acks.popleft()

    def _put_right(self, trip: Trip) -> None:
        """Repeat what a trip without an answer may or may not have done."""
        self._trip = None
        self.acks.extend(trip.acks)
        for tag in trip.tags():
            self.qos.restore_by_tag(tag)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (*self.connection_errors, self.ResponseError):
            logger.warning(
                "Redis is away or refuses: what is unacknowledged comes back after the visibility timeout",
                exc_info=True,
            )

    def close(self) -> None:
        if not self.closed and self._registered:
            self._try(self._settle)
        self._in_poll = None
        super().close()

    def _settle(self) -> None:
        connection: Any = self._in_poll
        if connection and connection.can_read(timeout=REPLY_GRACE):
            self._read_reply(connection)
        if self._trip is not None:
            self._put_right(self._trip)
        self.flush_acks()
        while self._arrived:
            self._give_back(*self._arrived.popleft())


def _stamped(payload: dict[str, Any], tag: str, queue: str) -> dict[str, Any]:
    """Give a message the tag under which it is registered, and the queue on which it really was."""
    properties = payload["properties"]
    properties["delivery_tag"] = tag
    properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "queue": queue}
    return payload
