"""Write a test that fails like a delivery did, from its event, its handler and the recorded error."""

from __future__ import annotations

import builtins
import importlib
import re
import textwrap

from messaging.delivery import Delivery
from messaging.errors import MessagingError
from messaging.fingerprints import blanked
from messaging.project import Project
from messaging.wire.validation import from_dict

#: Characters of the message that the test expects.
MESSAGE = 80

TEST = '''\
"""Delivery {id} failed: {error}."""

{imports}


def test_{handler}_with_the_event_of_delivery_{short}():
    event = {event}
    uow = {fakes}()

    # The recorded error. Once it is fixed, assert the handler's effect instead.
    with pytest.raises({kind}{match}), uow:
        {handler}(event, uow)
'''


class NotReproducible(MessagingError):
    """This release cannot run the delivery on fakes."""


def test_of(project: Project, row: Delivery, traceback: str) -> str:
    """Return the text of a test file.

    Raises:
        NotReproducible: this release lacks the event or the handler, or the project names no fakes.
        InvalidMessage: the stored event breaks a rule of its class.
    """
    kind = project.bus.event_types.get(row.event_type)
    handler = project.bus.event_handlers.get(project.all_names(row.handler)[0])
    if kind is None or handler is None:
        missing = f"event {row.event_type}" if kind is None else f"handler {row.handler}"
        raise NotReproducible(f"This release has no {missing}")
    if not project.fakes:
        raise NotReproducible("The project names no `fakes`, a unit of work in memory for tests")
    event = repr(from_dict(kind, row.payload, ignore_unknown=True))
    fakes_module, _, fakes = project.fakes.partition(":")
    module, error = _error_class(row.last_error or "", traceback)
    imports = {
        f"from {kind.__module__} import {kind.__qualname__}",
        f"from {handler.__module__} import {handler.__name__}",
        f"from {fakes_module} import {fakes}",
        *([f"from {module} import {error}"] if module else []),
    }
    message = (row.last_error or "").partition(": ")[2]
    return TEST.format(
        id=row.id,
        short=row.id.replace("-", "_")[:13],
        error=textwrap.shorten(_harmless(row.last_error or "no error"), MESSAGE, placeholder="…"),
        imports="\n".join(
            [*(["import datetime\n"] if "datetime." in event else []), "import pytest\n", *sorted(imports)]
        ),
        handler=handler.__name__,
        event=event,
        fakes=fakes,
        kind=error,
        match=f", match={_pattern(message)!r}" if message else "",
    )


def _error_class(error: str, traceback: str) -> tuple[str, str]:
    """Return module and name of the recorded error's class; `Exception` if this release has no such class."""
    name = error.partition(":")[0]
    if not name.isidentifier():
        return "", "Exception"
    if isinstance(getattr(builtins, name, None), type):
        return "", name
    found = re.findall(rf"^((?:\w+\.)+){name}(?::|$)", traceback, re.MULTILINE)
    for module in (prefix.rstrip(".") for prefix in reversed(found)):
        try:
            if isinstance(getattr(importlib.import_module(module), name, None), type):
                return module, name
        except ImportError:
            continue
    return "", "Exception"


def _pattern(message: str) -> str:
    """Return the beginning of a message as a regular expression in which numbers and ids may differ."""
    return "[0-9a-fA-F-]+".join(map(re.escape, blanked(message)[:MESSAGE].split("#")))


def _harmless(text: str) -> str:
    """Return a text for a docstring."""
    return text.replace("\\", "/").replace('"', "'")
