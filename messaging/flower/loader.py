"""Add our templates to Flower's, and our pages to its navigation."""

from __future__ import annotations

from pathlib import Path

from tornado.template import Loader, Template

OURS = Path(__file__).parent / "templates"

#: The end of Flower's first list of links; ours are inserted before it.
END_OF_LINKS = "</ul>"


class PageLoader(Loader):
    """Looks for a template in our folder first, then in Flower's."""

    def _create_template(self, name: str) -> Template:
        path = OURS / name
        if not path.is_file():
            path = Path(self.root) / name
        source = path.read_text(encoding="utf-8")
        if name == "navbar.html":
            links = (OURS / "links.html").read_text(encoding="utf-8")
            source = source.replace(END_OF_LINKS, links + END_OF_LINKS, 1)
        return Template(source, name=name, loader=self)
