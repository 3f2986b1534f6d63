"""What tells one project on the bus from another, for whoever runs its programs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """A project as a machine sees it: `celery -A <app> worker`, `python -m <tool> migrate`."""

    name: str  # begins the names of its queues, and in capitals those of its variables
    app: str
    tool: str

    @property
    def work_queues(self) -> str:
        """Return the queues of commands and deliveries, as `celery worker --queues` wants them."""
        return f"{self.name}.commands,{self.name}.events"

    @property
    def housekeeping_queue(self) -> str:
        """Return the queue of relay, re-run and prune."""
        return f"{self.name}.housekeeping"

    def variable(self, setting: str) -> str:
        """Return the environment variable of a setting."""
        return f"{self.name}_{setting}".upper()


ALLOCATION = Service("allocation", app="tasks", tool="allocation")
