"""Send one command, wait for its answer and print it; `replay` and the commands of the project use this."""

from __future__ import annotations

from typing import Any

from messaging.client import CommandFailed, NotAnswered
from messaging.errors import Unavailable, describe
from messaging.messages import Command
from messaging.operator.cli.output import console, print_json
from messaging.operator.cli.tool import Failure, NoAnswer, Tool


def execute(
    tool: Tool, command: Command, timeout_s: float, key: str | None = None, as_json: bool = False
) -> None:
    """Send a command, wait for its answer and print it."""
    sent = tool.client.delay(command, key=key)
    try:
        answer = tool.client.answer(sent, timeout_s)
    except NotAnswered:
        raise NoAnswer(
            f"No answer in {timeout_s:g} s. The command is queued under the id {sent.id} and runs"
            " when a worker is available."
        ) from None
    except Unavailable:
        raise
    except CommandFailed as error:
        raise Failure(str(error)) from error
    except Exception as error:
        raise Failure(describe(error)) from error
    if as_json:
        print_json({"task_id": sent.id, "command": repr(command), "result": answer})
    else:
        console().print(f"{command!r}: {_shown(command, answer)}", soft_wrap=True)


def _shown(command: Command, answer: Any) -> str:
    """Return a result for people; for None add its meaning."""
    return f"{command.none_means} (None)" if answer is None else repr(answer)
