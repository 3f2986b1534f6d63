"""Our pages in Flower, in a real browser: a failed event is shown, re-run by a button, and done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis
from tornado.web import create_signed_value

from local import ROOT
from local.ports import LOOPBACK, free_port
from local.processes import programs, readiness
from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.e2e.browser import chromium
from tests.e2e.conftest import Backend, Broker, Shop
from tests.e2e.web import Answer, request
from tests.paused import paused

pytestmark = [pytest.mark.usefixtures("worker", "housekeeping"), pytest.mark.slow, pytest.mark.timeout(300)]

#: The folder for new screenshots of the documentation, if requested.
SCREENSHOTS = os.environ.get("ALLOCATION_SCREENSHOTS")
LOGIN = "operator:secret"
WITH_LOGIN = {"FLOWER_BASIC_AUTH": LOGIN}


@pytest.fixture(scope="module")
def broker(redis_server: Redis) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Broker(redis_server.url_of(0), redis_server.url_of(1))


@pytest.fixture(scope="module")
def flower(backend: Backend) -> Iterator[str]:
    """Return the address of a Flower with a login."""
    port = free_port()
    env = {**backend.env, **WITH_LOGIN}
    child = programs.flower(backend.folder, env, port)
    child.start()
    yield wait_for_flower(child, port)
    child.stop()


def wait_for_flower(child: Child, port: int) -> str:
    """Wait until it answers, and return its address."""

    def answers() -> bool:
        assert child.running, child.log_tail()
        return readiness.flower_answers(port)

    eventually(answers, 60, "an answer from Flower")
    return f"http://{LOOPBACK}:{port}"


@pytest.fixture(scope="module")
def browser():
    """Return a browser with the login."""
    with chromium(LOGIN) as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A new tab."""
    page = browser.new_page()
    yield page
    page.close()


def screenshot(page, name: str) -> None:
    """Take a screenshot for the documentation, if asked to."""
    if SCREENSHOTS:
        page.screenshot(path=ROOT / SCREENSHOTS / f"{name}.png")


@pytest.fixture
def sku(shop: Shop) -> str:
    """The test's own product, with one piece in stock."""
    sku = f"LAMP-{uuid4().hex[:8]}"
    shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=1)
    return sku


@pytest.fixture
def fail_for(shop, backend, sku, module_mail) -> Iterator[Callable[[str], str]]:
    """A function that makes an order's event fail, restores mail and returns the delivery's id."""

    def fail(orderid: str) -> str:
        module_mail.stop()
        order = shop.send("allocate", orderid, sku, 2)
        query = "SELECT id::text FROM deliveries WHERE correlation_id = :id AND status = 'failed'"
        [[delivery_id]] = eventually(lambda: backend.sql(query, id=order.id), 60, "a failed delivery")
        module_mail.start()
        return delivery_id

    yield fail
    if not module_mail.running:
        module_mail.start()
    backend.sql(
        "UPDATE deliveries SET status = 'discarded', finished_at = now() WHERE status = 'failed' RETURNING 1"
    )


def status_of(backend: Backend, delivery_id: str) -> str:
    """Return a delivery's state."""
    return backend.sql("SELECT status FROM deliveries WHERE id = CAST(:id AS uuid)", id=delivery_id)[0][0]


def test_a_failed_event_is_rerun_by_a_button_and_seen_done(page, flower, fail_for, module_mail, sku):
    delivery_id = fail_for("o1")

    page.goto(f"{flower}/")
    page.get_by_role("link", name="Deliveries").click()
    row = page.locator(f"tr[data-id='{delivery_id}']")
    assert f"OutOfStock(sku='{sku}')" in row.inner_text()
    assert "Connection refused" in row.inner_text()
    screenshot(page, "flower-deliveries")

    row.get_by_role("link").click()
    screenshot(page, "flower-delivery")
    page.locator("summary").first.click()
    assert "ConnectionRefusedError" in page.locator("pre").first.inner_text()
    assert f"Allocate(orderid='o1', sku='{sku}', qty=2)" in page.locator("main").inner_text()
    page.get_by_role("button", name="Re-run").click()
    assert "1 requeued and sent." in page.locator("#said").inner_text()

    def is_done() -> bool:
        page.reload()
        return page.locator("#state").inner_text() == "done"

    eventually(is_done, 60, "the state done on the page", every=0.5)
    assert "operator in Flower" in page.locator("main").inner_text()
    assert f"<{delivery_id}.1@example.com>" in module_mail.mails.message_ids()


