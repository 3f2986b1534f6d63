"""Orders and histories in PostgreSQL."""

from sqlalchemy import Engine

from examples.vip_customers.handlers import ShopUnitOfWork
from examples.vip_customers.model import History, Order
from messaging.adapters.mail import mails_of
from messaging.postgres.outbox import Outbox
from messaging.postgres.repository import PostgresRepository
from messaging.postgres.unit_of_work import Job, PostgresUnitOfWork
from messaging.settings import MessagingSettings

INSERT_ORDER = """
INSERT INTO orders VALUES (%(orderid)s, %(customer_id)s, %(placed_on)s, %(items)s, %(amount)s)"""

# The history is locked first and read afterwards, so that the read sees everything committed before the lock.
LOAD_HISTORY = """
INSERT INTO histories VALUES (%(id)s) ON CONFLICT DO NOTHING;
SELECT FROM histories WHERE customer_id = %(id)s FOR NO KEY UPDATE;
SELECT is_vip, ARRAY(SELECT orderid FROM history_orders WHERE customer_id = %(id)s AND NOT is_vip)
FROM histories WHERE customer_id = %(id)s"""

SAVE_HISTORY = """
UPDATE histories SET is_vip = %(is_vip)s WHERE customer_id = %(id)s;
INSERT INTO history_orders SELECT %(id)s, unnest(%(orders)s::text[]) ON CONFLICT DO NOTHING"""


class PostgresOrders(PostgresRepository[Order]):
    """Implements the port `Orders`."""

    def get(self, orderid: str) -> Order | None:
        rows = self.transaction.read("SELECT * FROM orders WHERE orderid = %s", (orderid,))
        return Order(*rows[0]) if rows else None

    def add(self, order: Order) -> None:
        self.transaction.write(INSERT_ORDER, vars(order))
        self.track(order)


class PostgresHistories(PostgresRepository[History]):
    """Implements the port `Histories`."""

    def get(self, customer_id: str) -> History:
        [(is_vip, orders)] = self.transaction.read(LOAD_HISTORY, {"id": customer_id})
        return self.track(History(customer_id, is_vip, set(orders)))

    def save(self) -> None:
        for history in self.seen:
            facts = {"id": history.customer_id, "is_vip": history.is_vip, "orders": list(history.orders)}
            self.transaction.write(SAVE_HISTORY, facts)


class PostgresShop(PostgresUnitOfWork, ShopUnitOfWork):
    """The unit of work of the workers."""

    def __init__(self, settings: MessagingSettings, engine: Engine, job: Job, outbox: Outbox) -> None:
        super().__init__(engine, job, outbox)
        self.orders = PostgresOrders(self.transaction)
        self.histories = PostgresHistories(self.transaction)
        self.mails = mails_of(settings, job.id, job.effects.mails)
