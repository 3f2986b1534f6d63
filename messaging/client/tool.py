"""The command line of a project's client: the relay, the gauge and the table's statements."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from messaging.brokers.signing import Signing
from messaging.client.databases import Database, DriverDatabase, SqlAlchemyDatabase
from messaging.client.outbox import Outbox
from messaging.client.pace import Pace
from messaging.client.relay import OnAnswer, Relay
from messaging.extras import MissingExtra, needs
from reliable_celery.sentinel import Sentinel

#: A relay that was told to end ends by itself when it has finished its step, else after so many seconds.
STOP_TIMEOUT_S = 3.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def outbox_tool(outbox: Outbox) -> click.Group:
    """Return the tool for one project's outbox."""
    prefix = outbox.project.upper()
    group = click.Group(
        help=f"Send commands to {outbox.project} that an app's own transactions have committed."
    )
    group.add_command(_relay_command(outbox, prefix))
    group.add_command(_ddl_command(outbox))
    return group


def database_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the two ways to name the app's database."""
    url = click.option(
        "--database-url",
        envvar="DATABASE_URL",
        show_envvar=True,
        help="the app's database, as SQLAlchemy names it",
    )
    connect = click.option(
        "--connect", metavar="MODULE:FUNCTION", help="instead: what returns a DB-API connection"
    )
    return url(connect(function))


def _relay_command(outbox: Outbox, prefix: str) -> click.Command:
    @click.command()
    @database_options
    @click.option(
        "--broker-url", envvar=f"{prefix}_BROKER_URL", show_envvar=True, default="redis://127.0.0.1:6390/0"
    )
    @click.option(
        "--results-url",
        envvar=f"{prefix}_RESULT_BACKEND_URL",
        show_envvar=True,
        default="redis://127.0.0.1:6390/1",
    )
    @click.option("--on-answer", metavar="MODULE:FUNCTION", help="gets each outcome and the transaction")
    @click.option("--keep-answers", is_flag=True, help="leave the answers in the table")
    @click.option("--status", is_flag=True, help="print what waits, and end")
    @click.option("--once", is_flag=True, help="work until nothing waits, a minute at most, and end")
    @click.option(
        "--answer-after",
        type=float,
        default=Pace.answer_after_s,
        show_default=True,
        help="seconds until a command without an answer is sent again",
    )
    @click.option(
        "--retention",
        type=float,
        default=Pace.retention_s,
        show_default=True,
        help="seconds that handled commands are kept",
    )
    @click.option(
        "--ca-file", envvar=f"{prefix}_TLS_CA_FILE", show_envvar=True, type=click.Path(path_type=Path)
    )
    @click.option(
        "--signing-key", envvar=f"{prefix}_SIGNING_KEY", show_envvar=True, type=click.Path(path_type=Path)
    )
    @click.option(
        "--signing-certificate",
        envvar=f"{prefix}_SIGNING_CERTIFICATE",
        show_envvar=True,
        type=click.Path(path_type=Path),
    )
    @click.option("--signing-store", envvar=f"{prefix}_SIGNING_STORE", show_envvar=True)
    @click.option(
        "--sentinel-master", envvar=f"{prefix}_SENTINEL_MASTER", show_envvar=True, default=Sentinel.master
    )
    @click.option("--sentinel-user", envvar=f"{prefix}_SENTINEL_USER", show_envvar=True)
    def relay(
        database_url: str | None,
        connect: str | None,
        broker_url: str,
        results_url: str,
        on_answer: str | None,
        keep_answers: bool,
        status: bool,
        once: bool,
        answer_after: float,
        retention: float,
        ca_file: Path | None,
        signing_key: Path | None,
        signing_certificate: Path | None,
        signing_store: str | None,
        sentinel_master: str,
        sentinel_user: str | None,
    ) -> None:
        """Send what was committed and hand the answers to the app, until SIGTERM. Any number may run."""
        if not status and bool(on_answer) == keep_answers:
            raise click.UsageError(
                "name what handles the answers: --on-answer, or --keep-answers to leave them in the table"
            )
        signing = _signing(prefix, signing_key, signing_certificate, signing_store)
        try:
            pace = Pace(answer_after_s=answer_after, retention_s=retention)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        one = outbox.relay(
            _database(database_url, connect),
            broker_url,
            results_url,
            on_answer=_handler(outbox, on_answer),
            keep_answers=keep_answers or status,
            pace=pace,
            ca_file=ca_file,
            signing=signing,
            sentinel=Sentinel(sentinel_master, sentinel_user, os.environ.get(f"{prefix}_SENTINEL_PASSWORD")),
        )
        try:
            if status:
                show_status(one)
            else:
                run(one, once=once)
        finally:
            one.close()

    return relay


