"""Allocate stock from another Python app. It needs Celery and the message classes, no database and no domain.

client = AllocationClient("redis://127.0.0.1:6390/0", "redis://127.0.0.1:6390/1")
batchref = client.allocate(orderid="o1", sku="LAMP", qty=2)

outbox.send(session, Allocate("o1", "LAMP", 2), key="order-4711")  # sent if that session commits
"""

from allocation.client.typed import REFUSALS, AllocationClient
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.client.outbox import Outbox

__all__ = ["Allocate", "AllocationClient", "ChangeBatchQuantity", "CreateBatch", "outbox"]

#: Sends commands from inside the app's own transactions.
outbox = Outbox("allocation", (Allocate, CreateBatch, ChangeBatchQuantity), REFUSALS)
