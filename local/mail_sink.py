"""A mail server that keeps every mail in a Maildir and delivers none: `python -m local.mail_sink`.

Its options simulate faults: a slow server, one that rejects mail, and one that accepts a mail and then drops
the connection, so that the sender cannot know.
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
    """Handles each mail; aiosmtpd calls it."""

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
        """Store the mail unless it is to be rejected, and answer."""
        await asyncio.sleep(self.delay)
        if self.reply.startswith("2"):
            # Maildir writes a temporary file and renames it, so a reader never sees half a mail.
            self.box.add(envelope.original_content or b"")
        if self.drop_after_data and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return self.reply


def open_box(folder: Path) -> mailbox.Maildir:
    """Return the Maildir in `folder`, created if missing."""
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
    # Do not wait for open connections: a sender that keeps one would delay the stop.
    server.close()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="python -m local.mail_sink", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=1025, help="port to listen on (%(default)s)")
    parser.add_argument("--maildir", type=Path, required=True, help="folder that stores the mails")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="delay every answer")
    parser.add_argument("--reply", type=_reply, default=ACCEPTED, help='answer to a mail: "451 try later"')
    parser.add_argument("--drop-after-data", action="store_true", help="store the mail, drop the connection")
    options = parser.parse_args()
    keeper = Keeper(open_box(options.maildir), options.delay, options.reply, options.drop_after_data)
    asyncio.run(serve(keeper, options.host, options.port))


def _reply(text: str) -> str:
    """Check that it is an SMTP reply: a code from 200 to 599 and a text."""
    if not re.fullmatch(r"[245]\d\d [ -~]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an SMTP reply such as '451 try later'")
    return text


if __name__ == "__main__":
    main()
