"""Play a file of purchases; exit status 0 only if every VIP of the file, and nobody else, became one."""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from celery import Celery
from rich.console import Console
from rich.text import Text

from examples.vip_customers.demo import VIP
from examples.vip_customers.demo.play import Play
from examples.vip_customers.demo.purchases import read
from local import ROOT
from local.data_folder import FolderInUseError, hold, remove
from local.ports import free_port
from local.settings import LocalSettings
from local.stack import Stack

#: Fail quickly, and leave re-runs to the operator; variables that the user has set win.
QUICK = {
    "VIP_EVENT_MAX_RETRIES": "1",
    "VIP_EVENT_BACKOFF_MAX_S": "2",
    "VIP_RERUN_MAX": "0",
    "VIP_ANNOUNCE": "false",  # no other app listens
    "VIP_RELAY_GRACE_S": "600",  # events queue up behind such a sale; the relay need not send them again
}


def main() -> int:
    """Run the demo; 0 if all of it really happened."""
    purchases = _options().purchases
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the demo as Ctrl-C does
    try:
        lines = sum(1 for _ in read(purchases))
        with (
            Stack(_own_settings(), console.print, without={"flower", "mail"}, service=VIP) as stack,
            Celery("checkout", broker=stack.addresses.broker_url, backend=stack.addresses.result_backend_url)
            as checkout,
        ):  # fmt: skip
            Play(console, stack, checkout, purchases, lines).all_acts()
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        console.print(Text.assemble(("The demo failed: ", "red"), str(error)), soft_wrap=True)
        return 1
    return 0


def _own_settings() -> LocalSettings:
    """Return settings for servers of the demo's own, empty and on free ports."""
    data = LocalSettings().folder
    with suppress(FolderInUseError):
        hold(data).close()  # marks it as a data folder, so that `make clean` removes it
    remove(data / "vip")
    return LocalSettings(
        data_dir=data / "vip",
        database_url=None,
        broker_url=None,
        result_backend_url=None,
        smtp_url=None,
        redis_port=free_port(),
        postgres_port=free_port(),
        flower_port=free_port(),
        smtp_port=free_port(),
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.vip_customers.demo", description=__doc__)
    parser.add_argument("--purchases", type=Path, default=ROOT / "data" / "purchases.csv", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
