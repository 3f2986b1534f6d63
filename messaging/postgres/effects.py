"""What the handling of a message caused, kept with its row for an operator who asks later."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass
class Effects:
    """The events that were raised, and the mails that were sent, each by its id."""

    events: list[tuple[str, str]] = field(default_factory=list)  # id and type
    mails: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget those of a transaction that is begun anew."""
        self.events.clear()
        self.mails.clear()

    def stored(self) -> str | None:
        """Return them as JSON; None if there are none."""
        found = {name: value for name, value in vars(self).items() if value}
        return json.dumps(found) if found else None
