"""Read by `celery -A tasks flower` from the working directory, or as `--conf=flowerconfig.py`.

Adds the pages Deliveries and Dead letters, their metrics to /metrics, and shows commands as messages.
Flower's own options can be set here as well, as `name = value`, or as variables `FLOWER_<NAME>`.
"""

from __future__ import annotations

from messaging.flower import install
from tasks import app

format_task = install(app)
