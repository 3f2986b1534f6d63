"""A shop with FastAPI, SQLAlchemy and a database of its own: `python examples/senders/fastapi_app.py`.

Install: pip install fastapi uvicorn sqlalchemy "$HOME/allocation"
where `$HOME/allocation` is your clone of this repository.

POST /orders writes an order, and the command to allocate it, in one transaction: there is never one without
the other. A relay, here a thread, sends the command and writes the answer into the order; the request waits a
while for that. GET /orders/<key> says what came of an order, also after a restart.

With CRASHES=1, POST /orders?crash=before-commit (or after-commit) kills the shop at that moment. Start it
again: the order is not there, or it is and gets its answer.
"""

import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlencode

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from allocation.client import Allocate, outbox
from messaging.client import Outcome
from messaging.client.databases import SqlAlchemyDatabase

DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite:///fastapi-shop.db")
BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")
RESULTS_URL = os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1")
WAIT_S = 5.0

engine = create_engine(DATABASE_URL)
metadata = MetaData()
orders = Table(
    "orders",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("sku", String(255), nullable=False),
    Column("qty", Integer, nullable=False),
    Column("state", String(20), nullable=False, default="waiting"),
    Column("batchref", String(255)),
    Column("why", String(2000)),
)


class Order(BaseModel):
    """A line of an order."""

    orderid: str
    sku: str
    qty: int

    @property
    def key(self) -> str:
        """Return the order's name, the same for a customer who clicks twice."""
        return "checkout-" + urlencode(sorted(self.model_dump().items()))


def take(line: Order, crash: str | None = None) -> None:
    """Write the order and its command, or neither; IntegrityError: it is there."""
    with suppress(IntegrityError), Session(engine) as session, session.begin():
        session.execute(insert(orders).values(key=line.key, sku=line.sku, qty=line.qty))
        outbox.send(session, Allocate(line.orderid, line.sku, line.qty), key=line.key)
        die_at("before-commit", crash)
    die_at("after-commit", crash)


@outbox.on_answer
def note(outcome: Outcome, session: Session) -> None:
    """Write the answer into the order; the relay commits that together with the note that it is done."""
    if outcome.error:
        answer = {"state": "refused", "why": str(outcome.error)}
    else:
        answer = {"state": "done", "batchref": outcome.result}
    session.execute(update(orders).where(orders.c.key == outcome.key).values(**answer))


def found(session: Session, key: str) -> dict[str, Any] | None:
    """Return an order as the database has it."""
    row = session.execute(select(orders).where(orders.c.key == key)).mappings().first()
    return dict(row) if row else None


def die_at(moment: str, crash: str | None) -> None:
    """Die as by a power cut, where that is asked for and allowed."""
    if crash == moment and os.environ.get("CRASHES") == "1":
        os.kill(os.getpid(), signal.SIGKILL)


@asynccontextmanager
async def relaying(_app: FastAPI) -> AsyncIterator[None]:
    """Create the tables, and relay while the shop runs.

    `python -m allocation.client relay` does the same as a process of its own; any number may run.
    """
    metadata.create_all(engine)
    with engine.begin() as connection:
        if not inspect(connection).has_table(outbox.table.name):
            outbox.create_table(connection)
    stop = threading.Event()
    relay = outbox.relay(SqlAlchemyDatabase(engine), BROKER_URL, RESULTS_URL)
    thread = threading.Thread(target=relay.run, args=(stop,), daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join(timeout=5)


app = FastAPI(lifespan=relaying)


@app.post("/orders")
def order(line: Order, crash: str | None = None) -> dict[str, Any]:
    """Take an order and wait for its answer. A plain function: FastAPI runs it in a thread."""
    take(line, crash)
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        answer = look(line.key)
        if answer["state"] == "refused":
            raise HTTPException(409, answer["why"])
        if answer["state"] == "done":
            return {"batchref": answer["batchref"]}
        time.sleep(0.05)
    raise HTTPException(503, f"We have your order and will tell you: /orders/{line.key}")


@app.get("/orders/{key}")
def look(key: str) -> dict[str, Any]:
    """Say what came of an order."""
    with Session(engine) as session:
        there = found(session, key)
    if there is None:
        raise HTTPException(404, f"no order {key}")
    return {name: there[name] for name in ("state", "batchref", "why")}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
