"""A shop with Django and a database of its own, which does not wait: `python examples/senders/django_app.py`.

Install: pip install django "$HOME/allocation"
where `$HOME/allocation` is your clone of this repository.

POST /orders writes an order, and the command to allocate it, in one transaction, and says under which id it
is known. GET /orders/<id> says what came of it. The relay is a process of its own, which sends the commands
and writes the answers into the orders: `python examples/senders/django_app.py relay_commands`. One file, so
that it is read at a glance.

With CRASHES=1, POST /orders?crash=before-commit (or after-commit) kills the shop at that moment. Start it
again: the order is not there, or it is and gets its answer.
"""

import json
import os
import signal
import sys
from typing import Any
from urllib.parse import urlencode

import django
from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.db import connection, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST

from allocation.client import Allocate, outbox
from messaging.client import Outcome

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for this example"),
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("DATABASE_FILE", "django-shop.db"),
            # Both processes write: take the lock at the beginning of a transaction, and wait for it.
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
        }
    },
    INSTALLED_APPS=["messaging.client.django"],
    COMMAND_OUTBOX={
        "OUTBOX": "allocation.client.outbox",
        "BROKER_URL": os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
        "RESULTS_URL": os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
        "ON_ANSWER": f"{__name__}.note",
    },
)
django.setup()


class Order(models.Model):  # type: ignore[misc]  # Django is untyped
    """A line of an order, with what came of it."""

    key = models.CharField(max_length=255, primary_key=True)
    state = models.CharField(max_length=20, default="waiting")
    batchref = models.CharField(max_length=255, null=True)
    why = models.CharField(max_length=2000, null=True)

    class Meta:
        """A model outside of an installed app; a real project has it in one, with a migration."""

        app_label = "shop"


def take(request: HttpRequest) -> JsonResponse:
    """Write an order and its command, or neither; whether a broker answers does not matter."""
    line = line_of(request.body)
    if line is None:
        return JsonResponse({"detail": "an order is a JSON object with orderid, sku and qty"}, status=400)
    crash = request.GET.get("crash")
    key = "checkout-" + urlencode(sorted(line.items()))
    with transaction.atomic():
        _, is_new = Order.objects.get_or_create(key=key)
        if is_new:
            outbox.send(connection, Allocate(**line), key=key)
        die_at("before-commit", crash)
    die_at("after-commit", crash)
    return JsonResponse({"id": key}, status=202)


def line_of(body: bytes) -> dict[str, Any] | None:
    """Return the order line in a request, None where it is not one."""
    try:
        line = json.loads(body)
    except ValueError:
        return None
    return line if isinstance(line, dict) and line.keys() == {"orderid", "sku", "qty"} else None


def note(outcome: Outcome, _connection: Any) -> None:
    """Write the answer into the order; the relay commits that together with the note that it is done."""
    if outcome.error:
        answer = {"state": "refused", "why": str(outcome.error)}
    else:
        answer = {"state": "done", "batchref": outcome.result}
    Order.objects.filter(key=outcome.key).update(**answer)


def look(_request: HttpRequest, key: str) -> JsonResponse:
    """Say what came of an order."""
    order = Order.objects.filter(key=key).first()
    if order is None:
        return JsonResponse({"detail": "unknown order"}, status=404)
    answer = {"state": order.state, "batchref": order.batchref, "why": order.why}
    wanted = {"waiting": ["state"], "done": ["state", "batchref"], "refused": ["state", "why"]}[order.state]
    return JsonResponse({name: answer[name] for name in wanted})


def die_at(moment: str, crash: str | None) -> None:
    """Die as by a power cut, where that is asked for and allowed."""
    if crash == moment and os.environ.get("CRASHES") == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def create_tables() -> None:
    """Create what is missing."""
    call_command("migrate", verbosity=0)
    if Order._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Order)


urlpatterns = [path("orders", require_POST(take)), path("orders/<path:key>", require_GET(look))]

if __name__ == "__main__":
    create_tables()
    port = os.environ.get("PORT", "8000")
    serve = ["runserver", "--noreload", f"127.0.0.1:{port}"]
    execute_from_command_line([__file__, *(sys.argv[1:] or serve)])
