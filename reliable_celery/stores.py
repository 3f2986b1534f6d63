"""Stores for dead letters that need no database: a list in Redis, or a file of JSON lines.

Setting: `dead_letter_store`, as `package.module:name` a class or function that is called with the app and
returns a `DeadLetterStore`. Default: the list in the broker's own Redis.
"""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu.utils.imports import symbol_by_name

from reliable_celery.dead_letters import DeadLetter, DeadLetterStore

logger = logging.getLogger(__name__)

#: Adds a letter. KEYS: the list. ARGV: the letter. A full Redis runs a script whose first command may free
#: memory; LTRIM here removes nothing. The letter's message leaves Redis next.
ADD = "redis.call('LTRIM', KEYS[1], 0, -1) redis.call('RPUSH', KEYS[1], ARGV[1])"


def store_of(app: Celery) -> DeadLetterStore:
    """Return the store that an app's settings name."""
    store: DeadLetterStore = symbol_by_name(app.conf.get("dead_letter_store") or RedisList)(app)
    return store


class RedisList:
    """Letters as JSON in a list of the broker's own Redis database.

    Setting: `dead_letter_key`, the list's name (default: `dead_letters`).
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.key: str = app.conf.get("dead_letter_key") or "dead_letters"
        if app.connection_for_read().get_transport_cls().driver_type != "redis":
            raise ImproperlyConfigured(
                "Dead letters are kept in the broker's Redis by default, and the broker is not Redis:"
                " set dead_letter_store, for instance to 'reliable_celery.stores:JsonLines'"
            )

    def add(self, letter: DeadLetter) -> None:
        """Append a letter to the list."""
        with self._client() as client:
            client.eval(ADD, 1, self.key, to_json(letter))

    def letters(self) -> Iterator[DeadLetter]:
        """Return the letters, oldest first."""
        with self._client() as client:
            yield from map(from_json, client.lrange(self.key, 0, -1))

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with (
            self.app.pool.acquire(block=True) as connection,
            connection.default_channel.conn_or_acquire() as client,
        ):
            yield client


class JsonLines:
    """Letters as lines of JSON in a file, which any number of workers on one machine share.

    Setting: `dead_letter_file`, the file's path (default: `dead_letters.jsonl` in the working directory).
    """

    def __init__(self, app: Celery) -> None:
        self.path = Path(app.conf.get("dead_letter_file") or "dead_letters.jsonl")

    def add(self, letter: DeadLetter) -> None:
        """Append a letter to the file, and sync it to disk before returning."""
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            line = _end_of_line(file) + to_json(letter).encode() + b"\n"
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, "No room for a dead letter", str(self.path))
            os.fsync(file)
        finally:
            os.close(file)

    def letters(self) -> Iterator[DeadLetter]:
        """Return the letters, oldest first; a line that was cut off is no letter."""
        with self.path.open() as file:
            for line in file:
                try:
                    letter = from_json(line)
                except ValueError:
                    logger.warning("%s has a line that is no dead letter: %.60r", self.path, line)
                else:
                    yield letter


def _end_of_line(file: int) -> bytes:
    """Return what ends a line that was cut off, by a full disk or a kill."""
    size = os.fstat(file).st_size
    return b"" if size == 0 or os.pread(file, 1, size - 1) == b"\n" else b"\n"


def to_json(letter: DeadLetter) -> str:
    """Return a letter as one line; its body is in hex."""
    return json.dumps(dataclasses.asdict(letter) | {"body": letter.body.hex()}, allow_nan=False)


def from_json(line: str | bytes) -> DeadLetter:
    """Return the letter from such a line."""
    fields: dict[str, Any] = json.loads(line)
    return DeadLetter(**fields | {"body": bytes.fromhex(fields["body"])})