def _ddl_command(outbox: Outbox) -> click.Command:
    @click.command()
    @click.argument("dialect", type=click.Choice(["postgresql", "mysql", "mariadb", "sqlite"]))
    def ddl(dialect: str) -> None:
        """Print the statements that create the table, for the app's own migrations."""
        for statement in outbox.ddl(dialect):
            click.echo(f"{statement};")

    return ddl


def show_status(relay: Relay) -> None:
    """Print what waits."""
    waiting = relay.waiting()
    click.echo(f"unsent {waiting.unsent}")
    click.echo(f"unanswered {waiting.unanswered}")
    click.echo(f"unhandled {waiting.unhandled}")
    click.echo(f"oldest {waiting.oldest_s:.0f} s")


def run(relay: Relay, *, once: bool = False) -> None:
    """Run a relay as the only thing of this process, until SIGTERM or Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()

    def end() -> None:
        stop.set()
        time.sleep(STOP_TIMEOUT_S)
        # Whatever step it is in may be cut short, a wait for a broker that is away above all.
        os._exit(1 if once else 0)

    _on_signal(end)
    if once:
        sys.exit(0 if relay.drain(60.0) else 1)
    logging.getLogger(__name__).info("The relay runs")
    relay.run(stop)


def _on_signal(end: Callable[[], None]) -> None:
    """Have a function called at once at SIGTERM or Ctrl-C, in a thread of its own.

    The main thread runs a signal handler only when its driver returns, and that may wait for a database
    without end.
    """
    written_to, read_from = socket.socketpair()
    written_to.setblocking(False)
    signal.set_wakeup_fd(written_to.fileno())
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOP_SIGNALS),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOP_SIGNALS),
        after_in_child=_forget_signals,
    )

    def wait() -> None:
        with written_to, read_from:
            while not {*STOP_SIGNALS} & {*read_from.recv(100)}:
                pass
            end()

    threading.Thread(target=wait, daemon=True).start()


def _forget_signals() -> None:
    """Let a process that the app's function forks end at its own signals, and not tell the relay of them."""
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _signing(prefix: str, key: Path | None, certificate: Path | None, store: str | None) -> Signing | None:
    """Return how messages are signed; None where none of the three is named."""
    if key and certificate and store:
        return Signing(key, certificate, store, os.environ.get(f"{prefix}_SIGNING_KEY_PASSWORD"))
    if key or certificate or store:
        raise click.UsageError("name all of --signing-key, --signing-certificate and --signing-store")
    return None


def _database(url: str | None, connect: str | None) -> Database:
    if bool(url) == bool(connect):
        raise click.UsageError("name the app's database: either --database-url or --connect")
    if connect:
        return DriverDatabase(named(connect))
    try:
        with needs("sqlalchemy"):
            return SqlAlchemyDatabase(url)
    except MissingExtra as error:
        raise click.ClickException(str(error)) from None


def _handler(outbox: Outbox, name: str | None) -> OnAnswer | None:
    """Return the function of that name; a module alone stands for what it decorated with `on_answer`."""
    if name is None:
        return None
    found: Any = named(name)
    if callable(found):
        return found  # type: ignore[no-any-return]
    if outbox.handler is None:
        raise click.UsageError(f"{name} decorates no function with on_answer; name one: {name}:FUNCTION")
    return outbox.handler


def named(name: str) -> Any:
    """Import what `module:function` names, from the current folder too."""
    sys.path.insert(0, "")
    module, _, attribute = name.partition(":")
    try:
        found = import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"{name}: {error}") from None
