"""`make drill`: the mail server of a running `make up` is down until Ctrl-C, to practise a failure with.

The drill holds a lock on a file in the data folder, and `make up` looks whether somebody does. So the mail
server comes back however the drill ends.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

from local import ROOT
from local.data_folder import is_in_use
from local.hints import tool
from local.ports import is_free
from local.processes.child import ChildFailedError
from local.processes.supervisor import Supervisor
from local.settings import LocalSettings
from local.stack import addresses_of
from local.waiting import NotInTimeError, eventually

LOOK_EVERY = 0.5  # seconds


class DrillError(RuntimeError):
    """There can be no drill now; the text says why."""


@dataclass
class MailOutages:
    """Stops and starts the mail server of `make up` as drills begin and end."""

    supervisor: Supervisor
    folder: Path
    is_down: bool = False

    def follow(self) -> None:
        """Do what the drill wants, if that has changed."""
        if is_running(self.folder) == self.is_down:
            return
        self.is_down = not self.is_down
        if self.is_down:
            self.supervisor.pause("mail")
            self.supervisor.say("a drill stopped the mail server")
        else:
            self.supervisor.say("a drill is over: the mail server starts again")
            # If it does not, as its port is taken, the supervisor says so, and tries again and again.
            with suppress(OSError, ChildFailedError, NotInTimeError):
                self.supervisor.resume("mail")


def is_running(folder: Path) -> bool:
    """Tell whether a drill runs over this data folder."""
    try:
        with _lock_file(folder).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _lock_file(folder: Path) -> Path:
    return folder / "drill"


@contextmanager
def outage(settings: LocalSettings) -> Iterator[None]:
    """Have the mail server down.

    Raises:
        DrillError: there is none to stop, or it does not stop.
    """
    if settings.smtp_url is not None:
        raise DrillError("ALLOCATION_SMTP_URL is set, and `make up` stops no mail server but its own")
    if not is_in_use(settings.folder):
        raise DrillError("`make up` is not running: start it in another terminal")
    _require_mail_server(settings.smtp_port)
    with _lock_file(settings.folder).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DrillError("another drill is running") from None
        eventually(lambda: is_free(settings.smtp_port), 30, "the end of the mail server")
        yield


def _require_mail_server(port: int) -> None:
    """Refuse where `make up` serves none; the one of an earlier drill may be about to start."""
    try:
        eventually(lambda: not is_free(port), 5)
    except NotInTimeError:
        raise DrillError(
            f"`make up` has no mail server on port {port}; its ALLOCATION_SMTP_URL may name another"
        ) from None


def run_out_of_stock(settings: LocalSettings) -> None:
    """Send an order that cannot be allocated; the mail about it is what fails.

    Raises:
        DrillError: the backend does not answer.
    """
    sku, environment = f"DRILL-{uuid4().hex[:6]}", os.environ | addresses_of(settings).environment()
    for command in (("create-batch", f"batch-{sku}", sku, "1"), ("allocate", f"order-{sku}", sku, "2")):
        done = subprocess.run(
            [sys.executable, "-m", "allocation", *command],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise DrillError(done.stderr.strip())


def main() -> int:
    """Play the failure until Ctrl-C; 1 with a line on why that is not possible."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    settings = LocalSettings()
    try:
        with outage(settings):
            run_out_of_stock(settings)
            print(BEGUN.format(tool=tool()), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print(OVER.format(tool=tool()), flush=True)
    except (DrillError, AssertionError, OSError) as error:
        print(f"no drill: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


BEGUN = """\
The mail server is down, and an order could not be allocated, so the stock team must be notified.
In about half a minute the delivery has used up its retries. Follow
docs/how-to/operating.md in another terminal:

  {tool} check
  {tool} deliveries list
  {tool} deliveries show ID

Ctrl-C here starts the mail server again."""

OVER = """
The mail server starts again. Now run the delivery again:

  {tool} deliveries rerun --all --wait 60"""


if __name__ == "__main__":
    sys.exit(main())
