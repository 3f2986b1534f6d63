"""The README and the reference pages match the code."""

from __future__ import annotations

import re
from pathlib import Path

from allocation.bootstrap import project
from allocation.config import Settings
from local.hints import next_steps
from local.settings import LocalSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text()
TASKS = (ROOT / "docs" / "reference" / "tasks.md").read_text()
#: The variables that only docker-compose.yml reads.
CONTAINERS = "\n## Containers\n"


def documented() -> dict[str, str]:
    """Return the default of each variable from the tables of settings."""
    tables, _, _ = SETTINGS.partition(CONTAINERS)
    return dict(re.findall(r"^\| `ALLOCATION_(\w+)` \| `(.*?)` \|", tables, re.MULTILINE))


def test_every_setting_is_in_the_reference_with_its_default():
    fields = {**LocalSettings.model_fields, **Settings.model_fields}

    assert documented() == {name.upper(): str(field.default) for name, field in fields.items()}


def test_every_setting_has_a_description_there():
    for name, field in Settings.model_fields.items():
        assert f"| `ALLOCATION_{name.upper()}` | `{field.default}` | {field.description} |" in SETTINGS


def test_every_command_is_in_the_reference_by_its_task_name():
    for name in project.command_tasks:
        assert f"| `{name}` |" in TASKS


def test_every_file_that_the_readme_names_exists():
    named = re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(
        r"`((?:allocation|tests)/[\w/]+\.py)`", README
    )

    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tutorial_can_be_followed_after_the_lines_of_the_readme_and_of_make_up():
    """It counts the pieces of a batch, so that batch must be its own."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    [batch] = re.findall(r"create-batch (\S+) (\S+)", tutorial)

    assert "create-batch" in next_steps(LocalSettings(_env_file=None))
    for name in batch:
        assert name not in README + next_steps(LocalSettings(_env_file=None))


def test_the_readme_fits_on_two_screens():
    assert len(README.splitlines()) <= 100
