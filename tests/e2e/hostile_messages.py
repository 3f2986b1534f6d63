"""Raw messages that no client writes: each kind corrupts a good one in its own way."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.property.strategies import NASTY, NUMBERS

Envelope = dict[str, Any]
Spoil = Callable[[random.Random, Envelope, str], Envelope | bytes]
COMMANDS: dict[str, dict[str, Any]] = {
    "allocation.create_batch": {"ref": "b", "sku": "s", "qty": 1, "eta": None},
    "allocation.allocate": {"orderid": "o", "sku": "s", "qty": 1},
    "allocation.change_batch_quantity": {"ref": "b", "qty": 1},
}
HANDLERS = ("allocation.reallocate", "allocation.send_out_of_stock_notification")
CALLBACK = {
    "task": "allocation.create_batch",
    "args": ["callback", "callback", 1],
    "kwargs": {},
    "options": {},
}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def good(task: str, fields: dict[str, Any], mark: str) -> Envelope:
    """Return a command's item on a Redis list, as kombu writes it; the id is the mark."""
    return {
        "body": encoded(json.dumps([[], fields, {"mark": mark}]).encode()),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": task, "id": mark, "root_id": mark, "argsrepr": "()"},
        "properties": {
            "correlation_id": mark,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "allocation.commands"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": mark,
        },
    }


def encoded(body: bytes) -> str:
    """Return a body as encoded in an envelope."""
    return base64.b64encode(body).decode()


def hostile(rng: random.Random, mark: str, canary: Path) -> bytes:
    """Return one message, with `mark` in its id or body."""
    task, fields = rng.choice(list(COMMANDS.items()))
    envelope = good(task, {**fields, "mark": mark}, mark)
    envelope["body"] = encoded(json.dumps([[], fields, {}]).encode())
    kinds: list[Spoil] = [*KINDS, partial(careless, canary)]
    spoilt = rng.choice(kinds)(rng, envelope, mark)
    return spoilt if isinstance(spoilt, bytes) else json.dumps(spoilt).encode()


