"""Pass items that are no kombu messages to the transport's hook, so that they stop nobody."""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value.

from __future__ import annotations

import logging
from typing import Any

from kombu.utils.json import dumps

from reliable_celery.redis.envelope import UNREADABLE, hide, is_envelope, read_envelope
from reliable_celery.redis.restore import hidden
from reliable_celery.redis.settling import SettlingChannel

logger = logging.getLogger(__name__)


class SortingChannel(SettlingChannel):
    """A channel that sets aside items that are no kombu messages."""

    def read_item(self, queue: str, tag: str, item: bytes) -> dict[str, Any] | None:
        """Return the message in a list's item; None when it is no message and was set aside."""
        payload = read_envelope(item)
        if payload is None or payload.get("content-type") == UNREADABLE:
            self._set_aside(queue, tag, item, payload)
            return None
        return payload

    def _set_aside(self, queue: str, tag: str, item: bytes, payload: dict[str, Any] | None) -> None:
        """Give `item` to the transport's hook; when that fails, leave it for the visibility timeout."""
        try:
            raw = item if payload is None else bytes.fromhex(payload["body"])
            self.connection.on_unreadable(queue, raw)
        except Exception:
            logger.exception("Kept unacknowledged, from queue %s: %r", queue, item[:1024])
            self.strays.append(tag)
            whole = len(item) <= self.connection.max_item_bytes
            self.attempt(lambda: self._keep_aside(tag, payload is None and whole))
        else:
            self.qos.ack(tag)

    def _keep_aside(self, tag: str, unreadable: bool) -> None:
        if unreadable:
            self.hide_unreadable(tag)
        self.disown(tag)

    def hide_unreadable(self, tag: str | bytes) -> None:
        """Replace the item registered under `tag` by an envelope around it, which stock sweeps can move."""
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

    def _get_message_priority(self, message: Any, reverse: bool = False) -> int:
        try:
            priority: int = super()._get_message_priority(message, reverse)
        except OverflowError:  # JSON may hold an infinite number
            priority = self.default_priority
        return priority

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool | None:
        if not is_envelope(message) or "delivery_tag" not in message["properties"]:
            logger.warning("Ignored a broadcast on %s that is no kombu message: %.1024r", exchange, message)
            return None
        delivered: bool | None = super()._deliver_fanout_message(message, exchange)
        return delivered
