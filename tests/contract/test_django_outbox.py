"""The table of commands as a Django app: its migration, sending within `atomic`, and its admin page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.urls import path

from allocation.client import Allocate, outbox
from messaging.client.answers import Outcome
from messaging.client.connections import NoTransaction, statements
from messaging.client.databases import DjangoDatabase

NOTED: list[Outcome] = []


def note(outcome: Outcome, _connection: Any) -> None:
    """Take note of an answer."""
    NOTED.append(outcome)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Django project with the app and the admin, on SQLite."""
    file: Path = tmp_path_factory.mktemp("django") / "shop.db"
    settings.configure(
        SECRET_KEY="not-a-secret",
        ALLOWED_HOSTS=["testserver"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}},
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "messaging.client.django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        ROOT_URLCONF=__name__,
        STATIC_URL="static/",
        USE_TZ=True,
        COMMAND_OUTBOX={
            "OUTBOX": "allocation.client.outbox",
            "BROKER_URL": "redis://127.0.0.1:1/0",
            "RESULTS_URL": "redis://127.0.0.1:1/1",
            "ON_ANSWER": f"{__name__}.note",
        },
    )
    django.setup()
    from django.contrib import admin

    urlpatterns.append(path("admin/", admin.site.urls))
    call_command("migrate", verbosity=0)
    yield
    connection.close()


urlpatterns: list[Any] = []


@pytest.fixture
def empty(project: None) -> Iterator[None]:
    """No command in the table."""
    from messaging.client.django.models import QueuedCommand

    QueuedCommand.objects.all().delete()
    yield
    connection.close()


def answer(key: str) -> None:
    """Have a command answered."""
    with transaction.atomic():
        run = statements(connection)
        entry = outbox.table.find(run, key)
        assert entry is not None
        outbox.table.claim(run, "m1", 100, 60)
        outbox.table.answer(run, {entry.position: '{"result": "b1"}'}, handled=False)


def test_the_migration_and_the_models_agree(project):
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_a_command_is_there_if_the_block_commits(empty):
    from messaging.client.django.models import QueuedCommand

    with transaction.atomic():
        outbox.send(connection, Allocate("o1", "LAMP", 2), key="a")
    with transaction.atomic():
        outbox.send(connection, Allocate("o2", "LAMP", 2), key="b")
        transaction.set_rollback(True)

    [command] = QueuedCommand.objects.all()
    assert (str(command), command.task, command.state) == ("a", "allocation.allocate", "unsent")


def test_sending_outside_of_a_block_is_refused(empty):
    with pytest.raises(NoTransaction, match=r"transaction\.atomic"):
        outbox.send(connection, Allocate("o1", "LAMP", 2), key="a")


def test_the_management_command_shows_what_waits(empty, capsys):
    with transaction.atomic():
        outbox.send(connection, Allocate("o1", "LAMP", 2), key="a")

    call_command("relay_commands", "--status", stdout=io.StringIO())

    assert "unsent 1\nunanswered 0\nunhandled 0\n" in capsys.readouterr().out


def test_a_relays_transaction_is_djangos(empty):
    database = DjangoDatabase()

    with database.transaction() as run:
        assert run.in_atomic_block
    database.close()


def test_an_error_that_a_note_hides_keeps_nobody_waiting(empty):
    """Django refuses every later query of the transaction."""
    from messaging.client.django.models import QueuedCommand

    for key in "ab":
        with transaction.atomic():
            outbox.send(connection, Allocate(key, "LAMP", 2), key=key)
    for key in "ab":
        answer(key)

    def note(outcome: Outcome, _connection: Any) -> None:
        if outcome.key == "a":
            with suppress(IntegrityError):
                QueuedCommand.objects.create(idempotency_key="b", created_at=0, due_at=0)

    relay = outbox.relay(DjangoDatabase(), "memory://", "disabled://", on_answer=note)
    for _ in "ab":
        relay.step()

    states = {command.idempotency_key: command.state for command in QueuedCommand.objects.all()}
    assert states == {"a": "answered", "b": "handled"}


@pytest.fixture
def operator(empty: None) -> Client:
    """A browser that is logged in."""
    from django.contrib.auth.models import User

    user, _ = User.objects.get_or_create(username="operator", is_staff=True, is_superuser=True)
    browser = Client()
    browser.force_login(user)
    return browser


def test_the_admin_page_shows_commands_and_sends_again(operator):
    from messaging.client.django.models import QueuedCommand

    for key in ("a", "b"):
        with transaction.atomic():
            outbox.send(connection, Allocate(key, "LAMP", 2), key=f"order-{key}")
    answer("order-a")
    page = "/admin/command_outbox/queuedcommand/"

    listed = operator.get(page, {"state": "answered"}).content.decode()
    assert "order-a" in listed
    assert "order-b" not in listed

    chosen = [command.position for command in QueuedCommand.objects.all()]
    sent = operator.post(page, {"action": "send_again", "_selected_action": chosen}, follow=True)
    assert "1 will be sent again." in sent.content.decode()
    assert {command.state for command in QueuedCommand.objects.filter(idempotency_key="order-a")} == {
        "unsent"
    }

    one = operator.get(f"{page}{chosen[0]}/change/").content.decode()
    assert "order-a" in one
    assert 'name="_save"' not in one
    assert operator.get(f"{page}add/").status_code == 403
    assert operator.get(f"{page}{chosen[0]}/delete/").status_code == 403
