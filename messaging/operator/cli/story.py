"""The history of one delivery, from its command on, as text."""

from __future__ import annotations

from rich.text import Text

from messaging.operator.cli.output import console, print_facts, printable, when
from messaging.operator.deliveries import FailedAttempt, Story
from messaging.project import Project
from messaging.worker.dispatcher import shown_event


def print_story(project: Project, story: Story, waits: str = "") -> None:
    """Print everything known about a delivery; its event first, as a line to paste into Python."""
    row = story.delivery
    console().print(Text(shown_event(project, row), "bold"), soft_wrap=True)
    print_facts(
        (
            ("delivery", row.id),
            ("handler", row.handler),
            ("status", row.status),
            ("waits", waits),
            ("reason", row.reason),
            ("raised", row.created_at),
            ("ended", row.finished_at),
            ("next attempt", f"by {when(row.due_at)}" if row.finished_at is None else None),
            ("worker", row.worker),
            ("copied from", row.edited_from),
        )
    )
    _print_cause(project, story)
    _print_attempts(story.attempts)
    _print_actions(story)
    _print_related(project, story)


def _print_cause(project: Project, story: Story) -> None:
    _title("Caused by")
    for row in story.through:
        _say(f"{shown_event(project, row)} for {row.handler}, delivery {row.id}")
    if story.cause:
        _say(f"{story.cause.command}, task {story.cause.task_id}")
        _say(f"answered {story.cause.result!r} at {when(story.cause.at)}")
    else:
        _say(f"command {story.delivery.correlation_id}, whose answer was pruned, or never stored")


def _print_attempts(attempts: list[FailedAttempt]) -> None:
    _title("Failed attempts")
    if not attempts:
        _say("none")
    for attempt in attempts:
        after = f" after re-run {attempt.run}" if attempt.run else ""
        _say(f"{attempt.number}{after}, {when(attempt.at)}, {attempt.worker}: {attempt.error}")
    if attempts and attempts[-1].traceback:
        console().print()
        _say(attempts[-1].traceback.rstrip())


def _print_actions(story: Story) -> None:
    if story.actions:
        _title("Actions")
    for action in story.actions:
        reason = f": {action.reason}" if action.reason else ""
        _say(f"{when(action.at)} {action.action} by {action.actor}{reason}")


def _print_related(project: Project, story: Story) -> None:
    if story.related:
        _title("Other deliveries of the same command")
    for row in story.related:
        _say(f"{row.id} {row.status}: {shown_event(project, row)} for {row.handler}")


def _title(text: str) -> None:
    console().print(Text(f"\n{text}", "bold"))


def _say(text: str) -> None:
    console().print("\n".join(f"  {line}" for line in printable(text).splitlines()), soft_wrap=True)
