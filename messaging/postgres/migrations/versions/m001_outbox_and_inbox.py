"""Deliveries with their attempts and actions, answered commands, crashes, dead letters, heartbeats."""

from __future__ import annotations

from alembic import op

revision = "m001"
down_revision = None
branch_labels = ("messaging",)
depends_on = None

TABLES = """
CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    handler text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'done', 'failed', 'discarded')),
    attempts integer NOT NULL DEFAULT 0,
    reruns integer NOT NULL DEFAULT 0,
    auto_reruns integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL,
    grace_s double precision NOT NULL,
    correlation_id text NOT NULL,
    causation_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    worker text,
    last_error text,
    last_traceback text,
    reason text,
    edited_from uuid,
    CONSTRAINT ended_deliveries_have_an_end CHECK ((status = 'pending') = (finished_at IS NULL))
);
CREATE INDEX deliveries_pending ON deliveries (due_at) WHERE status = 'pending';
CREATE INDEX deliveries_failed ON deliveries (finished_at) WHERE status = 'failed';
CREATE INDEX deliveries_discarded ON deliveries (finished_at) WHERE status = 'discarded';
CREATE INDEX deliveries_ended ON deliveries USING brin (finished_at) WITH (pages_per_range = 16);
CREATE INDEX deliveries_correlation ON deliveries (correlation_id);

CREATE TABLE attempts (
    delivery_id uuid NOT NULL REFERENCES deliveries ON DELETE CASCADE,
    run integer NOT NULL,
    number integer NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker text NOT NULL,
    error text NOT NULL,
    traceback text NOT NULL,
    PRIMARY KEY (delivery_id, run, number)
);
CREATE INDEX attempts_at ON attempts (at);

-- Who put a delivery back, gave it up or corrected it.
CREATE TABLE actions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id uuid NOT NULL REFERENCES deliveries ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    action text NOT NULL CHECK (action IN ('rerun', 'discard', 'edit')),
    actor text NOT NULL,
    reason text
);
CREATE INDEX actions_of_delivery ON actions (delivery_id);
CREATE INDEX actions_at ON actions (at);

-- When each job of the housekeeping ran last, and how far its worker's clock is from this server's.
CREATE TABLE heartbeats (
    job text PRIMARY KEY,
    at timestamptz NOT NULL,
    worker text NOT NULL,
    clock_offset_s double precision NOT NULL
);

CREATE TABLE inbox (
    task_id text PRIMARY KEY,
    command text NOT NULL,
    result jsonb,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_at ON inbox USING brin (at) WITH (pages_per_range = 16);

CREATE TABLE crashes (
    task_id text PRIMARY KEY,
    count integer NOT NULL DEFAULT 1,
    at timestamptz NOT NULL DEFAULT now()
);

-- json, not jsonb: a stranger's headers may hold \\u0000, which jsonb refuses.
CREATE TABLE dead_letters (
    id uuid PRIMARY KEY,
    reason text NOT NULL,
    task text,
    task_id text,
    queue text,
    content_type text,
    content_encoding text,
    headers json NOT NULL,
    properties json NOT NULL,
    body bytea NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    replayed_at timestamptz,
    discarded_at timestamptz,
    discard_reason text
);
CREATE INDEX dead_letters_at ON dead_letters (at);
CREATE INDEX dead_letters_open ON dead_letters (at) WHERE replayed_at IS NULL AND discarded_at IS NULL;
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop the tables."""
    op.execute("DROP TABLE dead_letters, crashes, inbox, heartbeats, actions, attempts, deliveries")
