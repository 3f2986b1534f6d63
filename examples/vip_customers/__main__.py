"""`python -m examples.vip_customers`: the operator's tool."""

from examples.vip_customers.tasks import project
from messaging.operator.cli import operator_tool

operator_tool(project, app="examples.vip_customers.tasks:app")()
