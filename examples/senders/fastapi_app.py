"""A checkout with FastAPI and the typed client: `python examples/senders/fastapi_app.py`.

Install: pip install fastapi uvicorn "$HOME/allocation"
where `$HOME/allocation` is your clone of this repository.

Its functions are not `async`: FastAPI runs them in threads, so waiting blocks no other request.
"""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from allocation.client import AllocationClient
from allocation.domain.errors import AllocationError
from messaging.client import NotAnswered
from messaging.errors import InvalidMessage, Unavailable

app = FastAPI()
client = AllocationClient(
    os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
    os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
)


class Order(BaseModel):
    """A line of an order."""

    orderid: str
    sku: str
    qty: int


@app.post("/orders")
def order(line: Order) -> dict[str, Any]:
    """Allocate a line. The key is derived from the order, so a customer who clicks twice orders once."""
    try:
        batchref = client.allocate(**line.model_dump(), key=f"checkout-{line.orderid}-{line.sku}-{line.qty}")
    except (AllocationError, InvalidMessage) as refusal:
        raise HTTPException(409, str(refusal)) from None
    except (NotAnswered, Unavailable) as error:
        raise HTTPException(503, str(error)) from None
    return {"batchref": batchref}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
