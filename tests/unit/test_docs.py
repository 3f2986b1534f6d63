"""Every page is in the navigation, every link works, and everything that the pages name exists."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.check_site import foreign
from scripts.settings_page import PAGE as SETTINGS_PAGE
from scripts.settings_page import page as settings_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
ADRS = sorted(path for path in (DOCS / "adr").glob("*.md") if path.name != "index.md")
FOLDERS = "allocation|benchmarks|data|docs|examples|local|messaging|scripts|tasks|tests"
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]*))?\)")
TROUBLESHOOTING = (DOCS / "reference" / "troubleshooting.md").read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the ids of the headings, as on the site and in code forges."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def navigation(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(part)


def test_the_navigation_lists_every_page_once():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]

    assert sorted(navigation(nav)) == [str(path.relative_to(DOCS)) for path in PAGES]


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_link_points_to_a_file_and_a_heading(path: Path):
    for target, anchor in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        file = (path.parent / target).resolve() if target else path

        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_path_in_a_page_exists(path: Path):
    for name in re.findall(rf"`((?:{FOLDERS})/[\w/.-]*)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_setting_in_a_page_is_in_the_reference(path: Path):
    for name in re.findall(r"`(ALLOCATION_[A-Z_]*[A-Z])\b", path.read_text(encoding="utf-8")):
        assert f"| `{name}` |" in SETTINGS_PAGE.read_text(encoding="utf-8"), name


def test_the_tables_of_settings_are_up_to_date():
    """`make docs` updates them."""
    written = SETTINGS_PAGE.read_text(encoding="utf-8")

    assert written == settings_page(written)


@pytest.mark.parametrize("path", ADRS, ids=named)
def test_a_decision_record_has_its_number_and_three_parts(path: Path):
    text = path.read_text(encoding="utf-8")

    assert re.match(rf"# {int(path.name[:3])}\. \S", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_the_index_lists_each_decision_with_its_title():
    index = (DOCS / "adr" / "index.md").read_text(encoding="utf-8")

    for path in ADRS:
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(". ")[2]
        assert f"| {int(path.name[:3])} | [{title}]({path.name}) |" in index


def test_every_message_in_troubleshooting_is_in_the_code():
    """Except for those of other programs in the last section."""
    ours, _, _ = TROUBLESHOOTING.partition("## Other programs")
    folders = ("allocation", "local", "messaging", "reliable_celery", "tasks", "docker-compose.yml")
    found = (path for name in folders for path in (ROOT / name, *(ROOT / name).rglob("*.py")))
    files = [path for path in found if path.is_file()]
    # Join texts that are written in several pieces.
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files))
    messages = re.findall(r"\*\*`(.+?)`\*\*", ours)

    assert len(messages) > 30
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in code, message


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ('<script src="assets/a.js"></script><a href="https://example.com">a link</a>', []),
        ('<link rel="canonical" href="https://example.com/">', []),
        ('<link rel="stylesheet" href="https://example.com/a.css">', ["https://example.com/a.css"]),
        ('<img src="//example.com/a.png">', ["//example.com/a.png"]),
    ],
)
def test_a_page_that_loads_a_file_from_another_host_is_found(page: str, found: list[str]):
    assert foreign(page) == found
