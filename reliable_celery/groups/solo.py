"""Groups in the solo pool, where the event loop runs the tasks itself."""

from __future__ import annotations

from reliable_celery.groups.collecting import Groups
from reliable_celery.groups.member import Member, prepare, results_together


class SoloGroups(Groups):
    """Runs a group at once: its shared work, then its tasks."""

    def arrived(self) -> None:
        """Do not wait once a group is full."""
        if len(self.waiting) >= self.limit:
            self._run_waiting()

    def run_waiting(self) -> None:
        """Run what has arrived: as a group what can be prepared, the rest alone."""
        requests = self.take(self.limit)
        if self.waiting:
            self.consumer.call_soon(self._run_waiting)
        if len(requests) < 2:  # one is no group
            for request in requests:
                self.run(request)
            return
        requests = [request for request in requests if not request.revoked()]
        prepared = prepare([Member(one.task, one._context, one.args, one.kwargs) for one in requests])
        with results_together(self.consumer.app):
            for request in requests:
                if request.id in prepared:
                    request.expires = None  # its work is done
                    self.run(request)
        self.run_alone([request for request in requests if request.id not in prepared])
