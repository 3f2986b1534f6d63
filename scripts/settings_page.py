"""`make docs`: write the tables of docs/reference/settings.md from the settings classes."""

from __future__ import annotations

from pathlib import Path

from allocation.config import ON_PORT, Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- tables: written by make docs -->", "<!-- end of tables -->"
#: A heading for each group of settings, with the beginnings of their names. The first match counts.
TOPICS = {
    "Addresses": ("database_", "broker_url", "result_backend_url", "sentinel_", "tls_"),
    "Mail": ("smtp_", "mail_", "stock_team"),
    "Commands": ("command_", "group_", "bulk_", "max_crashes", "result_expires"),
    "Retries of event handlers": ("event_",),
    "Circuit breakers of event handlers": ("breaker_",),
    "Relay": ("relay_",),
    "Scheduled re-runs": ("rerun_",),
    "Announcements": ("announce",),
    "Retention": ("prune_", "done_", "inbox_", "dead_letter_"),
    "Workers": ("worker_", "visibility_", "task_"),
    "Limits of a message": ("message_",),
    "Signed messages": ("signing_",),
    "Flower": ("flower_",),
    "Traces, metrics and logs": ("traces_", "metrics_", "log_"),
}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Return the page with the tables as the classes have them now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """Return a table for each topic.

    Raises:
        LookupError: a setting belongs to no topic.
    """
    rows: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for name, field in Settings.model_fields.items():
        if name not in ON_PORT:  # the page describes the ports together with the other settings of `make up`
            rows[_topic(name)].append(
                f"| `ALLOCATION_{name.upper()}` | `{field.default}` | {field.description} |\n"
            )
    head = "| variable | default | meaning |\n|---|---|---|\n"
    return "\n".join(f"### {topic}\n\n{head}{''.join(found)}" for topic, found in rows.items())


def _topic(name: str) -> str:
    for topic, beginnings in TOPICS.items():
        if name.startswith(beginnings):
            return topic
    raise LookupError(f"no topic in scripts/settings_page.py for {name}")


if __name__ == "__main__":
    main()
