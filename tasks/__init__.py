"""The Celery app: `celery -A tasks worker`, `celery -A tasks beat`, `celery -A tasks flower`.

It has a task per command (`allocation.create_batch`, `allocation.allocate`,
`allocation.change_batch_quantity`), a task per event handler, and housekeeping tasks.
"""

from __future__ import annotations

from messaging.extras import program

with program("worker"):
    import celeryconfig
    from allocation.bootstrap import project
    from messaging.worker.app import make_app

app = make_app(project, celeryconfig)
