"""What failures have in common: class, place in our own code, and message without its numbers and ids."""

from __future__ import annotations

import hashlib
import re
import sysconfig
from pathlib import Path
from traceback import walk_tb

from messaging.texts import class_name, storable

#: Code of others, and the bus itself.
FOREIGN = tuple(
    f"{folder}/"
    for folder in (*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), Path(__file__).parent)
)

#: Ids, hexadecimal texts of eight digits or more, and numbers.
IDS = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|0x[0-9a-f]+|\b(?=[a-f]*\d)[0-9a-f]{8,}\b|\d+", re.IGNORECASE
)
#: Characters of a message that count.
MESSAGE = 200


def fingerprint(error: BaseException) -> str:
    """Return the same text for errors that probably have the same cause."""
    parts = (class_name(error), _own_frame(error), blanked(_message(error)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def blanked(message: str) -> str:
    """Return the first line of a message, with # for each number and id."""
    return IDS.sub("#", storable(message).partition("\n")[0][:MESSAGE])


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # noqa: BLE001  an error's __str__ may raise anything
        return ""


def _own_frame(error: BaseException) -> str:
    """Return file and function of the innermost frame of the project's own code."""
    own = ""
    for frame, _ in walk_tb(error.__traceback__):
        code = frame.f_code
        if not code.co_filename.startswith(FOREIGN):
            own = f"{Path(code.co_filename).name}:{code.co_qualname}"
    return own