def bad_fields(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    values: list[Any] = [*NASTY, *NUMBERS[:6], None, True, 1.5, [], {}, [[]], {"a": 1}]
    fields = {
        name: rng.choice(values)
        for name in ("orderid", "ref", "sku", "qty", "eta", "x")
        if rng.random() < 0.6
    }
    return {**envelope, "body": encoded(json.dumps([rng.choice([[], values[:3]]), fields, {}]).encode())}


def bad_body(rng: random.Random, envelope: Envelope, mark: str) -> Envelope:
    choices = [
        f"{{broken {mark}", f'["{mark}"]', f'"{mark}"', f"null {mark}", f'[{{}}, [], "{mark}"]',
        f'[[], {{"{mark}": 1}}, []]', f"[1e999999, {{}}, {{}}] {mark}", f"\x00{mark}\x00",
        f"[NaN, {{}}, {{}}]{mark}",
    ]  # fmt: skip
    body = rng.choice(choices).encode() if rng.random() < 0.7 else mark.encode() + rng.randbytes(40)
    return {**envelope, "body": encoded(body)}


def bad_envelope(rng: random.Random, envelope: Envelope, mark: str) -> Envelope | bytes:
    raw = json.dumps(envelope).encode()
    cut = rng.randrange(1, len(raw))
    odd: list[Any] = [
        mark.encode() + raw[:cut], mark.encode(), f'"{mark}"'.encode(), f'["{mark}"]'.encode(),
        f'{{"{mark}": {{}}}}'.encode(), mark.encode() + rng.randbytes(64),
        raw[:cut] + b"\x00" + raw[cut:] + mark.encode(),
        {**envelope, "body": "not base64 " + mark}, {**envelope, "body": 7, mark: 7},
        {**envelope, "properties": mark}, {**envelope, "headers": [mark]}, {mark: 1, "body": None},
    ]  # fmt: skip
    choice: Envelope | bytes = rng.choice(odd)
    return choice


def bad_types(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    kind = rng.choice(
        ["text/plain", "application/data", "application/x-yaml", "application/x-msgpack", "", "\x00", 7, "é"]
    )
    encoding = rng.choice(
        ["utf-16", "rot13", "binary", "zlib", "base64", "latin-1", "", "\x00", "nonsense", "utf-8"]
    )
    return {**envelope, "content-type": kind, "content-encoding": encoding}


def deep_or_large(rng: random.Random, envelope: Envelope, mark: str) -> Envelope:
    depth = rng.choice([65, 500, 5_000])
    bodies = [
        "[" * depth + "]" * depth + mark,
        '[[], {"sku": ' + "[" * depth + "]" * depth + "}, {}]",
        json.dumps([[], {"sku": mark * rng.choice([10, 1_000])}, {}]),
    ]
    if rng.random() < 0.02:
        bodies = [json.dumps([[mark], {"sku": "x" * 3_000_000}, {}])]
    return {**envelope, "body": encoded(rng.choice(bodies).encode())}


def careless(canary: Path, rng: random.Random, envelope: Envelope, mark: str) -> Envelope:
    yaml = f"!!python/object/apply:os.system ['touch {canary}'] # {mark}".encode()
    kind, body = rng.choice([
        ("application/x-python-serialize", pickle.dumps([Trap(canary), mark])),
        ("application/x-yaml", yaml),
        ("application/json", json.dumps([[], {"__type__": "datetime", "__value__": mark}, {}]).encode()),
    ])  # fmt: skip
    encoding = "binary" if "python" in kind else "utf-8"
    return {**envelope, "content-type": kind, "content-encoding": encoding, "body": encoded(body)}


def bad_headers(rng: random.Random, envelope: Envelope, mark: str) -> Envelope:
    forged: dict[str, Any] = rng.choice([
        {"id": None, "argsrepr": mark}, {"id": ["x", mark]}, {"id": mark * 40}, {"id": f"{mark}\n\x1b[2J"},
        {"retries": 10**9}, {"retries": "many"}, {"retries": -1}, {"timelimit": [10**9, -5]},
        {"timelimit": "x"},
        {"eta": "9999-12-31T00:00:00"}, {"eta": "yesterday"}, {"eta": 7}, {"expires": "0001-01-01T00:00:00"},
        {"group": mark, "chord": {"task": "celery.backend_cleanup"}}, {"callbacks": [CALLBACK]},
        {"stamped_headers": ["x"], "x": "y" * 70_000}, {"delivery_info": mark}, {"called_directly": True},
        {"root_id": "\x00"}, {"parent_id": {}}, {"reply_to": "../../x"}, {"lang": 7}, {"shadow": "\x1b[31m"},
        {"ignore_result": "no"}, {"argsrepr": 7}, {"kwargsrepr": "\x1b]0;title\x07"},
        {"task": 7}, {"task": ""},
    ])  # fmt: skip
    return {**envelope, "headers": {**envelope["headers"], **forged}}


def bad_priority(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    priority: Any = rng.choice([float("inf"), float("-inf"), float("nan"), -7, 10**400, "high", [], {}, True])
    eta = {"eta": rng.choice([None, "2000-01-01T00:00:00", "2100-01-01T00:00:00"])}
    properties = {**envelope["properties"], "priority": priority}
    return {**envelope, "properties": properties, "headers": {**envelope["headers"], **eta}}


def bad_embed(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    link: dict[str, Any] = {rng.choice(["callbacks", "errbacks", "chain"]): [CALLBACK]}
    chord = {"chord": {**CALLBACK, "options": {"task_id": "callback"}}}
    body = [[], {"orderid": "o", "sku": "s", "qty": 1}, rng.choice([link, chord, {**link, **chord}])]
    return {**envelope, "body": encoded(json.dumps(body).encode())}


def unknown_task(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    names = [
        "os.system", "celery.chord_unlock", "celery.map", "celery.starmap", "celery.group",
        "celery.accumulate",
        "allocation.Allocate", "allocation.allocate ", "ALLOCATION.ALLOCATE", "\x1b[2J", "a\nb", "x" * 5_000,
        "*",
    ]  # fmt: skip
    return {**envelope, "headers": {**envelope["headers"], "task": rng.choice(names)}}


def handler_of_nothing(rng: random.Random, envelope: Envelope, _mark: str) -> Envelope:
    return {**envelope, "headers": {**envelope["headers"], "task": rng.choice(HANDLERS)}}


KINDS: list[Spoil] = [
    bad_fields, bad_body, bad_envelope, bad_types, deep_or_large, bad_headers, bad_priority, bad_embed,
    unknown_task, handler_of_nothing,
]  # fmt: skip