def test_a_filtered_set_is_dry_run_rerun_and_discarded(page, flower, backend, fail_for):
    first, second = fail_for("o1"), fail_for("o2")

    page.goto(f"{flower}/deliveries")
    page.fill("#error", "no such error")
    page.click("#filter")
    assert "No deliveries match." in page.locator("#deliveries").inner_text()
    page.fill("#error", "connection REFUSED")
    page.click("#filter")
    assert page.locator("#matching").inner_text() == "2 failed match the filter."

    page.click("#dry-run")
    assert page.locator("#said").inner_text().startswith("Dry run: 2 would be re-run. 2 OutOfStock for send_")
    assert {status_of(backend, first), status_of(backend, second)} == {"failed"}

    page.click("#discard-matching")
    assert "enter a reason" in page.locator("#said").inner_text()
    assert page.input_value("#error") == "connection REFUSED"

    page.click("#rerun-matching")
    assert page.locator("#said").inner_text() == "2 requeued."
    eventually(lambda: {status_of(backend, first), status_of(backend, second)} == {"done"}, 60)

    third = fail_for("o3")
    page.goto(f"{flower}/deliveries")
    page.fill("#reason", "a test")
    page.click("#discard-matching")
    assert page.locator("#said").inner_text() == "1 discarded."
    assert status_of(backend, third) == "discarded"


def test_a_button_acts_on_nothing_that_failed_after_the_page_was_shown(page, flower, backend, fail_for):
    """Discarding is final, and the page stands still while somebody writes a reason."""
    seen = fail_for("o1")
    fails_anew = (
        "UPDATE deliveries SET finished_at = clock_timestamp() WHERE id = CAST(:id AS uuid) RETURNING 1"
    )

    def page_with_reason(path: str) -> None:
        page.goto(f"{flower}{path}")
        page.fill("#reason", "a test")

    page_with_reason("/deliveries")
    later = fail_for("o2")
    page.click("#discard-matching")
    assert page.locator("#said").inner_text() == "1 discarded."
    assert (status_of(backend, seen), status_of(backend, later)) == ("discarded", "failed")

    for path, button in ((f"/deliveries/{later}", "#discard"), ("/deliveries", "#rerun-matching")):
        page_with_reason(path)
        backend.sql(fails_anew, id=later)
        page.click(button)
        assert page.locator("#said").inner_text().startswith(("Nothing was discarded", "None of these"))
        assert status_of(backend, later) == "failed"


#: Presses a button, has the page be shown anew before the answer, and returns where the page went.
PRESSED = """async () => {
  const goes = [];
  const went = new Promise(done => navigation.addEventListener("navigate", to => {
    goes.push(to.formData ? "action" : "page");
    done();
  }));
  document.getElementById("dry-run").click();
  await went;
  showAnew();
  return goes;
}"""


def test_a_page_is_not_shown_anew_before_the_answer_of_a_button(page, flower):
    """The answer would be lost. Not every browser focuses a button that is clicked, and nor does this."""
    page.add_init_script("window.setInterval = run => { window.showAnew = run; };")
    page.goto(f"{flower}/deliveries")
    page.route("**/deliveries", lambda _route: None)  # no answer

    assert page.evaluate(PRESSED) == ["action"]


