"""A channel of our transport on the primary that Sentinel names."""

# mypy: disable-error-code="no-untyped-call, misc, assignment"
# kombu is untyped in parts, and gives attributes the type of their first value.

from __future__ import annotations

from kombu.transport import redis as stock

from reliable_celery import failover
from reliable_celery.redis.channel import Channel


class SentinelChannel(Channel, stock.SentinelChannel):
    """A channel that asks Sentinel for the primary each time that it connects."""

    connection_class = failover.SentinelConnection
    connection_class_ssl = failover.SentinelSSLConnection
    from_transport_options = tuple(
        {*Channel.from_transport_options, *stock.SentinelChannel.from_transport_options}
    )
