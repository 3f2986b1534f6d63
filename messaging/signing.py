"""Signed messages: Celery's `auth` serializer; a worker then acts only on what known keys have signed."""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from celery import Celery

from messaging.extras import needs


@dataclass(frozen=True)
class Signing:
    """Who we are, and whom we believe. Paths of PEM files; keys are RSA, certificates X.509."""

    key: Path
    certificate: Path
    store: str  # a pattern such as "certificates/*.pem": whose messages are accepted, ours among them
    key_password: str | None = field(default=None, repr=False)

    def switch_on(self, app: Celery) -> None:
        """Have an app sign what it sends and refuse what is not signed, control commands included.

        Results stay plain JSON: they are read by senders in other languages too.
        """
        self._check_files()
        # Here, not above: it needs the package cryptography, which a sender that does not sign need not have.
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
        """Refuse what would sign nothing or believe nobody.

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
    """Return the files of a store, as Celery finds them: a pattern, or a folder for all that is in it."""
    pattern = f"{store}/*" if Path(store).is_dir() else store
    return glob(pattern) if store else []  # noqa: PTH207  as Celery does, also for absolute patterns


SETTINGS: dict[str, Any] = {
    "task_serializer": "auth",
    "accept_content": ["auth"],
    "result_serializer": "json",
    "result_accept_content": ["json"],
}