def test_failed_deliveries_of_an_older_release_are_grouped_by_their_error(page, flower, backend):
    errors = ("TimeoutError: timed out\nafter 10 s", "TimeoutError: timed out", "KeyError: 'a & <b>'")
    for error in errors:
        backend.sql(
            "INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s, status,"
            " correlation_id, causation_id, finished_at, last_error, attempts)"
            " VALUES (gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{\"sku\": \"LAMP\"}',"
            " 'reallocate', now(), 15, 'failed', '', '', now(), :error, 6) RETURNING 1",
            error=error,
        )

    page.goto(f"{flower}/deliveries?status=failed&handler=reallocate")
    groups = page.locator("#groups tbody tr")
    assert groups.count() == 2
    assert re.match(r"2\s+reallocate\s+TimeoutError: timed out", groups.nth(0).inner_text())
    groups.filter(has_text="KeyError: 'a & <b>'").get_by_role("link", name="Select").click()

    assert page.locator("#matching").inner_text() == "1 failed match the filter."
    assert groups.count() == 1
    backend.sql("DELETE FROM deliveries WHERE handler = 'reallocate' AND status = 'failed' RETURNING 1")


def test_the_list_of_tasks_has_arguments_and_no_housekeeping(page, flower, shop, sku):
    shop.ask("allocate", "o1", sku, 1)

    def listed() -> str | None:
        page.goto(f"{flower}/tasks")
        page.wait_for_selector("#tasks-table tbody tr")
        shown: str = page.locator("#tasks-table").inner_text()
        return shown if f"Allocate(orderid='o1', sku='{sku}', qty=1)" in shown else None

    shown = eventually(listed, 60, "the command with its arguments", every=0.5)
    assert "allocation.relay" not in shown
    assert "allocation.announce" not in shown


def test_a_dead_letter_is_shown_and_replayed_or_discarded(page, flower, shop):
    sent = shop.send("not_yet_known", sku="<script>alert(1)</script>")
    with pytest.raises(Exception, match="not_yet_known"):
        sent.get(timeout=30)

    page.goto(f"{flower}/")
    page.get_by_role("link", name="Dead letters").click()
    row = page.locator("tr", has_text=sent.id)
    assert "unknown task" in row.inner_text()
    screenshot(page, "flower-dead-letters")
    row.locator("summary").click()
    assert "<script>alert(1)</script>" in row.inner_text()  # as text

    row.get_by_role("button", name="Replay").click()
    assert "would come back as a dead letter" in page.locator("#said").inner_text()
    row = page.locator("tr", has_text=sent.id)
    row.get_by_placeholder("reason").fill("a typing error")
    row.get_by_role("button", name="Discard").click()
    assert page.locator("#said").inner_text() == "Discarded."
    assert sent.id not in page.locator("#letters").inner_text()


def test_commands_of_other_apps_are_shown_as_messages(page, flower, shop, sku):
    order = shop.send("allocate", "o1", sku, 1)
    order.get(timeout=30)

    def shown() -> bool:
        page.goto(f"{flower}/task/{order.id}")
        return f"Allocate(orderid='o1', sku='{sku}', qty=1)" in page.locator("main").inner_text()

    eventually(shown, 60, "the command as a message", every=0.5)
    screenshot(page, "flower-task")


def test_the_page_of_an_order_tells_everything_that_it_caused(page, flower, fail_for, sku):
    delivery_id = fail_for("o-whole")

    page.goto(f"{flower}/deliveries/{delivery_id}")
    page.locator("#order").click()
    page.wait_for_url("**/orders/*")

    told = page.locator("main").inner_text()
    assert f"Allocate(orderid='o-whole', sku='{sku}', qty=2): None" in told
    assert f"OutOfStock(sku='{sku}')" in told
    assert f"delivery {delivery_id}" in told
    assert "ConnectionRefusedError" in told
    screenshot(page, "flower-order")


def test_metrics_carry_deliveries_dead_letters_and_reruns(flower, fail_for):
    fail_for("o1")

    def seen() -> str | None:
        text = request(f"{flower}/metrics").text
        failed = r'allocation_deliveries\{handler="send_out_of_stock_notification",state="failed"\} [1-9]'
        return text if re.search(failed, text) else None

    text = eventually(seen, 60, "a failed delivery in the metrics", every=0.5)
    assert "allocation_database_up 1.0" in text
    for name in (
        "deliveries_oldest_pending_seconds", "reruns_last_hour", "housekeeping_age_seconds",
        "relay_lag_seconds", "announcements", "announcements_oldest_seconds", "queue_messages",
        "database_oldest_snapshot_seconds", "database_blocked_sessions", "database_dead_rows",
    ):  # fmt: skip
        assert re.search(rf"^allocation_{name}.* [\d.e-]+$", text, re.MULTILINE), name
    assert 'allocation_deliveries{handler="reallocate",state="failed"} 0.0' in text
    assert "flower_events_total" in text


