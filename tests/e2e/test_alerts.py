"""Every alert sees what it is for: its cause is made on real servers, and a real Prometheus asked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import psycopg2
import pytest

from local.ports import LOOPBACK, free_port
from local.waiting import NotInTimeError, eventually
from tests.e2e.conftest import Backend
from tests.e2e.test_groups import failing_order
from tests.e2e.test_monitoring import RULES, ask, flower, prometheus

__all__ = ["flower", "prometheus"]

#: Waits for a lock until it is killed.
LOCKS = "import psycopg2, sys; psycopg2.connect(sys.argv[1]).cursor().execute('LOCK TABLE batches')"

#: Alerts of Flower whose cause is there, or is not, when the test begins.
AT_START = {"RelayStopped", "DatabaseAway", "SessionsBlocked", "OldSnapshot", "DeadLetters"}

#: A rate needs two values.
SEEN = "count_over_time(allocation_command_seconds_count[1m]) > 1"

#: Waits are shortened to so many seconds.
SOON = re.compile(r"> (60|300|900)\b")
#: The same for alerts on work that has ended.
ENDED = {"QueueStands"}


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis, where every metric exists."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def backend(backend: Backend) -> Backend:
    """A backend whose worker serves metrics; there is no housekeeping."""
    backend.env |= {"ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}"}
    return backend


@pytest.fixture
def scraped(worker, backend: Backend, flower: str) -> tuple[str, ...]:
    """The addresses to scrape."""
    return backend.env["ALLOCATION_METRICS_ADDRESS"], flower


def firing(prometheus: str) -> set[str]:
    """Return the alerts whose expression is true, before the time that they wait."""
    return {rule["alert"] for rule in RULES if ask(prometheus, "query", query=shortened(rule))["result"]}


def shortened(rule: dict[str, str]) -> str:
    """Return an alert's query with short waits."""
    query = SOON.sub("> 2", rule["expr"])
    return query.replace("[5m]", "[5s]") if rule["alert"] in ENDED else query


def quiet(prometheus: str) -> set[str]:
    """Return the alerts that have something to wait for as they are written."""
    return {rule["alert"] for rule in RULES if ask(prometheus, "query", query=rule["expr"])["result"]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_alert_sees_its_cause(worker, backend, shop, sku, prometheus, mail_is_down):
    """All at once: nothing runs the housekeeping, mail is down, and sessions hold locks and snapshots."""
    eventually(lambda: quiet(prometheus) & AT_START == {"RelayStopped"}, 60, "the relay to be missed")
    eventually(lambda: ask(prometheus, "query", query=SEEN)["result"], 60, "two scrapes of the worker")
    url = backend.addresses.database_url.replace("+psycopg2", "")
    with ExitStack() as sessions:
        shop.ask("create_batch", ref="other", sku=f"{sku}-2", qty=1)
        holder = psycopg2.connect(url)
        sessions.callback(holder.close)
        shop.ask("allocate", orderid="none", sku=sku, qty=5)
        with failing_order(backend, "slow", "PERFORM pg_sleep(1.2)"):
            shop.ask("allocate", orderid="slow", sku=sku, qty=1)
        shop.ask("create_batch", ref="more", sku=sku, qty=9)
        with (
            failing_order(backend, "broken", "RAISE 'broken'"),
            pytest.raises(Exception, match="rejected the command"),
        ):
            shop.ask("allocate", orderid="broken", sku=sku, qty=1)
        with pytest.raises(Exception, match="nothing_like_it"):
            shop.ask("nothing_like_it")
        failed = "SELECT 1 FROM deliveries WHERE status = 'failed'"
        eventually(lambda: backend.sql(failed), 30, "a delivery that has failed")
        of_worker = {"CommandsFail", "CommandsSlow", "HandlerFails"}  # it is stopped below
        eventually(lambda: firing(prometheus) >= of_worker, 60, f"{of_worker}", every=1)
        shop.ask("allocate", orderid="many", sku=f"{sku}-2", qty=5)
        os.kill(worker.pid, signal.SIGSTOP)
        sessions.callback(os.kill, worker.pid, signal.SIGCONT)
        holder.cursor().execute("UPDATE batches SET sku = sku")  # not committed
        waits = subprocess.Popen(
            [sys.executable, "-c", LOCKS, url], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        sessions.callback(waits.wait)
        sessions.callback(waits.kill)
        headers = {"sent_at": 1_700_000_000}
        shop.app.send_task(
            "allocation.allocate", ("o", sku, 1), queue="allocation.commands", declare=(), headers=headers
        )
        left = {rule["alert"] for rule in RULES} - {"DatabaseAway", "BreakerOpen"}  # no handler has one
        with suppress(NotInTimeError):
            eventually(lambda: not left - firing(prometheus), 40, every=1)
        assert left - firing(prometheus) == set()
        assert "DatabaseAway" not in firing(prometheus)
