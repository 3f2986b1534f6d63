"""A checkout with Flask and the typed client: `python examples/senders/flask_app.py`.

Install: pip install flask "$HOME/allocation"
where `$HOME/allocation` is your clone of this repository.
"""

import os
from typing import Any
from urllib.parse import urlencode

from flask import Flask, request

from allocation.client import AllocationClient
from allocation.domain.errors import AllocationError
from messaging.client import NotAnswered
from messaging.errors import InvalidMessage, Unavailable

app = Flask(__name__)
client = AllocationClient(
    os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
    os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
)


@app.post("/orders")
def order() -> tuple[dict[str, Any], int]:
    """Allocate a line. The key is derived from the order, so a customer who clicks twice orders once."""
    line = request.get_json(silent=True)
    if not isinstance(line, dict) or set(line) != {"orderid", "sku", "qty"}:
        return {"detail": "an order is a JSON object with orderid, sku and qty"}, 400
    try:
        key = "checkout-" + urlencode(sorted(line.items()))
        batchref = client.allocate(**line, key=key)
    except (AllocationError, InvalidMessage) as refusal:
        return {"detail": str(refusal)}, 409
    except (NotAnswered, Unavailable) as error:
        return {"detail": str(error)}, 503
    return {"batchref": batchref}, 200


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")))
