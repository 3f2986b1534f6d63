"""`python -m allocation.client relay --database-url …`: send what an app's transactions have committed."""

from allocation.client import outbox
from messaging.client.tool import outbox_tool

outbox_tool(outbox).main(prog_name="python -m allocation.client")
