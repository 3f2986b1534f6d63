"""The operator's tool as a program: arguments, exit status and output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from kombu import Connection, Exchange, Queue
from sqlalchemy import create_engine, text

from local import ROOT
from local.processes import programs
from local.servers.mail_server import MailSink
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker

pytestmark = [pytest.mark.usefixtures("worker", "housekeeping"), pytest.mark.slow, pytest.mark.timeout(300)]

Tool = Callable[..., subprocess.CompletedProcess[str]]
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def broker(redis_server: Redis) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Broker(redis_server.url_of(0), redis_server.url_of(1))


@pytest.fixture
def tool(backend: Backend) -> Tool:
    """`tool("deliveries", "list", status=0)` runs the tool and returns its output."""

    def run(*arguments: str, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "allocation", *arguments],
            env={**os.environ, **backend.env}, cwd=ROOT, input=stdin, text=True, capture_output=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def failed(backend: Backend, tool: Tool) -> Callable[[str], dict]:
    """`failed(sku)` waits for the failed delivery about a product, and returns it from `list --json`."""
    query = "SELECT 1 FROM deliveries WHERE status = 'failed' AND payload->>'sku' = :sku"

    def wait(sku: str) -> dict:
        eventually(lambda: backend.sql(query, sku=sku), 60, f"a failed delivery about {sku}")
        rows = json.loads(tool("deliveries", "list", "--json").stdout)
        return next(row for row in rows if row["payload"]["sku"] == sku)

    return wait


def test_an_operator_can_find_and_rerun_a_failed_mail_with_only_the_help_texts(
    tool, shop, sku, mail_is_down, failed
):
    """Each help text leads to the next command."""
    order = shop.send("allocate", "o1", sku, 2)
    assert order.get(timeout=30) is None
    failed(sku)

    assert "deliveries " in tool("--help").stdout
    group = tool("deliveries", "--help").stdout
    assert {"list", "show", "rerun"} <= set(re.findall(r"^  (\S+)", group, re.MULTILINE))
    assert "--correlation" in tool("deliveries", "list", "--help").stdout
    listed = tool("deliveries", "list", "--correlation", order.id).stdout
    assert "failed" in listed
    assert "Connection refused" in listed
    [delivery_id] = ID.findall(listed.partition("LAMP")[0])

    story = tool("deliveries", "show", delivery_id).stdout
    assert story.startswith(f"OutOfStock(sku={sku!r})\n")
    assert f"Allocate(orderid='o1', sku={sku!r}, qty=2), task {order.id}" in story
    assert "ConnectionRefusedError" in story
    assert "Traceback" in story

    mail_is_down.start()
    assert "--wait" in tool("deliveries", "rerun", "--help").stdout
    assert "1 done." in tool("deliveries", "rerun", delivery_id, "--wait", "60").stdout

    story = tool("deliveries", "show", delivery_id).stdout
    assert re.search(r"status: +done", story)
    assert "rerun by " in story
    assert f"<{delivery_id}.1@example.com>" in mail_is_down.mails.message_ids()


def test_a_done_delivery_is_never_rerun(tool, shop, sku, backend, module_mail):
    order = shop.send("allocate", "o1", sku, 2)
    [[delivery_id]] = eventually(
        lambda: backend.sql(
            "SELECT id::text FROM deliveries WHERE correlation_id = :id AND status = 'done'", id=order.id
        ),
        60,
    )
    mails = len(module_mail.mails)

    said = tool("deliveries", "rerun", delivery_id, status=1).stdout

    assert f"{delivery_id} is done: left unchanged." in said
    assert len(module_mail.mails) == mails


def test_a_dry_run_shows_what_would_happen_and_changes_nothing(tool, shop, sku, mail_is_down, failed):
    shop.ask("allocate", "o1", sku, 2)
    row = failed(sku)

    said = tool("deliveries", "rerun", "--handler", row["handler"], "--dry-run").stdout

    assert re.search(r"1 +OutOfStock +send_out_of_stock_notification", said)
    assert "would be re-run" in said
    assert failed(sku)["reruns"] == row["reruns"]
    tool("deliveries", "discard", row["id"], "--reason", "a test")


def test_a_rerun_needs_ids_a_filter_or_all(tool):
    assert "--all" in tool("deliveries", "rerun", status=2).stderr


def test_a_discarded_delivery_has_its_reason(tool, shop, sku, mail_is_down, failed):
    shop.ask("allocate", "o1", sku, 2)
    row = failed(sku)

    tool("deliveries", "discard", row["id"], "--reason", "nobody reads it")

    story = tool("deliveries", "show", row["id"]).stdout
    assert re.search(r"status: +discarded", story)
    assert "nobody reads it" in story


def test_an_edited_copy_records_its_original(tool, shop, sku, mail_is_down, failed):
    shop.ask("allocate", "o1", sku, 2)
    row = failed(sku)
    other = f"{sku}-2"
    mail_is_down.start()

    said = tool("deliveries", "edit", row["id"], f"sku={other}").stdout

    copy_id = next(found for found in ID.findall(said.replace(other, "")) if found != row["id"])
    eventually(lambda: f"<{copy_id}.1@example.com>" in mail_is_down.mails.message_ids(), 60)
    story = tool("deliveries", "show", copy_id).stdout
    assert re.search(rf"copied from: +{row['id']}", story)
    assert copy_id in tool("deliveries", "show", row["id"]).stdout
    assert "is discarded" in tool("deliveries", "edit", row["id"], "sku=x", status=1).stderr


def test_stats_count_by_state_and_handler(tool, shop, sku, backend):
    shop.ask("allocate", "o1", sku, 2)

    eventually(lambda: backend.sql("SELECT 1 FROM deliveries WHERE status = 'done'"), 60)

    counts = json.loads(tool("deliveries", "stats", "--json").stdout)["deliveries"]
    assert "send_out_of_stock_notification" in {row["handler"] for row in counts if row["status"] == "done"}
    assert "oldest pending" in tool("deliveries", "stats").stdout


def test_a_dead_letter_is_listed_shown_and_replayed_once_its_task_exists(tool, shop, backend):
    result = shop.send("not_yet_known", sku="LAMP")
    with pytest.raises(Exception, match="not_yet_known"):
        result.get(timeout=30)

    [letter] = [
        letter
        for letter in json.loads(tool("dead-letters", "list", "--json").stdout)
        if letter["task_id"] == result.id
    ]
    assert letter["reason"] == "unknown task"
    assert '"sku": "LAMP"' in tool("dead-letters", "show", letter["id"]).stdout
    assert "would come back" in tool("dead-letters", "replay", letter["id"], status=1).stdout

    # The code is fixed: the same message now names an existing task.
    backend.sql(
        "UPDATE dead_letters SET task = 'allocation.create_batch',"
        " headers = replace(headers::text, 'not_yet_known', 'create_batch')::json,"
        " body = convert_to(:body, 'UTF8') WHERE id = CAST(:id AS uuid) RETURNING 1",
        id=letter["id"], body=json.dumps([[], {"ref": f"b-{result.id}", "sku": "LAMP", "qty": 3}, {}]),
    )  # fmt: skip
    tool("dead-letters", "replay", letter["id"])

    eventually(lambda: backend.sql("SELECT 1 FROM inbox WHERE task_id = :id", id=result.id), 60)
    assert "has already been replayed" in tool("dead-letters", "replay", letter["id"], status=1).stdout
    assert letter["id"] not in tool("dead-letters", "list").stdout


def test_a_dead_letter_is_discarded_with_a_reason(tool, shop):
    result = shop.send("nonsense")
    with pytest.raises(Exception, match="nonsense"):
        result.get(timeout=30)
    [letter] = [
        letter
        for letter in json.loads(tool("dead-letters", "list", "--json").stdout)
        if letter["task_id"] == result.id
    ]

    tool("dead-letters", "discard", letter["id"], "--reason", "a typing error")

    assert "a typing error" in tool("dead-letters", "show", letter["id"]).stdout


def test_check_finds_everything_in_order(tool):
    eventually(lambda: tool("check"), 60, "everything in order", every=1)
    assert all(finding["ok"] for finding in json.loads(tool("check", "--json").stdout))


def test_check_takes_the_rota_of_several_workers_for_no_queue(tool, backend, broker):
    names = ("second", "third", "fourth")
    workers = [programs.worker(name, programs.WORK_QUEUES, backend.folder, backend.env, 1) for name in names]
    with ExitStack() as stack, redis.Redis.from_url(broker.broker_url) as client:
        for worker in workers:
            stack.callback(worker.stop)
            worker.start()
        eventually(lambda: list(client.scan_iter("*unacked_rota*", _type="list")), 60, "a worker that sleeps")

        assert "no worker reads" not in tool("check").stdout


def test_check_says_what_is_wrong_and_what_to_do(tool, mail_is_down):
    said = tool("check", status=1).stdout

    assert re.search(r"mail +wrong", said)
    assert "ALLOCATION_SMTP_URL" in said


def test_an_unavailable_server_is_named_without_a_traceback(tool, backend):
    backend_env, backend.env["ALLOCATION_DATABASE_URL"] = (
        dict(backend.env),
        "postgresql+psycopg2://u@127.0.0.1:1/x",
    )
    try:
        said = tool("deliveries", "list", status=3).stderr
    finally:
        backend.env.update(backend_env)

    assert said.startswith("Error: The database")
    assert "Traceback" not in said


def test_an_invalid_setting_is_named_without_its_value(tool, backend):
    backend.env["ALLOCATION_RELAY_BATCH"] = "s3cret"
    try:
        said = tool("check", status=1).stdout + tool("deliveries", "list", status=1).stderr
    finally:
        del backend.env["ALLOCATION_RELAY_BATCH"]

    assert said.count("ALLOCATION_RELAY_BATCH") == 2
    assert "s3cret" not in said


def test_a_logged_command_can_be_replayed(tool, shop):
    sku = f"LAMP-{uuid4()}"
    line = (
        f"[x] Handling CreateBatch(ref='b-{sku}', sku='{sku}', qty=5, eta=datetime.date(2031, 1, 2)) with add"
    )

    tool("replay", line)
    said = tool("replay", "-", stdin=f"Allocate(orderid='o1', sku='{sku}', qty=3)").stdout

    assert f"'b-{sku}'" in said
    assert re.search(rf"b-{sku} +5 +3 +2 +2031-01-02", tool("stock", sku).stdout)


def test_a_logged_event_is_replayed_to_its_handlers(tool, module_mail):
    said = tool("replay", "OutOfStock(sku='BY-HAND')").stdout

    [delivery_id] = ID.findall(said)
    eventually(lambda: f"<{delivery_id}.1@example.com>" in module_mail.mails.message_ids(), 60)


def test_commands_print_results_and_named_refusals(tool):
    sku = f"LAMP-{uuid4()}"

    tool("create-batch", f"b-{sku}", sku, "10", "--eta", "2031-01-02")
    assert f"'b-{sku}'" in tool("allocate", "o1", sku, "4").stdout
    tool("change-batch-quantity", f"b-{sku}", "20")

    assert re.search(rf"b-{sku} +20 +4 +16 +2031-01-02", tool("stock", sku).stdout)
    assert "InvalidSku: Invalid sku NONE" in tool("allocate", "o1", "NONE", "4", status=1).stderr
    assert "qty must be a whole number" in tool("allocate", "o1", sku, "x", status=1).stderr
    assert "Invalid sku NONE" in tool("stock", "NONE", status=1).stderr


def test_an_interrupted_rerun_reports_what_is_done_and_leaves_the_rest_failed(backend):
    backend.sql(
        """INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s,
               correlation_id, causation_id, finished_at, last_error)
           SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{"sku": "MANY"}',
               'send_out_of_stock_notification', 'failed', now(), 1, 'many', 'many', now(), 'an outage'
           FROM generate_series(1, 100) RETURNING 1"""
    )
    states = "SELECT count(*) FROM deliveries WHERE correlation_id = 'many' AND status = 'failed'"
    command = [
        sys.executable,
        "-m",
        "allocation",
        "deliveries",
        "rerun",
        "--correlation",
        "many",
        "--rate",
        "4",
    ]
    with start(command, backend) as rerun:
        eventually(lambda: backend.sql(states)[0][0] < 95, 60, "the first re-runs")
        rerun.send_signal(signal.SIGINT)
        _, said = rerun.communicate(timeout=60)

    assert rerun.returncode == 130, said
    [(left,)] = backend.sql(states)
    assert 0 < left < 95
    assert f"Interrupted: {100 - left} of 100 were requeued" in said
    backend.sql("DELETE FROM deliveries WHERE correlation_id = 'many' RETURNING 1")


def start(command: list[str], backend: Backend) -> subprocess.Popen[str]:
    """Start the tool so that it receives Ctrl-C, even if this suite runs in the background."""
    return subprocess.Popen(
        command,
        env={**os.environ, **backend.env},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # Background jobs of a shell ignore SIGINT, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def orders_file(folder: Path, sku: str, lines: int, bad: int = 0) -> Path:
    """Write orders of one piece each, then some with the quantity 0."""
    rows = [f"2026-01-01,o{n},{sku},{0 if n >= lines else 1}" for n in range(lines + bad)]
    file = folder / "orders.csv"
    file.write_text("at,orderid,sku,qty\n" + "\n".join(rows) + "\n")
    return file


def test_files_are_loaded_and_refused_lines_reported(tool, tmp_path):
    sku = f"LAMP-{uuid4()}"
    batches = tmp_path / "batches.csv"
    batches.write_text(f"ref,sku,qty,eta\nb-{sku},{sku},50,\n")

    tool("load", str(batches))
    refused = tmp_path / "refused.txt"
    said = tool(
        "load", str(orders_file(tmp_path, sku, 40, bad=2)), "--refused", str(refused), status=1
    ).stdout

    assert "40 Allocate carried out, 2 refused." in said
    assert "qty must be at least 1" in said
    assert refused.read_text().startswith(f"42: 2026-01-01,o40,{sku},0: InvalidMessage: qty")
    assert re.search(r"total +50 +40 +10", tool("stock", sku).stdout)


def test_lines_that_were_refused_before_their_stock_came_are_carried_out_when_loaded_again(tool, tmp_path):
    sku = f"LAMP-{uuid4()}"
    batches, orders = tmp_path / "batches.csv", orders_file(tmp_path, sku, 40)
    batches.write_text(f"ref,sku,qty,eta\nb-{sku},{sku},50,\n")

    refused = tool("load", str(orders), status=1).stdout
    tool("load", str(batches))
    carried_out = tool("load", str(orders)).stdout

    assert "0 Allocate carried out, 40 refused." in refused
    assert "40 Allocate carried out, 0 refused." in carried_out
    assert re.search(r"total +50 +40 +10", tool("stock", sku).stdout)


def test_a_file_that_is_no_csv_is_refused_by_name(tool, tmp_path):
    file = tmp_path / "orders.csv"
    for content in b"orderid,sku,qty\no1,L\xe4MP,1\n", b"orderid,sku,qty\no1," + b"x" * 200_000 + b",1\n":
        file.write_bytes(content)

        assert "file cannot be read as CSV in UTF-8" in tool("load", str(file), status=1).stderr


def test_a_line_with_more_values_than_columns_is_refused(tool, tmp_path):
    """A quantity of 1,000 without quotes was loaded as 1."""
    file = tmp_path / "orders.csv"
    file.write_text("orderid,sku,qty\no1,LAMP,1,000\n")

    said = tool("load", str(file), status=1).stdout

    assert re.search(r"o1,LAMP,1,000 +the line has more values than", said)


def test_an_interrupted_load_can_be_continued(tool, tmp_path, backend):
    sku = f"LAMP-{uuid4()}"
    tool("create-batch", f"b-{sku}", sku, "5000")
    file = orders_file(tmp_path, sku, 1000)
    command = [sys.executable, "-m", "allocation", "load", str(file)]
    with start(command, backend) as load:
        done = "SELECT allocated_quantity FROM batches WHERE sku = :sku"
        eventually(lambda: backend.sql(done, sku=sku)[0][0] > 20, 60, "the first lines")
        load.send_signal(signal.SIGINT)
        _, said = load.communicate(timeout=60)
        assert load.returncode == 130, said
    assert "of 1,000 lines are answered" in said

    for _ in "again", "once more":
        assert "1,000 Allocate carried out, 0 refused." in tool("load", str(file)).stdout

    assert backend.sql(done, sku=sku) == [(1000,)]
    answers = "SELECT count(*) FROM inbox WHERE command LIKE 'Allocate%' || :sku || '%'"
    assert backend.sql(answers, sku=sku) == [(1000,)]


def test_check_names_a_mistyped_queue_that_no_worker_reads(tool, shop, backend, broker):
    shop.app.send_task("allocation.allocate", queue="allocation.comands", declare=())
    shop.app.send_task("allocation.allocate", queue="alocation.commands")
    try:
        said = tool("check", status=1).stdout
    finally:
        broker.lose("allocation.comands")
        broker.lose("alocation.commands")

    assert re.search(r"queues +wrong", said)
    assert "no worker reads allocation.comands (1), alocation.commands (1)" in said
    assert "commands belong in allocation.commands" in said
    assert not re.search(r"queues +wrong", what_check_says(tool))


def test_check_does_not_report_the_queue_of_a_listener(tool, broker):
    queue = Queue("shop.news", Exchange("allocation.events", type="topic"), routing_key="OutOfStock")
    with Connection(broker.broker_url) as connection:
        queue(connection).declare()
        connection.Producer().publish({}, routing_key="shop.news")
        try:
            said = what_check_says(tool)
        finally:
            queue(connection).delete()

    assert re.search(r"queues +ok +waiting: shop.news \(1\)", said)


def test_trace_tells_the_whole_story_of_an_order(tool, shop, sku, mail_is_down, failed):
    sent = shop.send("allocate", orderid="o1", sku=sku, qty=2)
    sent.get(timeout=30)
    row = failed(sku)
    mail_is_down.start()
    tool("deliveries", "rerun", row["id"], "--wait", "30")

    lines = tool("trace", sent.id).stdout.splitlines()
    by_delivery = tool("trace", row["id"]).stdout.splitlines()

    assert lines == by_delivery
    story = [re.sub(r"^[ │├└─]*", "", line) for line in lines[2:]]
    assert story[0].startswith(f"+0.000 s  Allocate(orderid='o1', sku='{sku}', qty=2): None  done")
    assert re.match(rf"\+\d\.\d+ s  OutOfStock\(sku='{sku}'\)", story[1])
    assert f"send_out_of_stock_notification, delivery {row['id']}  done" in story[2]
    assert [("failed  ConnectionRefusedError" in line, f"attempt {n} on" in line) for n, line in
            enumerate(story[3:6], 1)] == [(True, True)] * 3  # fmt: skip
    assert "rerun by" in story[6]
    assert "attempt 1 after re-run 1 on" in story[7]
    assert f"mail <{row['id']}.1@example.com>  sent" in story[8]
    assert json.loads(tool("trace", sent.id, "--json").stdout)["correlation_id"] == sent.id


def test_trace_of_one_command_of_many_is_that_of_its_message(tool, shop, sku):
    """The log and Flower name the command; its events belong to the message."""
    order = ["allocation.allocate", {"orderid": "o1", "sku": sku, "qty": 5}]
    sent = shop.send("many", [order, order])
    sent.get(timeout=30)

    def told(message_id: str) -> str:
        return str(tool("trace", message_id).stdout)

    # Between the two an event may be published, or a mail sent.
    eventually(lambda: told(f"{sent.id}.1") == told(sent.id), what="the same from both")
    assert told(sent.id).count("send_out_of_stock_notification, delivery") == 2
    steps = json.loads(tool("trace", sent.id, "--json").stdout)["steps"]
    events = [event for command in steps for event in command["steps"]]
    assert [event["at"] <= event["steps"][0]["at"] for event in events] == [True, True]


def test_trace_tells_of_a_refusal_and_of_what_is_unknown(tool, shop, sku):
    sent = shop.send("allocate", orderid="o1", sku=f"no {sku}", qty=2)
    sent.get(timeout=30, propagate=False)

    assert f"refused  InvalidSku: Invalid sku no {sku}" in tool("trace", sent.id).stdout
    assert tool("trace", "nobody's", status=1).stderr == "Error: Nothing is stored about nobody's\n"


def test_check_names_a_listener_that_stopped(tool, broker):
    queue = Queue("shop.news", Exchange("allocation.events", type="topic"), routing_key="OutOfStock")
    with Connection(broker.broker_url) as connection:
        queue(connection).declare()
        connection.Producer().publish({"time": "2026-01-01T00:00:00+00:00"}, routing_key="shop.news")
        try:
            said = what_check_says(tool)
        finally:
            queue(connection).delete()

    assert re.search(
        r"listeners +look +nobody takes the events in shop.news \(1, the oldest \d+ s old\)", said
    )


def test_check_names_the_session_whose_locks_others_wait_for(tool, backend, sku):
    query = "SELECT FROM products WHERE sku = :sku FOR UPDATE"
    engine = create_engine(
        backend.addresses.database_url, connect_args={"application_name": "forgotten psql"}
    )
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as holder:
            holder.execute(text(query), {"sku": sku})
            waiting = pool.submit(backend.sql, query.replace("SELECT", "SELECT 1"), sku=sku)
            said = eventually(
                lambda: next((s for s in [tool("check", status=1).stdout] if "forgotten" in s), None),
                60,
                "it",
            )
        waiting.result(30)
    engine.dispose()

    assert re.search(r"locks +wrong +session \d+ of allocation \(forgotten psql\)", said)
    assert "idle in transaction" in said
    assert "pg_terminate_backend" in said


def test_check_names_failed_deliveries_and_open_dead_letters(tool, shop, sku, mail_is_down, failed):
    shop.ask("allocate", "o1", sku, 2)
    row = failed(sku)
    shop.app.send_task("allocation.no_such_task", queue="allocation.commands", declare=())
    eventually(lambda: json.loads(tool("dead-letters", "list", "--json").stdout), 60, "a dead letter")
    mail_is_down.start()

    said = what_check_says(tool)

    assert re.search(r"deliveries +look +failed: send_out_of_stock_notification \(\d+\)", said)
    assert re.search(r"dead letters +look +waiting: unknown task \(\d+\)", said)
    tool("deliveries", "discard", row["id"], "--reason", "a test")


def what_check_says(tool: Tool) -> str:
    """Return the output of `check` once everything works."""
    return str(eventually(lambda: tool("check"), 60, "everything in order", every=1).stdout)


def test_out_of_stock_is_printed_in_words_and_is_null_in_json(tool, shop, sku):
    created = tool("create-batch", f"b2-{sku}", sku, "1").stdout
    assert created.endswith(": done (None)\n")

    assert tool("allocate", "o9", sku, "5000").stdout.endswith(": out of stock (None)\n")
    assert json.loads(tool("allocate", "o9", sku, "5000", "--json").stdout)["result"] is None


def test_a_harmless_repeat_is_not_logged_as_a_refusal(tool, backend, worker, sku):
    line = ("allocate", "o10", sku, "1", "--idempotency-key", f"again-{sku}")
    with ThreadPoolExecutor(4) as pool:
        answers = {done.stdout for done in pool.map(lambda _: tool(*line), range(4))}
    answers.add(tool(*line).stdout)
    tool("allocate", "o10", sku, "1")  # the same line under another key

    assert len(answers) == 1
    about_it = [logged for logged in worker.log_text().splitlines() if sku in logged]
    assert not [logged for logged in about_it if "Refused" in logged or "WARNING" in logged]
    assert "UniqueViolation" not in worker.log_text()


def test_a_paused_handler_says_who_when_and_why_until_it_is_resumed(
    backend: Backend, tool: Tool, module_mail: MailSink
):
    handler = "send_out_of_stock_notification"
    tool("deliveries", "pause", handler, "--reason", "moving the server")
    tool("create-batch", "batch-paused", "PAUSED-LAMP", "1")
    tool("allocate", "order-paused", "PAUSED-LAMP", "2")

    def waits() -> dict:
        [row] = json.loads(tool("deliveries", "list", "--status", "waiting", "--json").stdout)
        return row

    row = eventually(waits, 60, "a waiting delivery", every=0.5)
    assert row["attempts"] == 0
    assert re.search(
        r"paused: send_out_of_stock_notification, by .* since .*: moving the server", row["waits"]
    )
    assert "Paused: " in tool("deliveries", "list").stdout
    assert "moving the server" in tool("deliveries", "show", row["id"]).stdout
    assert "moving the server" in tool("deliveries", "pauses").stdout
    assert "Already paused" in tool("deliveries", "pause", handler, "--reason", "again", status=1).stderr
    assert re.search(r"deliveries +look +paused: .*moving the server", tool("check").stdout)

    tool("deliveries", "resume", handler)
    eventually(lambda: f"<{row['id']}.1@example.com>" in module_mail.mails.message_ids(), 60, "the mail")
    assert "Nothing is paused." in tool("deliveries", "pauses").stdout
