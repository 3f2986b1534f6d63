"""Everything that one machine needs to run the backend by itself: servers, processes, a mail sink."""

from pathlib import Path

#: The project's folder: where `allocation`, `tasks` and celeryconfig.py are found.
ROOT = Path(__file__).resolve().parent.parent