@pytest.mark.parametrize(
    "path", ["/deliveries", "/dead-letters", f"/deliveries/{UUID(int=0)}", "/orders/any"]
)
def test_the_pages_require_the_login(flower, path):
    assert request(f"{flower}{path}").status == 401
    assert request(f"{flower}{path}", "operator:wrong").status == 401


@pytest.mark.parametrize("path", ["/deliveries", "/dead-letters"])
def test_no_other_site_can_submit_an_action(flower, path, fail_for, backend):
    delivery_id = fail_for("o1")
    data = f"do=rerun&id={delivery_id}".encode()

    assert request(f"{flower}{path}", LOGIN, data).status == 403
    token = {"Cookie": "_xsrf=same", "X-XSRFToken": "same"}
    assert request(f"{flower}{path}", LOGIN, data, {"Sec-Fetch-Site": "cross-site", **token}).status == 403
    forged = {"Cookie": "_xsrf=guessed", "X-XSRFToken": "other"}
    assert request(f"{flower}{path}", LOGIN, data, forged).status == 403
    assert status_of(backend, delivery_id) == "failed"


def test_an_invalid_filter_is_refused_with_the_right_format(flower):
    assert "write 90s, 15m, 2h or 7d" in request(f"{flower}/deliveries?older_than=soon", LOGIN).text
    assert request(f"{flower}/deliveries/{uuid4()}", LOGIN).status == 404


def test_what_is_no_time_and_no_id_is_told_apart_from_a_database_that_is_away(flower):
    """Each of them was answered with 500 or 503."""
    token = {"Cookie": "_xsrf=same", "X-XSRFToken": "same"}
    act = b"do=discard&reason=a+test&id=no-id"

    page = request(f"{flower}/deliveries?since=2026-01-01T00:00-15:59:59.5", LOGIN)
    assert page.status == 200
    assert request(f"{flower}/deliveries/{'-' * 36}", LOGIN, act, token).status == 404
    assert request(f"{flower}/dead-letters", LOGIN, act, token).status == 200  # after the redirect


def test_a_blank_field_does_not_filter_and_a_misspelled_name_is_refused(flower, fail_for):
    delivery_id = fail_for("o1")

    shown = request(f"{flower}/deliveries?status=failed&handler=&error=+", LOGIN).text
    assert delivery_id in shown
    assert "A blank field does not filter." in shown
    refused = request(f"{flower}/deliveries?handler=send_out", LOGIN).text
    assert "there are reallocate, send_out_of_stock_notification" in refused
    assert delivery_id not in refused


def test_a_page_of_dead_letters_has_the_beginning_of_each_body(flower, backend):
    backend.sql(
        "INSERT INTO dead_letters (id, reason, headers, properties, body, error)"
        " SELECT gen_random_uuid(), 'invalid message', '{}', '{}',"
        "        convert_to(repeat('x', 16777216), 'UTF8'), 'too large'"
        " FROM generate_series(1, 40) RETURNING 1"
    )
    try:
        status, shown, _ = request(f"{flower}/dead-letters", LOGIN)
    finally:
        backend.sql("DELETE FROM dead_letters WHERE error = 'too large' RETURNING 1")

    assert status == 200
    assert shown.count("These are the first 4,096 of") == 40
    assert len(shown) < 1_000_000


def test_a_read_only_flower_has_no_buttons_and_refuses_actions(backend, fail_for):
    delivery_id, port = fail_for("o1"), free_port()
    child = programs.flower(backend.folder, {**backend.env, **WITH_LOGIN, "FLOWER_READ_ONLY": "true"}, port)
    child.start()
    try:
        address = wait_for_flower(child, port)
        assert "<button" not in request(f"{address}/deliveries", LOGIN).text.partition('id="deliveries"')[2]
        token = {"Cookie": "_xsrf=same", "X-XSRFToken": "same"}
        data = f"do=rerun&id={delivery_id}".encode()
        assert request(f"{address}/deliveries", LOGIN, data, token).status == 403
        assert status_of(backend, delivery_id) == "failed"
    finally:
        child.stop()


