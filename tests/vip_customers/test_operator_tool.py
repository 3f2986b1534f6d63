"""The operator's tool of another project, on its own database."""

import os
import subprocess
import sys

import pytest

from examples.vip_customers.demo import VIP
from local import ROOT
from messaging.delivery import Status
from tests.vip_customers.shops import PostgresShop, order


@pytest.mark.parametrize("status", [*Status, "all"])
def test_deliveries_are_listed_by_each_status_in_the_help(postgres_shop: PostgresShop, status: str):
    [delivery] = postgres_shop.take(order(1))

    listed = _tool(postgres_shop, "deliveries", "list", "--status", str(status), "--json")

    assert (delivery.id in listed) is (status in {"pending", "all"})


def _tool(shop: PostgresShop, *command: str) -> str:
    environment = {**os.environ, "VIP_DATABASE_URL": shop.runtime.settings.database_url}
    tool = [sys.executable, "-m", VIP.tool, *command]
    done = subprocess.run(
        tool, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
