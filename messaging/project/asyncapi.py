"""Commands and events of a project as an AsyncAPI 3 document, generated from the message classes.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from messaging import errors
from messaging.brokers import topology
from messaging.messages import IDEMPOTENCY_KEY, Command, Message, task_name
from messaging.project.project import Project
from messaging.wire.cloud_events import CONTENT_TYPE
from messaging.wire.validation import model

Json = dict[str, Any]

NAME: Json = {"type": "string", "minLength": 1, "maxLength": 255}
#: Errors of the bus itself that a sender can get; the others stay inside it.
ANSWERS = (
    errors.InvalidMessage,
    errors.UnknownMessage,
    errors.Unavailable,
    errors.Expired,
    errors.WorkerCrashed,
)


def asyncapi(project: Project, title: str, version: str) -> Json:
    """Return the document: channels of commands, answers and events, with every message's schema."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version, "description": DESCRIPTION.format(name=project.name)},
        "defaultContentType": "application/json",
        "servers": {
            "redis": {"host": "127.0.0.1:6390", "pathname": "/0", "protocol": "redis"},
            "rabbitmq": {"host": "127.0.0.1:5672", "protocol": "amqp"},
        },
        "channels": _channels(project),
        "operations": _operations(project),
        "components": {"messages": _messages(project), "schemas": _schemas(project)},
    }


DESCRIPTION = """\
Commands are Celery tasks (message protocol 2, JSON) on the queue {name}.commands; the answer is Celery's
result of that task id, which must be new for each message. The header `idempotency_key` is the sender's
idempotency key: once a command has succeeded, a message with the same key gets the first result.
Events are CloudEvents 1.0 on the topic exchange {name}.events; the routing key is the event's name.
Fields may be added to events, so listeners must ignore unknown fields.
"""


def _channels(project: Project) -> Json:
    commands, events = _short_names(project), _events(project)
    exchange = topology.events_exchange(project.name)
    return {
        "commands": {
            "address": project.commands_queue,
            "messages": {name: _ref("messages", name) for name in [*commands, "many"]},
            "bindings": {"amqp": {"is": "queue", "queue": {"name": project.commands_queue, "durable": True}}},
        },
        "answers": {
            "address": None,
            "description": "Celery's result backend, by the id of the message.",
            "messages": {
                name: _ref("messages", name)
                for name in [*(f"{command}_result" for command in commands), "many_result", "error"]
            },
        },
        "events": {
            "address": exchange.name,
            "messages": {kind.__name__: _ref("messages", kind.__name__) for kind in events},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {"name": exchange.name, "type": exchange.type, "durable": True},
                }
            },
        },
    }


def _operations(project: Project) -> Json:
    asked = {name: _operation("receive", "commands", name) for name in [*_short_names(project), "many"]}
    for name, operation in asked.items():
        operation["reply"] = {
            "channel": _ref("channels", "answers", root="#"),
            "messages": [_in_channel("answers", f"{name}_result"), _in_channel("answers", "error")],
        }
    told = {f"tell_{kind.__name__}": _operation("send", "events", kind.__name__) for kind in _events(project)}
    return {**asked, **told}


def _operation(action: str, channel: str, message: str) -> Json:
    return {
        "action": action,
        "channel": _ref("channels", channel, root="#"),
        "messages": [_in_channel(channel, message)],
    }


def _messages(project: Project) -> Json:
    messages: Json = {}
    for name, kind in _short_names(project).items():
        fields = _ref("schemas", kind.__name__)
        messages[name] = _task(task_name(project.name, kind), _doc(kind), {"maxItems": 0}, fields)
        result = TypeAdapter(get_type_hints(project.bus.commands[kind])["return"]).json_schema()
        messages[f"{name}_result"] = _answer(f"{name}_result", "SUCCESS", result)
    commands = {"items": [_ref("schemas", "Commands")], "minItems": 1, "maxItems": 1}
    messages["many"] = _task(f"{project.name}.many", MANY, commands, {"type": "object", "maxProperties": 0})
    messages["many_result"] = _answer(
        "many_result", "SUCCESS", {"type": "array", "items": _ref("schemas", "Outcome")}
    )
    messages["error"] = _answer("error", "FAILURE", _ref("schemas", "Error"))
    return {**messages, **{kind.__name__: _event(project, kind) for kind in _events(project)}}


MANY = "A list of commands: each has its own transaction, idempotency key, and result or error."


def _task(name: str, summary: str, args: Json, kwargs: Json) -> Json:
    """Return a message of Celery's protocol 2: `[args, kwargs, embed]` and headers.

    Source: https://docs.celeryq.dev/en/stable/internals/protocol.html#version-2
    """
    body = {
        "type": "array",
        "items": [{"type": "array", **args}, kwargs, {"type": "object"}],
        "minItems": 3,
        "maxItems": 3,
    }
    headers = {
        "type": "object",
        "required": ["task", "id"],
        "properties": {
            "task": {"const": name},
            "id": {**NAME, "description": "new for each message; the answer is stored under it"},
            IDEMPOTENCY_KEY: {
                **NAME,
                "description": "the sender's idempotency key; default: the id",
            },
        },
    }
    return {
        "name": name,
        "summary": summary,
        "contentType": "application/json",
        "headers": headers,
        "payload": body,
    }


