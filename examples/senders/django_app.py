"""A checkout with Django and plain Celery that does not wait: `python examples/senders/django_app.py`.

POST /orders returns the order's id; GET /orders/<id> returns its outcome. Everything is in one file to keep
the example short; a real project has the Celery app in a module of its own.
"""

import json
import os

import django
from celery import Celery
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, JsonResponse
from django.urls import path

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


def orders(request: HttpRequest) -> JsonResponse:
    """Enqueue an order line and return the id of its answer."""
    line = json.loads(request.body)
    sent = celery.send_task(
        "allocation.allocate",
        kwargs=line,
        queue="allocation.commands",
        headers={"idempotency_key": "checkout-{orderid}-{sku}-{qty}".format(**line)},
        declare=(),
    )
    return JsonResponse({"id": sent.id}, status=202)


def order(_request: HttpRequest, order_id: str) -> JsonResponse:
    """Return the outcome of an order line."""
    result = celery.AsyncResult(order_id)
    if not result.ready():
        return JsonResponse({"state": "waiting"})
    if result.failed():
        return JsonResponse({"state": "refused", "why": str(result.result)})
    return JsonResponse({"state": "done", "batchref": result.result})


urlpatterns = [path("orders", orders), path("orders/<str:order_id>", order)]

if __name__ == "__main__":
    port = os.environ.get("PORT", "8000")
    execute_from_command_line([__file__, "runserver", "--noreload", f"127.0.0.1:{port}"])
