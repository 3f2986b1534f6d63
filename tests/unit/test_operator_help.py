"""The help texts are complete, and their examples are valid command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner

from allocation.bootstrap import project
from allocation.cli import tool
from local import ROOT
from messaging import __version__
from messaging.operator.cli import operator_tool

PROG = "python -m allocation"


def commands(group: click.Group = tool, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Return the words of every command and group of the tool."""
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def help_of(path: tuple[str, ...]) -> str:
    """Return the output of `--help`."""
    return CliRunner().invoke(tool, [*path, "--help"], prog_name=PROG).output


ALL = sorted(commands())
EXAMPLES = [
    line.partition(PROG)[2].partition("|")[0]
    for path in ALL
    for line in help_of(path).splitlines()
    if line.startswith("  ") and PROG in line and "COMMAND" not in line
]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_text_has_an_example_and_names_its_environment(path: tuple[str, ...]):
    text = help_of(path)

    assert f"  {PROG} {' '.join(path)}".rstrip() in text
    assert "ALLOCATION_DATABASE_URL" in text or "ALLOCATION_BROKER_URL" in text
    assert not re.search(r"\{\w+\}", text)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_valid_command_line(example: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT / "data")
    words = [word.replace("QTY", "3") for word in shlex.split(example)]
    command: click.Command = tool
    context = tool.make_context(PROG, [*words], **tool.context_settings)

    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        context = command.make_context(name, words[:], parent=context)


def test_exit_statuses_are_documented():
    text = help_of(())

    for status in ("0 ", "1 ", "2 ", "3 ", "130"):
        assert f"\n  {status}" in text


def test_the_tool_prints_its_version():
    assert CliRunner().invoke(tool, ["--version"]).output == f"allocation {__version__}\n"


def test_the_tool_of_another_project_prints_the_version_of_the_bus():
    other = operator_tool(replace(project, name="cinema"), app="cinema.tasks:app")

    assert CliRunner().invoke(other, ["--version"]).output == f"cinema, on allocation {__version__}\n"
