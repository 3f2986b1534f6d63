"""The table of commands as a Django app: `INSTALLED_APPS = [..., "messaging.client.django"]`.

    COMMAND_OUTBOX = {
        "OUTBOX": "allocation.client.outbox",
        "BROKER_URL": "redis://127.0.0.1:6390/0",
        "RESULTS_URL": "redis://127.0.0.1:6390/1",
        "ON_ANSWER": "shop.answers.note",  # None: answers only stay in the table
    }

More keys: `DATABASE`, the alias of a database (`default`); `PACE`, fields of `messaging.client.pace.Pace`;
and `CLIENT`, options of `messaging.client.Client` such as `signing`.
"""
