"""docs/how-to/your-own-project.md, followed word for word in an empty folder, with the test's addresses."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import ROOT
from local.processes.child import Child
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from local.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (ROOT / "docs" / "how-to" / "your-own-project.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code: shell commands, a file with its name in the first line, or an output."""

    language: str
    text: str

    @property
    def file(self) -> str:
        return self.text.splitlines()[0].removeprefix("# ")


BLOCKS = [Block(*found) for found in BLOCK.findall(PAGE)]


@pytest.fixture
def addresses(postgres: Postgres, redis_server: Redis, mail_sink: MailSink) -> dict[str, str]:
    """The page's addresses, and those used here."""
    return {
        '"$HOME/allocation[': f'"{ROOT}[',
        "127.0.0.1:5490": f"127.0.0.1:{postgres.port}",
        "127.0.0.1:6390": f"127.0.0.1:{redis_server.port}",
        "127.0.0.1:1025": f"127.0.0.1:{mail_sink.port}",
    }


@pytest.fixture
def reader(tmp_path: Path, addresses: dict[str, str], mail_sink: MailSink) -> Iterator[Child]:
    """A reader who types the page's commands, in order, into a shell in an empty folder.

    The reader waits for the mails with the tickets before listing the deliveries.
    """
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    look = f"until [ \"$(ls '{mail_sink.mails.folder}/new' | wc -l)\" -ge 2 ]; do sleep 0.2; done\n"
    typed = [_typed(block, addresses) for block in BLOCKS]
    asking = next(number for number, text in enumerate(typed) if "deliveries list" in text)
    script = tmp_path / "typed.sh"
    script.write_text("\n".join(["set -eum", *typed[:asking], look, *typed[asking:]]))
    # Its python3 is the tests' own, and this checkout is not on its path.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    child = Child("reader", ["bash", str(script)], log=tmp_path / "reader.log", cwd=folder, env=env)
    child.start()
    yield child
    child.stop()


def test_the_page_works_when_followed_to_the_letter(reader: Child, mail_sink: MailSink):
    eventually(lambda: not reader.running, 240, "the end of the page")

    printed = reader.log_text()
    worker_log = (reader.cwd / "worker.log").read_text()
    assert reader.exit_code == 0, f"{printed}\n{worker_log}"
    for block in BLOCKS:
        assert block.language != "text" or block.text in printed, printed
    assert "mail_ticket" in printed
    tickets = {(mail["To"], mail["Subject"]) for mail in mail_sink.mails.all()}
    assert tickets == {
        ("harry@example.com", "Your ticket for seat 7"),
        ("sally@example.com", "Your ticket for seat 8"),
    }


def test_the_page_has_little_to_type():
    lines = sum(len(block.text.splitlines()) for block in BLOCKS if block.language == "python")

    assert lines < 200


@pytest.mark.parametrize("path", re.findall(r"`((?:examples|tests|messaging)/[\w/.]+)`", PAGE))
def test_everything_that_the_page_names_exists(path: str):
    assert (ROOT / path).exists()


def _typed(block: Block, addresses: dict[str, str]) -> str:
    """Return a block's shell commands: files are written, commands are run."""
    if block.language == "python":
        return f"cat > {block.file} <<'END OF FILE'\n{block.text}END OF FILE\n"
    if block.language == "bash":
        text = block.text
        for written, here in addresses.items():
            text = text.replace(written, here)
        return text
    return ""


def test_every_block_of_python_is_a_file_that_compiles():
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.file, "exec")
            assert re.fullmatch(r"(cinema/)?[\w/]+\.py", block.file)
