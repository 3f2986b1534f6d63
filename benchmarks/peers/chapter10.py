"""The design of the book's chapter 10 in a plain Celery task: the ORM loads all allocations of a product.

Source: Percival and Gregory, "Architecture Patterns with Python", chapters 7 (lock the product) and 10.
It has no inbox or outbox, so it guarantees less.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import date

from sqlalchemy import Engine, ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from benchmarks.peers.ours import celery_worker, prefork_choices
from benchmarks.peers.peer import Line, Peer, database_url
from benchmarks.peers.plain_celery import plain_app

QUEUE, SOLO_QUEUE = "chapter10", "chapter10_solo"
app = plain_app("chapter10", [QUEUE, SOLO_QUEUE], 8, 9)
_local = threading.local()


class Base(DeclarativeBase):
    """Base of the book's model, mapped to its own tables."""


class OrderLine(Base):
    """An order line; its batch is set once it is allocated."""

    __tablename__ = "book_order_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    orderid: Mapped[str] = mapped_column(index=True)
    sku: Mapped[str]
    qty: Mapped[int]
    batch_id: Mapped[int] = mapped_column(ForeignKey("book_batches.id"), index=True)


class Batch(Base):
    """A batch, whose available quantity is computed from all its lines."""

    __tablename__ = "book_batches"
    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str]
    sku: Mapped[str] = mapped_column(ForeignKey("book_products.sku"), index=True)
    purchased_quantity: Mapped[int]
    eta: Mapped[date | None]
    lines: Mapped[list[OrderLine]] = relationship()

    def can_allocate(self, line: OrderLine) -> bool:
        """Return whether the line fits."""
        return self.purchased_quantity - sum(each.qty for each in self.lines) >= line.qty


class Product(Base):
    """The aggregate."""

    __tablename__ = "book_products"
    sku: Mapped[str] = mapped_column(primary_key=True)
    version_number: Mapped[int] = mapped_column(default=0)
    batches: Mapped[list[Batch]] = relationship()

    def allocate(self, line: OrderLine) -> str | None:
        """Allocate to the soonest batch with room."""
        soonest = sorted(self.batches, key=lambda batch: (batch.eta is not None, batch.eta or date.min))
        batch = next((batch for batch in soonest if batch.can_allocate(line)), None)
        if batch is None:
            return None
        batch.lines.append(line)
        self.version_number += 1
        return batch.reference


@app.task(name="chapter10.allocate")
def allocate_task(orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line with chapter 7's lock on the product, so that no command fails on a conflict."""
    with Session(_engine()) as session:
        product = session.scalars(select(Product).where(Product.sku == sku).with_for_update()).one()
        batchref = product.allocate(OrderLine(orderid=orderid, sku=sku, qty=qty))
        session.commit()
    return batchref


def _engine() -> Engine:
    if not hasattr(_local, "engine"):
        _local.engine = create_engine(database_url().replace("postgresql:", "postgresql+psycopg2:", 1))
    engine: Engine = _local.engine
    return engine


def workers(processes: int) -> list[list[str]]:
    """One worker with a pool of child processes."""
    return [celery_worker(__name__, "chapter10", QUEUE, "prefork", processes)]


def publish(lines: Sequence[Line], queue: str = QUEUE) -> None:
    """Send by task name."""
    for line in lines:
        app.send_task("chapter10.allocate", (line.orderid, line.sku, line.qty), queue=queue)


STOCK = """
INSERT INTO book_products (sku, version_number) SELECT sku, 0 FROM products;
INSERT INTO book_batches (reference, sku, purchased_quantity)
SELECT reference, sku, purchased_quantity FROM batches
"""


def prepare() -> None:
    """Create its tables, with the same stock as the others."""
    Base.metadata.create_all(_engine())
    with _engine().begin() as connection:
        connection.exec_driver_sql(STOCK)


peer = Peer(
    "chapter10",
    "the book's chapter 10, plain Celery",
    workers,
    publish,
    counter="book_order_lines_id_seq",
    prepare=prepare,
    choices=prefork_choices(__name__, "chapter10", QUEUE),
)
