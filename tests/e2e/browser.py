"""A real browser for tests that need one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.programs import missing

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: A container's root has no sandbox and no screen, and tests must not check for updates.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium(login: str, *arguments: str) -> Iterator[Any]:
    """A headless Chromium with a login."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        missing("chromium", "Debian's package of that name")
    from playwright.sync_api import sync_playwright  # installed only with a browser

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=[*ARGUMENTS, *arguments],
            viewport={"width": 1280, "height": 760},
            http_credentials=dict(zip(("username", "password"), login.split(":"), strict=True)),
        )  # fmt: skip
        context.set_default_timeout(30_000)  # milliseconds
        yield context
        context.close()
