"""The contract with other apps: a valid, up-to-date AsyncAPI document."""

from __future__ import annotations

import dataclasses
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from celery import Celery

from allocation.bootstrap import project
from allocation.contract import PATH, contract
from allocation.domain import errors
from messaging.wire.cloud_events import Announcement, cloud_event

SPECIFICATION = Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json.gz"


@pytest.fixture(scope="module")
def document() -> Any:
    """The document, parsed."""
    return yaml.safe_load(PATH.read_text())


def test_the_document_is_up_to_date():
    """`make docs` updates it."""
    assert PATH.read_text() == contract()


def test_the_document_is_asyncapi(document):
    specification = json.loads(gzip.decompress(SPECIFICATION.read_bytes()))

    jsonschema.Draft7Validator(specification).validate(document)


def test_every_reference_leads_somewhere(document):
    def references(node: Any) -> list[str]:
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        own = [node["$ref"]] if isinstance(node, dict) and "$ref" in node else []
        return own + [reference for child in children for reference in references(child)]

    for reference in references(document):
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target


def test_every_command_error_and_event_is_in_it(document):
    commands = document["channels"]["commands"]["messages"]
    told = document["channels"]["events"]["messages"]
    refusals = document["components"]["schemas"]["Error"]["properties"]["exc_type"]["examples"]

    assert set(commands) == {"allocate", "create_batch", "change_batch_quantity", "many"}
    assert set(told) == {"Allocated", "Deallocated", "OutOfStock", "BatchCreated", "BatchQuantityChanged"}
    assert {kind.__name__ for kind in errors.AllocationError.__subclasses__()} <= set(refusals)


def valid(document: Any, message: str, payload: Any) -> bool:
    """Return whether a payload matches the document's schema of a message."""
    schema = {**document["components"]["messages"][message]["payload"], "components": document["components"]}
    return jsonschema.Draft7Validator(schema).is_valid(payload)


@pytest.mark.parametrize(
    ("qty", "expected"),
    [(1, True), (2**31 - 1, True), (0, False), (2**31, False), ("3", False), (1.5, False)],
)
def test_celerys_messages_match_the_document(document, qty, expected):
    app = Celery(set_as_current=False)
    fields = {"orderid": "o1", "sku": "LAMP", "qty": qty}
    message = app.amqp.as_task_v2("an-id", "allocation.allocate", (), fields)

    assert valid(document, "allocate", json.loads(json.dumps(message.body))) is expected


def test_a_list_of_commands_matches_the_document(document):
    good = ["allocation.create_batch", {"ref": "b1", "sku": "LAMP", "qty": 1, "eta": "2026-01-31"}]

    assert valid(document, "many", [[[good, [*good, "my-id"]]], {}, {}])
    assert not valid(document, "many", [[[["allocation.allocate", good[1]]]], {}, {}])
    assert valid(document, "many_result", {"task_id": "x", "status": "SUCCESS", "result": [{"id": "x.0"}]})


def test_results_match_the_document(document):
    for result, expected in (("b1", True), (None, True), (3, False)):
        answer = {"task_id": "x", "status": "SUCCESS", "result": result}
        assert valid(document, "allocate_result", answer) is expected
    assert not valid(document, "create_batch_result", {"task_id": "x", "status": "SUCCESS", "result": "b1"})


def test_an_announced_event_matches_the_document(document):
    event_id = "01890000-0000-7000-8000-000000000000"
    told = Announcement(event_id, "OutOfStock", {"sku": "LAMP"}, "c1", "c1", datetime.now(UTC))
    with_subject = dataclasses.replace(told, position=12, subject="LAMP")

    assert valid(document, "OutOfStock", cloud_event(project.name, told))
    assert valid(document, "OutOfStock", cloud_event(project.name, with_subject))
    assert not valid(document, "Allocated", cloud_event(project.name, told))


def test_sequences_sort_the_same_as_text_and_as_numbers():
    told = Announcement("e1", "OutOfStock", {}, "c1", "c1", datetime.now(UTC))
    numbers = [1, 9, 10, 99_999, 100_000, 2**31, 2**63 - 1]

    sequences = [
        cloud_event("p", dataclasses.replace(told, position=number))["sequence"] for number in numbers
    ]

    assert sequences == sorted(sequences)
    assert {len(sequence) for sequence in sequences} == {19}