def _answer(name: str, status: str, result: Json) -> Json:
    payload = {
        "type": "object",
        "required": ["task_id", "status", "result"],
        "properties": {"task_id": NAME, "status": {"const": status}, "result": result},
    }
    return {"name": name, "contentType": "application/json", "payload": payload}


SUBJECT = "the key of the aggregate that raised the event, if it has one"
SEQUENCE = "greater for later events of the same subject, compared as text; there are gaps"


def _event(project: Project, kind: type[Message]) -> Json:
    """Return an event's CloudEvents envelope."""
    attributes: Json = {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "format": "uuid", "description": "the same when an event is repeated"},
        "source": {"const": f"/{project.name}"},
        "type": {"const": f"{project.name}.{kind.__name__}"},
        "subject": {"type": "string", "description": SUBJECT},
        "sequence": {"type": "string", "pattern": r"^\d{19}$", "description": SEQUENCE},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "correlationid": {"type": "string", "description": "the id of the original command"},
        "causationid": {"type": "string", "description": "the id of the command or delivery behind it"},
        "traceparent": {
            "type": "string",
            "description": "the W3C trace that it was raised in, if there is one",
        },
        "data": _ref("schemas", kind.__name__),
    }
    required = [name for name in attributes if name not in ("subject", "traceparent")]
    payload = {"type": "object", "required": required, "properties": attributes}
    return {"name": kind.__name__, "summary": _doc(kind), "contentType": CONTENT_TYPE, "payload": payload}


def _schemas(project: Project) -> Json:
    commands = {kind.__name__: _schema(kind) for kind in project.bus.commands}
    events = {kind.__name__: _schema(kind) for kind in _events(project)}
    for schema in events.values():
        del schema["additionalProperties"]
    lines = [_line(project, kind) for kind in project.bus.commands]
    return {
        **commands,
        **events,
        "Error": _error(project),
        "Commands": {"type": "array", "items": {"anyOf": lines}},
        "Outcome": {
            "description": "the outcome of one of many commands: a result or an error",
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": {**NAME, "description": "its idempotency key"},
                "result": {},
                "error": {
                    "type": "object",
                    "required": ["type", "message"],
                    "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
                },
                "recorded": {
                    "const": False,
                    "description": "beside an error that is not recorded: a copy of this message may get"
                    " another answer",
                },
            },
        },
    }


def _schema(kind: type[Message]) -> Json:
    """Return the schema of a message's fields; pydantic's lacks that text must be printable."""
    schema = model(kind).model_json_schema()
    for field in schema.get("properties", {}).values():
        for own in (field, *field.get("anyOf", ())):
            if own.get("type") == "string" and "maxLength" in own:
                own["description"] = "printable characters only"
    return schema


def _line(project: Project, kind: type[Command]) -> Json:
    """Return the schema of one of many commands: its task, its fields, and an optional idempotency key."""
    task = {"const": task_name(project.name, kind)}
    items = [task, _ref("schemas", kind.__name__), NAME]
    return {"type": "array", "items": items, "minItems": 2, "maxItems": 3}


def _error(project: Project) -> Json:
    kinds = [*ANSWERS, *_concrete(project.refusals)]
    told = "\n".join(f"- {kind.__name__}: {_doc(kind)}" for kind in kinds)
    return {
        "description": f"Why a command was refused, by class name:\n\n{told}\n",
        "type": "object",
        "required": ["exc_type", "exc_message"],
        "properties": {
            "exc_type": {"type": "string", "examples": [kind.__name__ for kind in kinds]},
            "exc_message": {"type": "array", "items": {"type": "string"}, "description": "one readable text"},
        },
    }


def _concrete(kinds: Iterable[type[Exception]]) -> list[type[Exception]]:
    """Return the concrete classes among errors and their subclasses; base classes are never raised."""
    found: list[type[Exception]] = []
    for kind in kinds:
        below = kind.__subclasses__()
        found += _concrete(below) if below else [kind]
    return found


def _short_names(project: Project) -> dict[str, type[Command]]:
    return {
        task_name(project.name, kind).removeprefix(f"{project.name}."): kind for kind in project.bus.commands
    }


def _events(project: Project) -> list[type[Message]]:
    return list(project.bus.events)


def _doc(kind: type[Message] | type[Exception]) -> str:
    return inspect.getdoc(kind) or ""


def _ref(*path: str, root: str = "#/components") -> Json:
    return {"$ref": "/".join((root, *path))}


def _in_channel(channel: str, message: str) -> Json:
    return _ref("channels", channel, "messages", message, root="#")
