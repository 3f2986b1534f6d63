"""Flower's login on one machine: set by the environment, or generated once and kept in the data folder."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import quote

from local.settings import LocalSettings

FILE_NAME = "flower-password"
OWNER_ALONE = 0o600


@dataclass(frozen=True)
class FlowerLogin:
    """A user and a password, and whether the password was generated here and may be shown."""

    user: str
    password: str = field(repr=False)
    generated: bool

    @property
    def environment(self) -> dict[str, str]:
        """Return the variable from which Flower reads it; arguments are visible to other processes."""
        return {"FLOWER_BASIC_AUTH": f"{self.user}:{self.password}"}

    def address(self, url: str) -> str:
        """Return an address to paste into a browser or `curl`; a password that was set is shown as `***`."""
        scheme, _, rest = url.partition("://")
        shown = quote(self.password, safe="") if self.generated else "***"
        return f"{scheme}://{quote(self.user, safe='')}:{shown}@{rest}"


def login_of(settings: LocalSettings) -> FlowerLogin:
    """Return the login of a locked data folder; a missing password is generated."""
    if settings.flower_password is not None:
        return FlowerLogin(settings.flower_user, settings.flower_password.get_secret_value(), generated=False)
    return FlowerLogin(settings.flower_user, _kept(settings.folder / FILE_NAME), generated=True)


def _kept(file: Path) -> str:
    if not file.exists():
        _write(file, token_urlsafe(24))
    file.chmod(OWNER_ALONE)
    return file.read_text().strip()


def _write(file: Path, password: str) -> None:
    """Write the file atomically, and never readable by others."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ALONE)
    with os.fdopen(descriptor, "w") as new:
        new.write(f"{password}\n")
    draft.replace(file)
