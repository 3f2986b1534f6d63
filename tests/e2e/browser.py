"""A real browser for tests that need one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: A container's root has no sandbox and no screen, and a test asks nobody for updates.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium(login: str, *arguments: str) -> Iterator[Any]:
    """A headless Chromium that knows a login; where there is none, the test is skipped, but not in CI."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = "no Chromium on the PATH (Debian and Ubuntu: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright  # only where a browser is

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=[*ARGUMENTS, *arguments],
            viewport={"width": 1280, "height": 760},
            http_credentials=dict(zip(("username", "password"), login.split(":"), strict=True)),
        )  # fmt: skip
        context.set_default_timeout(30_000)  # milliseconds
        yield context
        context.close()
