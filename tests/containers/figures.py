"""The measured figures, as a table in docs/how-to/on-a-server.md."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from local import ROOT

PAGE = ROOT / "docs" / "how-to" / "on-a-server.md"
PLACE = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


class Clock:
    """Seconds since it was started, until it is stopped."""

    def __init__(self) -> None:
        self._begun = monotonic()
        self.seconds = 0.0

    def stop(self) -> None:
        """Store the elapsed time."""
        self.seconds = monotonic() - self._begun


@contextmanager
def measured() -> Iterator[Clock]:
    """Measure a block."""
    clock = Clock()
    yield clock
    clock.stop()


class Figures:
    """Actions and their outcomes."""

    def __init__(self) -> None:
        self._rows: dict[str, str] = {}

    def note(self, what: str, result: str) -> None:
        """Add a row to the table."""
        self._rows[what] = result

    def table(self) -> str:
        """Return the rows as Markdown."""
        rows = [f"| {what} | {result} |" for what, result in self._rows.items()]
        return "\n".join(["| what | result |", "|---|---|", *rows])

    def write(self) -> None:
        """Write the table into the page."""
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(PLACE.sub(lambda _: f"\n{self.table()}\n\n", page), encoding="utf-8")
