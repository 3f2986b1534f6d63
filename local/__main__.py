"""`make up`: everything in the foreground until Ctrl-C or SIGTERM."""

import os
import signal
import sys
import time
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from local.data_folder import FolderInUseError, NotOurFolderError
from local.drill import LOOK_EVERY, MailOutages
from local.hints import elsewhere, metrics_hint, next_steps, server_of
from local.processes.child import ChildFailedError, die_with_parent
from local.servers.postgres_server import NoPostgresError
from local.servers.redis_server import NoRedisError
from local.settings import LocalSettings
from local.stack import PortTakenError, Stack
from local.waiting import NotInTimeError

_EXPECTED = (
    ChildFailedError,
    FolderInUseError,
    NoPostgresError,
    NoRedisError,
    NotInTimeError,
    NotOurFolderError,
    OSError,
    PortTakenError,
)


class StoppedBySignal(BaseException):
    """The user or the system asked to stop."""


def main() -> int:
    """Run until told to stop; 0 for a clean stop, 1 with a line on what is wrong."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter of a path
    try:
        settings = LocalSettings()
    except ValidationError as error:
        return _fail("; ".join(f"ALLOCATION_{e['loc'][0]}".upper() + f": {e['msg']}" for e in error.errors()))
    environment = dict(os.environ)
    stack = Stack(settings, report=_say)
    _listen_for_signals()
    try:
        _show(stack)
        stack.start()
        _show_login(stack)
        _say("ready")
        _say(f"\n{next_steps(settings, environment)}")
        _serve(stack)
    except StoppedBySignal:
        _say("stopping")
    except _EXPECTED as error:
        return _fail(str(error))
    finally:
        _ignore_signals()
        stack.stop()
    return 0


def _serve(stack: Stack) -> NoReturn:
    """Leave the rest to the supervisor, but for drills."""
    outages = MailOutages(stack.supervisor, stack.settings.folder)
    while True:
        if stack.mail is not None:
            outages.follow()
        time.sleep(LOOK_EVERY)


def _listen_for_signals() -> None:
    """Turn the first signal into an exception, wherever the program is; later ones are ignored."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        _ignore_signals()
        raise StoppedBySignal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    if "MAKELEVEL" in os.environ:
        die_with_parent(os.getppid(), signal.SIGTERM)  # a killed make must not leave us behind


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _show(stack: Stack) -> None:
    """Print every address, without secrets."""
    table = Table("what", "address", "served by", title="allocation backend", title_justify="left")
    for name, address in stack.addresses.shown().items():
        table.add_row(name, address, server_of(name, stack.settings))
    table.add_row("data and logs", str(stack.settings.folder), "")
    # A pipe has no width, and a log file should not be cut to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    _say(elsewhere(stack.settings))
    if addresses := stack.settings.metrics_addresses:
        _say(metrics_hint(addresses))


def _show_login(stack: Stack) -> None:
    """Print Flower's address as it can be pasted."""
    if stack.flower_login is not None:
        _say(f"Flower: {stack.flower_login.address(stack.addresses.flower_url)}")


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(reason: str) -> int:
    print(f"not started: {reason}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
