"""Where spans go: to a collector, over OTLP and HTTP, unless the program has set up OpenTelemetry itself."""

from __future__ import annotations

import os
import threading
from functools import cache

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from messaging import __version__

#: Longest wait for the collector when a process ends, in seconds. What it does not take by then is lost.
FLUSH_S = 3.0


@cache
def tracer() -> trace.Tracer:
    """Return the tracer of this process and of its children."""
    return trace.get_tracer("messaging", __version__)


def set_up(service: str, collector_url: str | None) -> None:
    """Export the spans of this process and of its children.

    The standard `OTEL_…` variables choose sampling, batches, headers, and the collector if there is no URL.
    """
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    endpoint = f"{collector_url.rstrip('/')}/v1/traces" if collector_url else None
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": __version__})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Export what is left, at the end of a process that ends without Python's own exit functions."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # A collector that does not answer must not hold up the end.
        ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)
