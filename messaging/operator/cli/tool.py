"""The context and the exit statuses of the tool's commands."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import click
import pydantic
from celery import Celery
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name

from messaging.client import Client
from messaging.errors import InvalidMessage, MessagingError, Unavailable, describe
from messaging.messages import Command, Event
from messaging.operator.check import settings_problem
from messaging.postgres.inbox import known_errors
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project import Project
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher

#: Exit status of `Failure`, for commands that have already printed what is wrong.
REFUSED = 1

EXIT_STATUSES = """\b
Exit status:
  0    done
  1    refused, not found, or something is not in order
  2    the command line is wrong
  3    a server or a worker does not answer
  130  interrupted by Ctrl-C; what was done is kept and printed"""


#: The variables that most commands read; those that need other servers name their own.
ENVIRONMENT = "Environment: {PROJECT}_DATABASE_URL, {PROJECT}_BROKER_URL; NO_COLOR turns colours off."


class Failure(click.ClickException):
    """Ends the tool with a line on standard error: the request was refused, or something was not found."""

    exit_code = 1


class NoAnswer(Failure):
    """A server or a worker does not answer."""

    exit_code = 3


class Interrupted(Failure):
    """Ctrl-C; the text says what is done and what is not."""

    exit_code = 130  # as in shells


@dataclass
class Tool:
    """The project, and its Celery app, which is imported when a command first needs it."""

    project: Project
    app_path: str  # "module:name"

    @cached_property
    def runtime(self) -> Runtime:
        """Return engines and stores."""
        return Runtime(self.project)

    @cached_property
    def app(self) -> Celery:
        """Return the Celery app."""
        app: Celery = symbol_by_name(self.app_path)
        return app

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """Return the dispatcher of deliveries and dead letters."""
        return Dispatcher(self.app, self.runtime)

    @cached_property
    def client(self) -> Client:
        """Return the project's client, like that of other apps."""
        settings = self.runtime.settings
        return Client(
            self.project.name,
            settings.broker_url,
            settings.result_backend_url,
            refusals=known_errors(self.project.refusals).values(),
            signing=settings.signing,
            ca_file=settings.tls_ca_file,
            sentinel=settings.sentinel,
        )

    @property
    def actor(self) -> str:
        """Return who runs this program, as `name@host`."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a container's user may have no name
            name = "unknown"
        return f"{name}@{socket.gethostname()}"


class Documented(click.Command):
    """A command whose epilog has placeholders: `{prog}` becomes `python -m <project>`."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog."""
        if self.epilog:
            names = {"{prog}": ctx.find_root().info_name or "", **placeholders(ctx.obj.project)}
            text = (
                self.epilog if "Environment:" in self.epilog else f"{self.epilog.rstrip()}\n\n{ENVIRONMENT}"
            )
            for name, value in names.items():
                text = text.replace(name, value)
            formatter.write_paragraph()
            for line in text.replace("\b\n", "").splitlines():
                formatter.write(f"{line}\n")


class Group(Documented, click.Group):
    """A group whose commands are documented the same way."""

    command_class = Documented
    group_class = type


class ToolGroup(Group):
    """The whole tool: expected errors end it with a line and a status, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run one command."""
        try:
            return super().invoke(ctx)
        except pydantic.ValidationError as error:
            raise Failure(f"Settings: {settings_problem(ctx.obj.project, error)}") from error
        except InvalidMessage as error:
            raise Failure(f"InvalidMessage: {error}") from error
        except Unavailable as error:
            raise NoAnswer(f"{error}. `{ctx.info_name} check` says what is wrong") from error
        except MessagingError as error:
            raise Failure(str(error)) from error
        except DATABASE_ERRORS as error:
            raise NoAnswer(
                f"The database does not answer, or rejected the request: {_first_line(error)}"
            ) from error
        except (OperationalError, BackendError, ConnectionError) as error:
            raise NoAnswer(f"The broker or the result backend is unavailable: {describe(error)}") from error
        except KeyboardInterrupt:
            raise Interrupted("Interrupted") from None


def placeholders(project: Project) -> dict[str, str]:
    """Return names of the project for the examples of an epilog, by their placeholders."""
    command = next(iter(project.bus.commands), Command)
    handled = ((kind, handlers[0].__name__) for kind, handlers in project.bus.events.items() if handlers)
    event, handler = next(handled, (Event, "HANDLER"))
    return {
        "{project}": project.name,
        "{PROJECT}": project.name.upper(),
        "{message}": f"{command.__name__}({', '.join(f'{field.name}=…' for field in fields(command))})",
        "{event}": event.__name__,
        "{handler}": handler,
        "{field}": next((field.name for field in fields(event)), "FIELD"),
    }


def _first_line(error: BaseException) -> str:
    """Return the driver's message, without the statement and its values."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
