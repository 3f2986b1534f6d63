"""Which programs run a project on the bus."""

from dataclasses import dataclass

from messaging.project import Names


@dataclass(frozen=True)
class Service(Names):
    """A project as seen by a machine that does not import it: `celery -A <app>`, `python -m <tool>`."""

    app: str
    tool: str

    @property
    def work_queues(self) -> str:
        """Return the queues of commands and deliveries, as `celery worker --queues` wants them."""
        return f"{self.commands_queue},{self.events_queue}"


ALLOCATION = Service("allocation", app="tasks", tool="allocation")