def test_page_and_metrics_report_an_unavailable_database(backend, tmp_path: Path):
    port = free_port()
    env = {
        **backend.env, **WITH_LOGIN, "ALLOCATION_DATABASE_URL": "postgresql+psycopg2://u@127.0.0.1:1/x"
    }  # fmt: skip
    child = programs.flower(tmp_path, env, port)
    child.start()
    try:
        address = wait_for_flower(child, port)
        page = request(f"{address}/deliveries", LOGIN)
        assert (page.status, page.text) == (503, "The database does not answer, or rejected the request")
        assert "allocation_database_up 0.0" in request(f"{address}/metrics").text
    finally:
        child.stop()


def test_a_handler_is_paused_and_resumed_by_a_button(page, flower, backend, shop, sku, module_mail):
    handler = "send_out_of_stock_notification"
    row = page.locator(f"tr[data-name='{handler}']")
    page.goto(f"{flower}/")
    page.get_by_role("link", name="Handlers").click()
    row.get_by_role("button", name="Pause").click()
    assert "enter a reason" in page.locator("#said").inner_text()
    row.get_by_label("Reason").fill("the mail server is being moved")
    row.get_by_role("button", name="Pause").click()
    assert "is paused" in page.locator("#said").inner_text()
    assert "by operator in Flower" in row.inner_text()

    order = shop.send("allocate", "o9", sku, 2)
    order.get(timeout=30)
    query = "SELECT id::text, attempts FROM deliveries WHERE correlation_id = :id AND status = 'waiting'"
    [[delivery_id, attempts]] = eventually(lambda: backend.sql(query, id=order.id), 60, "a waiting delivery")
    assert attempts == 0
    page.goto(f"{flower}/deliveries?status=waiting")
    assert "the mail server is being moved" in page.locator(f"tr[data-id='{delivery_id}']").inner_text()
    assert "the mail server is being moved" in page.locator(".paused").inner_text()
    page.goto(f"{flower}/handlers")
    screenshot(page, "flower-handlers")

    row.get_by_role("button", name="Resume").click()
    assert "is resumed" in page.locator("#said").inner_text()
    eventually(lambda: status_of(backend, delivery_id) == "done", 60, "the delivery done")
    assert f"<{delivery_id}.1@example.com>" in module_mail.mails.message_ids()


def test_failures_are_shown_in_groups_and_a_group_is_selected_by_a_click(
    page, flower, backend, fail_for, sku
):
    delivery_id = fail_for("o10")
    backend.sql(
        "INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s,"
        " correlation_id, causation_id, finished_at, last_error)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{\"sku\": \"X\"}', handler, 'failed',"
        " now(), 1, 'c', 'c', now(), 'PriceUnknown: no price for ' || n FROM deliveries,"
        " generate_series(1, 250) n WHERE id = CAST(:id AS uuid) RETURNING 1",
        id=delivery_id,
    )

    page.goto(f"{flower}/deliveries")
    rows = page.locator("#groups tbody tr")
    assert [rows.nth(n).locator("td").first.inner_text() for n in range(2)] == ["250", "1"]
    assert "failed 251" in page.locator("#summary").inner_text()
    screenshot(page, "flower-groups")
    assert "Page 1" in page.locator("nav[aria-label=Pages]").inner_text()
    for number in (2, 3):
        page.get_by_role("link", name="Older").click()
        assert f"Page {number}" in page.locator("nav[aria-label=Pages]").inner_text()
    assert page.locator("#deliveries tbody tr").count() == 51

    page.goto(f"{flower}/deliveries")
    rows.nth(0).get_by_role("link", name="Select").click()
    assert "250 failed match the filter." in page.locator("#matching").inner_text()
    page.get_by_label("Reason to discard").fill("no list has a price")
    page.locator("#discard-matching").click()
    assert "250 discarded." in page.locator("#said").inner_text()
    assert status_of(backend, delivery_id) == "failed"


