"""A checkout with Django and plain Celery that does not wait: `python examples/senders/django_app.py`.

Install: pip install django "celery[redis]"

POST /orders returns the order's id; GET /orders/<id> returns its outcome. Everything is in one file to keep
the example short; a real project has the Celery app in a module of its own.
"""

import json
import os
from typing import Any

import django
from celery import Celery
from django.conf import settings
from django.core import signing
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET, require_POST
from kombu.exceptions import OperationalError

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for this example"),
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()

celery = Celery(
    broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
    backend=os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
)
# By default Celery waits 19 s for a result backend that does not answer.
celery.conf.result_backend_transport_options = {"retry_policy": {"timeout": 3}}
#: What Celery raises when the broker or the result backend does not answer.
AWAY = (OperationalError, RuntimeError, *celery.backend.connection_errors)
RESULTS_KEPT_S = 86400  # as the backend's ALLOCATION_RESULT_EXPIRES_S
FIELDS = {"orderid", "sku", "qty"}


def orders(request: HttpRequest) -> JsonResponse:
    """Enqueue an order line and return the id of its answer."""
    line = line_of(request.body)
    if line is None:
        return JsonResponse({"detail": "an order is a JSON object with orderid, sku and qty"}, status=400)
    try:
        sent = celery.send_task(
            "allocation.allocate",
            kwargs=line,
            queue="allocation.commands",
            headers={"idempotency_key": "checkout-{orderid}-{sku}-{qty}".format(**line)},
            declare=(),
        )
    except AWAY:
        return JsonResponse({"detail": "stock is unavailable, try again"}, status=503)
    return JsonResponse({"id": signing.dumps(sent.id)}, status=202)


def line_of(body: bytes) -> dict[str, Any] | None:
    """Return the line of an order, None if it is not one."""
    try:
        line = json.loads(body)
    except ValueError:
        return None
    return line if isinstance(line, dict) and set(line) == FIELDS else None


def order(_request: HttpRequest, order_id: str) -> JsonResponse:
    """Return the outcome of an order line.

    Celery calls every id without a result pending, also one that was never sent, hence the signature.
    """
    try:
        result = celery.AsyncResult(signing.loads(order_id, max_age=RESULTS_KEPT_S))
        if not result.ready():
            return JsonResponse({"state": "waiting"})
    except signing.BadSignature:
        return JsonResponse({"detail": "unknown order"}, status=404)
    except AWAY:
        return JsonResponse({"detail": "stock is unavailable, try again"}, status=503)
    if result.failed():
        return JsonResponse({"state": "refused", "why": str(result.result)})
    return JsonResponse({"state": "done", "batchref": result.result})


urlpatterns = [path("orders", require_POST(orders)), path("orders/<str:order_id>", require_GET(order))]

if __name__ == "__main__":
    port = os.environ.get("PORT", "8000")
    execute_from_command_line([__file__, "runserver", "--noreload", f"127.0.0.1:{port}"])
