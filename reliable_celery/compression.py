"""Bodies stay packed: kombu would unpack one before anybody could look at its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.serialization import loads

#: kombu decodes a body that has no serializer by the encoding that its sender names. These keep its size; of
#: Python's others, `bz2` and `zlib` unpack it, and `punycode` can take hours.
TEXTS = frozenset(("utf-8", "us-ascii", "ascii", "latin-1", "iso-8859-1"))
BYTES = "binary"


def refuse_compression(headers: Mapping[str, Any] | None) -> None:
    """Raise ValueError where the headers of a message say that its body is compressed."""
    if (headers or {}).get("compression"):
        raise ValueError("compressed bodies are refused: a small one can fill the memory")


def payload_of(message: Any) -> Any:
    """Return what kombu reads in the body of a message, which stays bytes in any other encoding."""
    encoding = (message.content_encoding or "utf-8").lower()
    return loads(
        message.body, message.content_type, encoding if encoding in TEXTS else BYTES, accept=message.accept
    )
