"""A dead worker's messages go to another worker; on pytest-celery's setup of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from pytest_celery.api.backend import CeleryBackendCluster, CeleryTestBackend
from pytest_celery.api.broker import CeleryBrokerCluster, CeleryTestBroker
from pytest_celery.api.setup import CeleryTestSetup
from pytest_celery.api.worker import CeleryTestWorker, CeleryWorkerCluster
from sqlalchemy import create_engine, text

from local.processes.programs import commands_worker
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker
from tests.e2e.local_nodes import LocalServer, LocalWorker


@pytest.fixture
def celery_broker_cluster(broker: Broker) -> CeleryBrokerCluster:
    """The broker under test as pytest-celery's broker."""
    return CeleryBrokerCluster(CeleryTestBroker(LocalServer(broker.broker_url)))


@pytest.fixture
def celery_backend_cluster(broker: Broker) -> CeleryBackendCluster:
    """The result backend under test as pytest-celery's."""
    return CeleryBackendCluster(CeleryTestBackend(LocalServer(broker.result_backend_url)))


@pytest.fixture
def celery_worker_cluster(backend: Backend) -> Iterator[CeleryWorkerCluster]:
    """Two workers of two processes each."""
    children = [commands_worker(backend.folder, backend.env, 2) for _ in range(2)]
    for number, child in enumerate(children):
        child.name = f"node{number}"
        # In the debug log a message is named when it arrives, too.
        changes = {"commands@": f"node{number}@", "=INFO": "=DEBUG"}
        for old, new in changes.items():
            child.command = [part.replace(old, new) for part in child.command]
        child.log = backend.folder / f"{child.name}.log"
        child.start()
    cluster = CeleryWorkerCluster(*(CeleryTestWorker(LocalWorker(backend, c), None) for c in children))
    assert cluster.ready()
    yield cluster
    for node in cluster:
        node.teardown()


@pytest.fixture
def celery_worker_cluster_config(broker: Broker) -> dict[str, dict[str, list[str]]]:
    """The configuration of the setup's app."""
    return {
        "celery_broker_cluster_config": {"host_urls": [broker.broker_url]},
        "celery_backend_cluster_config": {"host_urls": [broker.result_backend_url]},
    }


@pytest.mark.timeout(200)
def test_a_killed_workers_command_is_carried_out_once_by_another_worker(
    celery_setup: CeleryTestSetup, backend: Backend
):
    def ask(task: str, *args: object) -> object:
        return celery_setup.app.send_task(f"allocation.{task}", args, queue="allocation.commands", declare=())

    sku = f"LAMP-{uuid4()}"
    ask("create_batch", f"batch-{sku}", sku, 10).get(timeout=30)
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as lock:
        lock.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})
        sent = ask("allocate", "order", sku, 3)
        holder = eventually(
            lambda: next((node for node in celery_setup.worker_cluster if sent.id in node.logs()), None),
            what="a worker that runs the command",
        )
        holder.kill()
    engine.dispose()

    assert sent.get(timeout=90) == f"batch-{sku}"
    [sister] = [node for node in celery_setup.worker_cluster if node is not holder]
    sister.assert_log_exists(sent.id)
    assert backend.sql("SELECT allocated_quantity FROM batches WHERE sku = :sku", sku=sku) == [(3,)]
