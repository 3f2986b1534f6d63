"""The README says what is true of the code."""

from __future__ import annotations

import re
from pathlib import Path

from allocation.bootstrap import project
from allocation.config import Settings
from local.settings import LocalSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def documented() -> dict[str, str]:
    """Return the default of each variable as the README's tables have it."""
    return dict(re.findall(r"^\| `ALLOCATION_(\w+)` \| `(.*?)` \|", README, re.MULTILINE))


def test_every_setting_stands_in_the_readme_with_its_default():
    fields = {**LocalSettings.model_fields, **Settings.model_fields}

    assert documented() == {name.upper(): str(field.default) for name, field in fields.items()}


def test_every_setting_says_there_what_it_is():
    for name, field in Settings.model_fields.items():
        assert f"| `ALLOCATION_{name.upper()}` | `{field.default}` | {field.description} |" in README


def test_every_command_stands_in_the_readme_by_its_task_name():
    for name in project.command_tasks:
        assert f"| `{name}` |" in README


def test_every_file_that_the_readme_names_is_there():
    named = re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(
        r"`((?:allocation|tests)/[\w/]+\.py)`", README
    )

    assert [name for name in named if not (ROOT / name).exists()] == []
