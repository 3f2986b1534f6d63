"""`make docs-site`: a page that is opened asks no other host for anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "site"
#: Links in a page's head that name an address and load nothing.
NAMES_ONLY = {"canonical", "next", "prev"}


class Loads(HTMLParser):
    """Collects what a browser loads together with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of a script, a picture, a style sheet, a frame."""
        given = dict(attrs)
        loads_nothing = tag == "a" or (tag == "link" and given.get("rel") in NAMES_ONLY)
        address = given.get("src") or (given.get("href") if tag == "link" else None)
        if address and not loads_nothing:
            self.addresses.append(address)


def foreign(page: str) -> list[str]:
    """Return the addresses on other hosts that a page loads."""
    loads = Loads()
    loads.feed(page)
    return [address for address in loads.addresses if address.startswith(("http:", "https:", "//"))]


def findings(site: Path) -> Iterator[str]:
    """Yield a line for each request to another host that the site would make."""
    for page in sorted(site.rglob("*.html")):
        for address in foreign(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)} loads {address}"
    for style in sorted(site.rglob("*.css")):
        if "url(http" in style.read_text(encoding="utf-8") or "url(//" in style.read_text(encoding="utf-8"):
            yield f"{style.relative_to(site)} loads something from another host"


def main() -> int:
    """Print what is wrong; 0 when nothing is."""
    found = list(findings(SITE))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
