"""docs/troubleshooting.md quotes the messages that the programs print."""

from __future__ import annotations

import re

import pytest

from local.child import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
#: What quotes other programs: a section, and lines.
OTHERS = re.compile(r"^### From Celery(.|\n)*?(?=^## )", re.MULTILINE)
OTHER_LINES = ("(PostgreSQL)", "(Redis)", "required variable", "too many clients", "ConnectionRefusedError")
FOLDERS = ("allocation", "local", "messaging")


@pytest.fixture(scope="module")
def source() -> str:
    """Return our code with the texts joined that are split over lines."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in [*files, ROOT / "Makefile"])
    return re.sub(r'"\s*\\?\n?\s*f?"', "", text)


def quoted() -> list[str]:
    """Return the messages in the first column of our own tables."""
    rows = re.findall(r"^\| (.*?) \|", OTHERS.sub("", PAGE), re.MULTILINE)
    ours = [row for row in rows if not any(other in row for other in OTHER_LINES)]
    return [message for row in ours for message in re.findall(r"`(.+?)`", row)]


@pytest.mark.parametrize("message", quoted())
def test_a_message_on_the_page_is_one_that_is_printed(source: str, message: str):
    assert [part for part in re.split(r"…|: …", message) if part.strip(" :,") not in source] == []