FAILED = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s, correlation_id,
                        causation_id, finished_at, last_error)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', jsonb_build_object('sku', :sku || n),
       'send_out_of_stock_notification', 'failed', now(), 1, :sku, 'c', now(), 'PriceUnknown: ' || :sku
FROM generate_series(1, :count) n RETURNING 1
"""


def test_a_group_is_rerun_a_few_first_and_the_others_follow_though_flower_is_killed(
    page, backend, sku, worker
):
    backend.sql(FAILED, sku=sku, count=300)
    port = free_port()
    child = programs.flower(backend.folder, {**backend.env, **WITH_LOGIN}, port)
    child.start()
    try:
        address = wait_for_flower(child, port)
        page.goto(f"{address}/deliveries?status=failed&correlation={sku}")
        page.locator("#groups").get_by_role("link", name="Select").click()
        page.get_by_label("Try so many first").fill("3")
        with paused(worker):
            page.click("#rerun-matching")
            said = page.locator("#said").inner_text()
            number = re.fullmatch(r"Re-run (\d+) is under way: 3 requeued so far.", said)
            assert number, said
            line = page.locator(f"tr[data-rerun='{number[1]}']").inner_text()
            assert re.search(
                r"operator in Flower.*group=.*3 of 300.*the first 3 are tried until", line, re.DOTALL
            )
            screenshot(page, "flower-reruns")
            child.kill()
    finally:
        child.kill()

    query = "SELECT status, count(*) FROM deliveries WHERE correlation_id = :sku GROUP BY 1"
    eventually(lambda: backend.sql(query, sku=sku) == [("done", 300)], 90, "all mails", every=0.5)
    entry = "SELECT actor, count, outcome FROM audit WHERE id = :id"
    assert backend.sql(entry, id=int(number[1])) == [("operator in Flower", 300, "done")]


def test_a_rerun_is_stopped_by_a_button(page, flower, backend, sku, worker):
    backend.sql(FAILED, sku=sku, count=20)
    page.goto(f"{flower}/deliveries?status=failed&correlation={sku}")
    page.get_by_label("Try so many first").fill("1")
    with paused(worker):
        page.click("#rerun-matching")
        page.goto(f"{flower}/deliveries?handler=misspelled")  # a refused filter is not in the way
        page.locator("#reruns").get_by_role("button", name="Stop").click()
        assert "stopped by operator in Flower. 1 requeued" in page.locator("#said").inner_text()
        assert "stopped by operator in Flower" in page.locator("#reruns tbody tr").first.inner_text()
        assert page.locator("#reruns").get_by_role("button", name="Stop").count() == 0

    query = (
        "SELECT status, reruns, count(*) FROM deliveries WHERE correlation_id = :sku GROUP BY 1, 2 ORDER BY 2"
    )
    left = [("failed", 0, 19), ("done", 1, 1)]
    eventually(lambda: backend.sql(query, sku=sku) == left, 60, "the end of the one", every=0.5)
    backend.sql("DELETE FROM deliveries WHERE correlation_id = :sku RETURNING 1", sku=sku)


def test_the_handler_of_a_group_is_paused_and_its_breaker_closed_by_buttons(page, flower, backend, sku):
    handler = "send_out_of_stock_notification"
    backend.sql(FAILED, sku=sku, count=2)
    page.goto(f"{flower}/deliveries?status=failed&correlation={sku}")
    page.locator("#groups").get_by_role("button", name="Pause handler").click()
    assert f"{handler} is paused." in page.locator("#said").inner_text()
    row = page.locator(f"tr[data-name='{handler}']")
    assert f"PriceUnknown: {sku}" in row.inner_text()
    row.get_by_role("button", name="Resume").click()
    backend.sql("DELETE FROM deliveries WHERE correlation_id = :sku RETURNING 1", sku=sku)

    backend.sql(
        "INSERT INTO breakers (handler, failures, opened, since, until, last_error)"
        " VALUES (:handler, 5, 1, now(), now() + interval '1 h', 'x') RETURNING 1",
        handler=handler,
    )
    page.reload()
    row.get_by_role("button", name="Close breaker").click()
    assert f"The breaker of {handler} is closed" in page.locator("#said").inner_text()
    assert backend.sql("SELECT until, failures FROM breakers") == [(None, 0)]
    assert [one[0] for one in backend.sql("SELECT action FROM audit ORDER BY id DESC LIMIT 3")] == [
        "close",
        "resume",
        "pause",
    ]


def test_dead_letters_have_pages(page, flower, backend):
    backend.sql(
        "INSERT INTO dead_letters (id, reason, headers, properties, body, error, at)"
        " SELECT gen_random_uuid(), 'invalid message', '{}', '{}', 'x', 'page ' || n, now()"
        " FROM generate_series(1, 150) n RETURNING 1"
    )
    try:
        page.goto(f"{flower}/dead-letters?reason_has=invalid")
        shown = page.locator("#letters tbody tr")
        assert shown.count() == 100
        first = set(shown.all_inner_texts())
        page.get_by_role("link", name="Older").click()
        assert "Page 2" in page.locator("nav[aria-label=Pages]").inner_text()
        assert "reason_has=invalid" in page.url
        assert shown.count() >= 50
        assert not first & set(shown.all_inner_texts())
        assert request(f"{flower}/dead-letters?page={'9' * 5000}", LOGIN).status == 200
    finally:
        backend.sql("DELETE FROM dead_letters WHERE error LIKE 'page %' RETURNING 1")


def test_a_login_that_may_only_look_sees_no_buttons_and_cannot_act(backend, fail_for):
    delivery_id = fail_for("o11")
    port = free_port()
    logins = {"FLOWER_BASIC_AUTH": "ann:secret,bob:secret", "ALLOCATION_FLOWER_OPERATORS": "ann"}
    child = programs.flower(backend.folder, {**backend.env, **logins}, port)
    child.start()
    try:
        address = wait_for_flower(child, port)
        url, form = f"{address}/deliveries", b"do=rerun&_xsrf=x"

        def ask(login: str, data: bytes | None = None, path: str = url) -> tuple[int, str]:
            answer = request(path, login, data)
            return answer.status, answer.text

        button = 'value="rerun"'
        assert button in ask("ann:secret")[1]
        status, shown = ask("bob:secret")
        assert status == 200
        assert delivery_id in shown
        assert button not in shown
        for path in (url, f"{address}/handlers", f"{address}/api/worker/shutdown/x"):
            status, text = ask("bob:secret", form, path)
            assert status == 403
            assert "this login may only look; ALLOCATION_FLOWER_OPERATORS names those that may act" in text
        status, text = ask("ann:secret", form)
        assert "may only look" not in text  # its token is wrong, but it may act
        assert status == 403
    finally:
        child.stop()


def test_behind_oauth_only_the_login_that_flower_has_checked_may_act(backend, fail_for):
    """A password's name in the header is nobody's word: Flower does not check it there."""
    delivery_id, port = fail_for("o12"), free_port()
    env = {
        **backend.env,
        "ALLOCATION_FLOWER_OPERATORS": "ann@example.com",
        "FLOWER_AUTH": ".*@example.com",
        "FLOWER_AUTH_PROVIDER": "flower.views.auth.GoogleAuth2LoginHandler",
        "FLOWER_COOKIE_SECRET": "secret",
    }
    child = programs.flower(backend.folder, env, port)
    child.start()
    try:
        url = f"{wait_for_flower(child, port)}/deliveries"

        def act_as(user: str, also: str | None = None) -> Answer:
            signed = create_signed_value("secret", "user", user).decode()
            headers = {"Cookie": f'user="{signed}"; _xsrf=same', "X-XSRFToken": "same"}
            return request(url, also, f"do=rerun&id={delivery_id}".encode(), headers)

        for also in (None, "ann@example.com:", "ann@example.com:secret"):
            refused = act_as("eve@example.com", also)
            assert refused.status == 403
            assert "this login may only look" in refused.text
            assert status_of(backend, delivery_id) == "failed"
        assert act_as("ann@example.com").status == 200
        assert status_of(backend, delivery_id) != "failed"
    finally:
        child.stop()
