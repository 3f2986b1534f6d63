"""Two projects in one process share celeryconfig.py and nothing else."""

from examples.vip_customers.tasks import app as shop
from tasks import app as allocation


def test_both_have_the_settings_that_prevent_loss():
    for name in ("accept_content", "task_acks_late", "task_reject_on_worker_lost", "worker_consumer"):
        assert shop.conf[name] == allocation.conf[name]


def test_each_has_its_own_queues():
    assert set(shop.amqp.queues) == {"vip.commands", "vip.events", "vip.housekeeping"}
    assert not set(shop.amqp.queues) & set(allocation.amqp.queues)


def test_each_has_its_own_tasks():
    assert {"vip.create_order", "vip.update_customer_history", "vip.congratulate_vip_customer"} <= set(
        shop.tasks
    )
    assert not [name for name in shop.tasks if name.startswith("allocation.")]
    assert not [name for name in allocation.tasks if name.startswith("vip.")]


def test_each_has_its_own_schedule():
    for app, name in ((shop, "vip"), (allocation, "allocation")):
        for entry in app.conf.beat_schedule.values():
            assert entry["task"].startswith(f"{name}.")
            assert entry["options"]["queue"] == f"{name}.housekeeping"
