"""Read by `celery -A … flower` from the working directory, or as `--conf=flowerconfig.py`, for any project.

Adds the pages Deliveries, Handlers and Dead letters, their metrics to /metrics, and shows commands as
messages. Flower then asks for a login and serves known host names only.
Flower's own options can be set here as well, as `name = value`, or as variables `FLOWER_<NAME>`.
"""

from __future__ import annotations

from celery import current_app

from messaging.flower import install

tasks_columns = "name,args,state,received,runtime,worker,uuid"  # Flower's default hides the arguments
format_task = install(current_app)
