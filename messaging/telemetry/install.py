"""Switch on what the settings ask for; what they do not ask for is not even imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from celery import signals

from messaging.brokers.topology import system
from messaging.extras import needs
from messaging.project.runtime import Runtime
from messaging.telemetry import log
from messaging.telemetry.work import Deferred, Tracer, Watch, Watcher

if TYPE_CHECKING:
    from messaging.telemetry.spans import Spans

#: The standard variables that name a collector of traces.
COLLECTOR = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def install(runtime: Runtime) -> Watch:
    """Return what follows the work of this process.

    Raises:
        MissingExtra: the settings ask for something that is not installed.
    """
    log.set_up(runtime.project.name, runtime.settings.log_format == "json")
    watchers: list[Watcher] = []
    tracer: Tracer | None = None
    if runtime.settings.metrics_address:
        watchers.append(_metrics(runtime, runtime.settings.metrics_address))
    if is_traced(runtime):
        watchers.append(tracer := _traces(runtime))
    watchers.append(log.Lines(runtime))  # within the span, whose id its lines have
    return Watch(watchers, tracer)


def is_traced(runtime: Runtime) -> bool:
    """Tell whether there is a collector for traces."""
    return bool(runtime.settings.traces_url or any(os.environ.get(name) for name in COLLECTOR))


def _traces(runtime: Runtime) -> Spans:
    with needs("telemetry"):
        from messaging.telemetry import provider
        from messaging.telemetry.spans import Spans
        from messaging.telemetry.sql import TracedCursor

    settings = runtime.settings
    provider.set_up(runtime.project.name, settings.traces_url)
    runtime.connect_args["cursor_factory"] = TracedCursor

    def flush(**_: Any) -> None:
        provider.flush()

    signals.worker_process_shutdown.connect(flush, weak=False)
    signals.worker_shutdown.connect(flush, weak=False)
    return Spans(system(settings.broker_url))


def _metrics(runtime: Runtime, address: str) -> Watcher:
    """Measure in the processes of a worker; beat, Flower and the operator's tool measure nothing."""
    with needs("telemetry"):
        from messaging.telemetry import scrape

    measures = Deferred()

    def prepare(**_: Any) -> None:
        """Open the files, before the worker forks its children."""
        files = scrape.Files()
        from messaging.telemetry.metrics import Measures  # after the files: its values are kept there

        counted = measures.real = Measures(runtime.project)
        scrape.serve_while_it_runs(files, address, counted.pool_size)

    signals.worker_init.connect(prepare, weak=False)
    return measures
