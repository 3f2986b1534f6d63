"""Another app that is traced: sends orders inside a span of its own, and prints the trace's id."""

from __future__ import annotations

import os
import sys
from uuid import uuid4

from opentelemetry import trace

from allocation.client import Allocate, AllocationClient
from messaging.telemetry import provider

ADDRESSES = os.environ["ALLOCATION_BROKER_URL"], os.environ["ALLOCATION_RESULT_BACKEND_URL"]

provider.set_up("shop", os.environ["ALLOCATION_TRACES_URL"])
sku, *how = sys.argv[1:]
with (
    trace.get_tracer("shop").start_as_current_span("checkout") as span,
    AllocationClient(*ADDRESSES) as client,
):
    orders = [Allocate(f"o-{uuid4()}", sku, 5) for _ in range(2)]
    if "--many" in how:
        list(client.many(orders))
    else:
        client.call(orders[0])
    print(f"{span.get_span_context().trace_id:032x}")
