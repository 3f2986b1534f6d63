"""Signed messages, with Celery's `auth` serializer: workers accept only messages signed by known keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from celery import Celery

from messaging.extras import needs


@dataclass(frozen=True)
class Signing:
    """Our key and the certificates that we trust: paths of PEM files with RSA keys and X.509 certificates."""

    key: Path
    certificate: Path
    store: str  # certificates to accept, including ours: a pattern such as "certificates/*.pem"
    key_password: str | None = field(default=None, repr=False)

    def switch_on(self, app: Celery) -> None:
        """Make an app sign its messages and refuse unsigned ones, including control commands.

        Results stay plain JSON: senders in other languages read them too.
        """
        self._check_files()
        # Imported here because it needs cryptography, which senders that do not sign need not install.
        with needs("signing"):
            from celery.security.serialization import register_auth

        register_auth(
            self.key.read_text(),
            self.key_password.encode() if self.key_password else None,
            self.certificate.read_text(),
            self.store,
            serializer="json",
        )
        app.conf.update(SETTINGS)

    def _check_files(self) -> None:
        """Refuse unreadable keys and empty stores.

        Raises:
            ValueError: a file cannot be read, or no certificate matches `store`.
        """
        for what, path in ("key", self.key), ("certificate", self.certificate):
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"The signing {what} cannot be read: {error}") from None
        if not certificates(self.store):
            raise ValueError(
                f"No file matches the signing store {self.store!r}: every message would be refused, ours too"
            )


def certificates(store: str) -> list[str]:
    """Return a store's files, found like Celery finds them: by a pattern, or all files of a folder."""
    pattern = f"{store}/*" if Path(store).is_dir() else store
    return glob(pattern) if store else []  # noqa: PTH207  like Celery, also for absolute patterns


SETTINGS: dict[str, Any] = {
    "task_serializer": "auth",
    "accept_content": ["auth"],
    "result_serializer": "json",
    "result_accept_content": ["json"],
}
