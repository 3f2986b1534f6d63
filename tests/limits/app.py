"""The app of `tests/limits/handlers.py`; workers run it with `celery -A`."""

from __future__ import annotations

import celeryconfig
from messaging.worker.app import make_app
from tests.limits.handlers import project

app = make_app(project, celeryconfig)
