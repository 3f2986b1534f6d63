"""Trips to Redis for messages: when to make one, how to send it, and how to read its reply."""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value (`_in_poll = False`).

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from redis import exceptions

from reliable_celery.redis.fetch import FETCH, FETCH_SHA, Trip
from reliable_celery.redis.news import News, reply_or_error
from reliable_celery.redis.rota import BUSY, SLEEP_ON, RotaChannel, Turn
from reliable_celery.redis.unreadable import SortingChannel

logger = logging.getLogger(__name__)

MAX_BATCH = 16  # messages per trip; more would only keep them from other workers


class FetchingChannel(SortingChannel, RotaChannel):
    """A channel that pops and registers messages in one step, into `arrived`."""

    _trip: Trip | None = None  # sent, not yet answered
    _prefetch_at_once = 0  # the prefetch without the messages that a stock consumer holds until their ETA
    _pause_until = 0.0  # monotonic seconds; Redis refused a trip
    _looked_at = 0.0  # monotonic seconds; the latest trip for messages

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self._trips = 0
        self._no_ack_queues: set[str] = set()
        self.news = News()
        self.arrived: deque[tuple[str, str, bytes]] = deque()  # (queue, tag, item), not yet delivered
        self._read_reply: Callable[[Any], None] = self._read_batch
        super().__init__(connection, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        self.news.look_now()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Remember the lowest count: Celery's consumer adds one per message that it holds until its ETA."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._prefetch_at_once = min(self._prefetch_at_once or prefetch_count, prefetch_count)

    @property
    def acknowledged_queues(self) -> list[str]:
        """Return the queues whose messages stay registered until they are acknowledged."""
        return [queue for queue in self.active_queues if queue not in self._no_ack_queues]

    def held_tags(self) -> list[str]:
        """Return the tags of all unsettled messages of this channel."""
        return [*super().held_tags(), *(tag for _, tag, _ in self.arrived)]

    # When

    def wants_trip(self) -> bool:
        """Whether there is something to send, or room for messages that may have arrived."""
        now = monotonic()
        if self._in_poll or now < self._pause_until:
            return False
        if now < self.news.look_at:
            return bool(self.acks)
        room = self._room()
        if room >= self._worthwhile() or (bool(self.acks) and now >= self.ack_until):
            return True
        # Each free place may be that of a process that does nothing.
        return room > 0 and now >= self._looked_at + self.brpop_timeout

    def _worthwhile(self) -> int:
        """Return how many free places justify a trip at once; with fewer the worker is busy enough."""
        return 1 if self._takes_one else min(max(1, self._prefetch_at_once // 4), MAX_BATCH)

    def _room(self) -> int:
        """Return how many messages may be taken now."""
        if self.arrived or not self.qos.can_consume():
            return 0
        return 1 if self._takes_one else min(self.qos.can_consume_max_estimate(), MAX_BATCH)

    @property
    def _takes_one(self) -> bool:
        """Return whether it takes one message at a time.

        Without a limit, as kombu does; or `worker_disable_prefetch` limits otherwise.
        """
        return not self.qos.prefetch_count or "can_consume" in vars(self.qos)

    # Sending a trip

    def new_trip(self, queues: list[str], room: int, no_ack: set[str], turn: Turn | None = None) -> Trip:
        """Return a trip for up to `room` messages of `queues` that also carries acknowledgements."""
        lists = self._lists(queues)
        self._trips += 1
        prefix = f"{self.tag_prefix}{self._trips}."
        limits = self.own_lease, self.lease_s, self.connection.max_item_bytes
        return Trip(lists, room, self.take_acks(), frozenset(no_ack), prefix, *limits, turn or Turn())

    def _lists(self, queues: Iterable[str]) -> list[tuple[str, str]]:
        return [(self._q_for_pri(queue, step), queue) for step in self.priority_steps for queue in queues]

    def arguments(self, trip: Trip) -> list[str | int | float]:
        """Return the arguments after the script on a trip."""
        return trip.arguments(self.unacked_key, self.unacked_index_key, self.leases_key)

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002  kombu calls it
        if self._trip is not None:
            self._put_right(self._trip)
        queues = self._queue_cycle.consume(len(self.active_queues))
        room = self._room() if monotonic() >= self.news.look_at else 0
        turn = self.new_turn(self._worthwhile()) if room else None
        self._looked_at = monotonic() if room else self._looked_at
        self._trip = trip = self.new_trip(queues if room else [], room, self._no_ack_queues, turn)
        if room or not trip.acks:
            self._send(self._read_batch, ["EVALSHA", FETCH_SHA, *self.arguments(trip)])
        else:
            keys = self.unacked_key, self.unacked_index_key
            self._send(self._read_acked, ["HDEL", keys[0], *trip.acks], ["ZREM", keys[1], *trip.acks])

    def _send(self, read_reply: Callable[[Any], None], *commands: list[Any]) -> None:
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        self._read_reply = read_reply
        connection.send_packed_command(connection.pack_commands(commands))

    # Reading its reply

    def read_socket(self) -> None:
        """Read a reply, or a notice, from the connection on which Redis has sent something."""
        connection = self.client.connection
        try:
            if self._in_poll:
                self._read_reply(connection)
            else:
                self._read_notice(connection)
        except self.connection_errors:
            connection.disconnect()
            raise

    def _read_notice(self, connection: Any) -> None:
        if self.sleeps:
            # Woken to watch: there may be nothing to fetch yet.
            self.was_woken()
            self.news.read(connection)
            self.news.wait_for([key for key, _ in self._lists(self.active_queues)])
            self._send(self._read_armed, *self.news.request(connection))
        else:
            self.news.read(connection)

    def _read_batch(self, connection: Any) -> None:
        trip = self._trip
        if trip is None:
            raise RuntimeError("an answer to no question")
        try:
            found, wait, sleepers = connection.read_response()
        except exceptions.NoScriptError:
            self._send(self._read_batch, ["EVAL", FETCH, *self.arguments(trip)])
            return
        except exceptions.ReadOnlyError as exc:
            raise exceptions.ConnectionError("Redis became a replica") from exc
        except exceptions.ResponseError as error:
            self._refused(trip, error)
            return
        self._trip, self._in_poll = None, None
        for index, tag, item in found:
            queue = trip.lists[index][1]
            self.arrived.append((queue, tag.decode(), item))
            self._queue_cycle.rotate(queue)  # the next trip begins with another queue, so that none starves
        if trip.room:
            self.note_turn(wait, sleepers)
            if trip.lease and self.is_one_of_many:
                self.lease_was_renewed()
            if wait == BUSY:
                self.news.look_now()  # when there is room
                return
            if self.sleeps:
                self.news.wait_for([trip.turn.bell], bell=True)
            else:
                self.news.wait_for([key for key, _ in trip.lists])
        self._wait_on(connection, trip, len(found), wait)

    def _read_acked(self, connection: Any) -> None:
        trip = self._trip
        if trip is None:
            raise RuntimeError("an answer to no question")
        replies = [reply_or_error(connection) for _ in range(2)]
        for reply in replies:
            if isinstance(reply, Exception):
                self._refused(trip, reply)
                return
        self._trip, self._in_poll = None, None
        self._wait_on(connection, trip, 0, BUSY)

    def _refused(self, trip: Trip, error: Exception) -> None:
        logger.error(
            "Redis refused to hand out messages; trying again in %s s", self.brpop_timeout, exc_info=error
        )
        self._pause_until = monotonic() + self.brpop_timeout
        self._in_poll = None
        self.attempt(lambda: self._put_right(trip))  # it may have registered messages before

    def _wait_on(self, connection: Any, trip: Trip, found: int, wait: int) -> None:
        """Have Redis report changes, unless it does so already."""
        reported = self.news.reports_on(connection) and (not trip.room or wait == SLEEP_ON)
        if reported:
            if trip.room:
                self.news.look_again_in(self.brpop_timeout * self.look_factor)
            self.news.read_on(connection)
        elif found < trip.room or monotonic() < self.news.look_at:
            self._send(self._read_armed, *self.news.request(connection))

    def _read_armed(self, connection: Any) -> None:
        self.news.read_reply(connection, self.brpop_timeout * self.look_factor, self.brpop_timeout)
        self._in_poll = None

    def _put_right(self, trip: Trip) -> None:
        """Repair after a trip without a reply: it may have run, in part or not at all, or may yet run."""
        self._trip = None
        self.strays.extend(trip.tags())
        self.acks.extend(trip.acks)
        for tag in trip.tags():
            self.qos.restore_by_tag(tag)

    def end_trip(self, patience_s: float) -> None:
        """Read the outstanding reply; if it does not come, repair what the trip may have done."""
        connection: Any = self._in_poll
        if connection and connection.can_read(timeout=patience_s):
            self._read_reply(connection)
        if self._trip is not None:
            self._put_right(self._trip)
