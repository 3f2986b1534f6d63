"""The release before the handler is renamed: it knows the name that is to come."""

from __future__ import annotations

from dataclasses import replace

import celeryconfig
from messaging.worker.app import make_app
from tests.order import handlers

project = replace(
    handlers.project,
    renamed_handlers={**handlers.project.renamed_handlers, "write_move": "record_move"},
)
app = make_app(project, celeryconfig)
