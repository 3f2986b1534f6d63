"""A mail server that keeps every mail in a Maildir and sends none on: `python -m local.mail_sink`.

Its switches play the faults that a sender has to live with: a slow server, one that refuses, and one that
takes the mail and then drops the connection, so that the sender cannot know.
"""

import argparse
import asyncio
import mailbox
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from local.ports import LOOPBACK

ACCEPTED = "250 OK"


@dataclass(frozen=True)
class Keeper:
    """What aiosmtpd calls for each mail."""

    box: mailbox.Maildir
    delay: float = 0.0  # seconds before the answer
    reply: str = ACCEPTED
    drop_after_data: bool = False

    async def handle_DATA(  # noqa: N802 - aiosmtpd looks it up by this name
        self,
        server: SMTP,
        session: Session,  # noqa: ARG002 - part of aiosmtpd's call
        envelope: Envelope,
    ) -> str:
        """Keep the mail, unless it is refused, and answer."""
        await asyncio.sleep(self.delay)
        if self.reply.startswith("2"):
            # Maildir writes beside and renames, so that a reader never sees half a mail.
            self.box.add(envelope.original_content or b"")
        if self.drop_after_data and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return self.reply


def open_box(folder: Path) -> mailbox.Maildir:
    """Return the Maildir in `folder`, made when it is missing."""
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return mailbox.Maildir(folder, create=False)


async def serve(keeper: Keeper, host: str, port: int) -> None:
    """Listen until SIGTERM or SIGINT."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(
        lambda: SMTP(keeper, hostname="mail-sink", enable_SMTPUTF8=True, loop=loop), host, port
    )
    print(f"mail sink listens on {host}:{port}", flush=True)
    await stopped.wait()
    # Without waiting for open connections: a sender that keeps one would hold up the stop.
    server.close()


def main() -> None:
    """Read the switches and serve."""
    parser = argparse.ArgumentParser(prog="python -m local.mail_sink", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=1025, help="port to listen on (%(default)s)")
    parser.add_argument("--maildir", type=Path, required=True, help="folder that keeps the mails")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="answer a mail that late")
    parser.add_argument("--reply", type=_reply, default=ACCEPTED, help='answer a mail so: "451 try later"')
    parser.add_argument("--drop-after-data", action="store_true", help="keep the mail, then hang up")
    options = parser.parse_args()
    keeper = Keeper(open_box(options.maildir), options.delay, options.reply, options.drop_after_data)
    asyncio.run(serve(keeper, options.host, options.port))


def _reply(text: str) -> str:
    """Check that it is a reply to a mail: a code from 200 to 599 and some words."""
    if not re.fullmatch(r"[245]\d\d [ -~]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SMTP reply like '451 try later'")
    return text


if __name__ == "__main__":
    main()
