"""`make docs`: write the contract with other apps, docs/asyncapi.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml

from allocation.bootstrap import project
from messaging.project.asyncapi import asyncapi

PATH = Path(__file__).parents[1] / "docs" / "asyncapi.yaml"
#: Bumped by hand: the second number for additions, the first for changes that break senders.
VERSION = "1.0.0"


def contract() -> str:
    """Return the document as YAML."""
    text: str = yaml.safe_dump(
        asyncapi(project, "Allocation", VERSION), sort_keys=False, allow_unicode=True, width=110
    )
    return f"# Made by `make docs` from the message classes.\n{text}"


if __name__ == "__main__":
    PATH.write_text(contract())
