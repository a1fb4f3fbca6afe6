"""Our tables, and those of the dialer's own that are not there yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

from assignment_workers.schema.dialer_schema import schema_of

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAIVE = postgresql.TIMESTAMP(precision=3)


def upgrade() -> None:
    """Create the schema `assignment` whole; in `public` only what is missing."""
    ours()
    dialers()
    op.execute("INSERT INTO assignment.sequencer (lane) VALUES ('default')")
    op.execute(
        "INSERT INTO assignment.queues (name) VALUES ('unsigned_users'), ('outstanding_requests')"
    )


def ours() -> None:
    """Create the tables of the schema `assignment`."""
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("celery_queue", sa.Text(), nullable=True),
        sa.Column("task", sa.Text(), nullable=True),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("replayed_as", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_dead_letters_at"), "dead_letters", ["at"], unique=False, schema="assignment"
    )
    op.create_table(
        "entries",
        sa.Column("generation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="ready", nullable=False),
        sa.Column("available_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'out') = (reason IS NOT NULL)", name=op.f("ck_entries_out")),
        sa.CheckConstraint(
            "(state = 'waiting') = (available_from IS NOT NULL)", name=op.f("ck_entries_waiting")
        ),
        sa.CheckConstraint(
            "state IN ('ready', 'waiting', 'held', 'out')", name=op.f("ck_entries_state")
        ),
        sa.PrimaryKeyConstraint("generation_id", "user_id", name=op.f("pk_entries")),
        schema="assignment",
        postgresql_partition_by="LIST (generation_id)",
    )
    op.create_index(
        "ix_entries_ready",
        "entries",
        ["generation_id", "rank"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("state = 'ready'"),
    )
    op.create_index(
        "ix_entries_waiting",
        "entries",
        ["generation_id", "available_from"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=True),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("agent_id", sa.Integer(), nullable=True),
        sa.Column("assignment_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("generation_id", sa.BigInteger(), nullable=True),
        sa.Column("details", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        schema="assignment",
    )
    op.create_index(op.f("ix_events_at"), "events", ["at"], unique=False, schema="assignment")
    op.create_index(
        op.f("ix_events_kind_id"), "events", ["kind", "id"], unique=False, schema="assignment"
    )
    op.create_index(
        op.f("ix_events_user_id_id"),
        "events",
        ["user_id", "id"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "job_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=True),
        sa.Column("slot", sa.DateTime(timezone=True), nullable=True),
        sa.Column("status", sa.Text(), server_default="running", nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(status <> 'failed') OR (error IS NOT NULL)", name=op.f("ck_job_runs_failed")
        ),
        sa.CheckConstraint(
            "(status = 'running') = (ended_at IS NULL)", name=op.f("ck_job_runs_ended")
        ),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'failed', 'skipped')",
            name=op.f("ck_job_runs_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_runs")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_job_runs_job_id"), "job_runs", ["job", "id"], unique=False, schema="assignment"
    )
    op.create_index(
        op.f("ix_job_runs_started_at"),
        "job_runs",
        ["started_at"],
        unique=False,
        schema="assignment",
    )
    op.create_index(
        "uq_job_runs_slot",
        "job_runs",
        ["job", "slot", sa.literal_column("coalesce(queue, '')")],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("slot IS NOT NULL AND status IN ('running', 'succeeded')"),
    )
    op.create_table(
        "queues",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_queues")),
        schema="assignment",
    )
    op.create_table(
        "sequencer",
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("leader_host", sa.Text(), nullable=True),
        sa.Column("leader_pid", sa.Integer(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probe_seconds", sa.Double(), nullable=True),
        sa.CheckConstraint("term >= 0", name=op.f("ck_sequencer_term")),
        sa.PrimaryKeyConstraint("lane", name=op.f("pk_sequencer")),
        schema="assignment",
    )
    op.create_table(
        "generations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="building", nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.Column("built_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state <> 'failed') OR (error IS NOT NULL)", name=op.f("ck_generations_failed")
        ),
        sa.CheckConstraint(
            "(state <> 'published') OR (published_at IS NOT NULL)",
            name=op.f("ck_generations_published"),
        ),
        sa.CheckConstraint(
            "state IN ('building', 'published', 'retired', 'failed')",
            name=op.f("ck_generations_state"),
        ),
        sa.ForeignKeyConstraint(
            ["queue"], ["assignment.queues.name"], name=op.f("fk_generations_queue_queues")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generations")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_generations_queue_id"),
        "generations",
        ["queue", "id"],
        unique=False,
        schema="assignment",
    )
    op.create_index(
        "uq_generations_published",
        "generations",
        ["queue"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("state = 'published'"),
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", sa.Integer(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), server_default="queue", nullable=False),
        sa.Column("generation_id", sa.BigInteger(), nullable=True),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_xid", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'active') = (ended_at IS NULL)", name=op.f("ck_assignments_ended")
        ),
        sa.CheckConstraint(
            "(state = 'active') = (ended_xid IS NULL)", name=op.f("ck_assignments_ended_xid")
        ),
        sa.CheckConstraint(
            "(state = 'completed') = (outcome IS NOT NULL)", name=op.f("ck_assignments_outcome")
        ),
        sa.CheckConstraint(
            "source IN ('queue', 'callback', 'missed_call')", name=op.f("ck_assignments_source")
        ),
        sa.CheckConstraint(
            "state IN ('active', 'completed', 'skipped', 'released', 'expired')",
            name=op.f("ck_assignments_state"),
        ),
        sa.CheckConstraint("lease_expires_at > claimed_at", name=op.f("ck_assignments_lease")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_assignments_version")),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["assignment.generations.id"],
            name=op.f("fk_assignments_generation_id_generations"),
        ),
        sa.ForeignKeyConstraint(
            ["queue"], ["assignment.queues.name"], name=op.f("fk_assignments_queue_queues")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
        sa.UniqueConstraint("request_id", name=op.f("uq_assignments_request_id")),
        schema="assignment",
    )
    op.create_index(
        "ix_assignments_ended",
        "assignments",
        ["ended_at"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("state <> 'active'"),
    )
    op.create_index(
        "ix_assignments_lease",
        "assignments",
        ["lease_expires_at"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_index(
        "ix_assignments_skipped",
        "assignments",
        ["agent_id", "ended_at"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("state = 'skipped'"),
    )
    op.create_index(
        "ix_assignments_terminal",
        "assignments",
        ["user_id"],
        unique=False,
        schema="assignment",
        postgresql_where=sa.text("outcome IN ('do_not_contact', 'no_claim')"),
    )
    op.create_index(
        op.f("ix_assignments_user_id_claimed_at"),
        "assignments",
        ["user_id", "claimed_at"],
        unique=False,
        schema="assignment",
    )
    op.create_index(
        "uq_assignments_active_agent",
        "assignments",
        ["agent_id"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_index(
        "uq_assignments_active_user",
        "assignments",
        ["user_id"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("agent_id", sa.Integer(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("answer", postgresql.JSONB(), nullable=False),
        sa.Column("assignment_id", sa.Uuid(), nullable=True),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(outcome = 'assigned') = (assignment_id IS NOT NULL)",
            name=op.f("ck_requests_assignment"),
        ),
        sa.CheckConstraint(
            "length(request_id) BETWEEN 1 AND 200", name=op.f("ck_requests_request_id")
        ),
        sa.ForeignKeyConstraint(
            ["assignment_id"],
            ["assignment.assignments.id"],
            name=op.f("fk_requests_assignment_id_assignments"),
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_requests")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_requests_answered_at"),
        "requests",
        ["answered_at"],
        unique=False,
        schema="assignment",
    )


def dialers() -> None:
    """Create the dialer's tables; one that exists is adopted as it is."""
    existing = NothingExists() if context.is_offline_mode() else sa.inspect(op.get_bind())
    schema = "public" if context.is_offline_mode() else schema_of(op.get_bind())
    if not existing.has_table("agents", schema=schema):
        op.create_table(
            "agents",
            sa.Column("id", sa.Integer(), nullable=False),
            sa.Column("email", sa.Text(), nullable=False),
            sa.Column("first_name", sa.Text(), nullable=True),
            sa.Column("last_name", sa.Text(), nullable=True),
            sa.Column("role", sa.Text(), server_default="agent", nullable=False),
            sa.Column("team", sa.Text(), nullable=True),
            sa.Column(
                "allowed_queues",
                postgresql.JSON(),
                server_default=sa.text('\'["unsigned_users", "outstanding_requests"]\''),
                nullable=False,
            ),
            sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.Column("is_ai_agent", sa.Boolean(), server_default=sa.text("false"), nullable=False),
            sa.Column("created_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.Column("updated_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
            sa.UniqueConstraint("email", name=op.f("uq_agents_email")),
            schema="public",
        )
    if not existing.has_table("user_call_scores", schema=schema):
        op.create_table(
            "user_call_scores",
            sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
            sa.Column("user_id", sa.BigInteger(), nullable=False),
            sa.Column("current_score", sa.Integer(), server_default="0", nullable=False),
            sa.Column("next_call_after", NAIVE, nullable=True),
            sa.Column("last_call_at", NAIVE, nullable=True),
            sa.Column("total_attempts", sa.Integer(), server_default="0", nullable=False),
            sa.Column("successful_calls", sa.Integer(), server_default="0", nullable=False),
            sa.Column("last_outcome", sa.Text(), nullable=True),
            sa.Column("base_score", sa.Integer(), server_default="0", nullable=False),
            sa.Column("outcome_penalty_score", sa.Integer(), server_default="0", nullable=False),
            sa.Column("time_penalty_score", sa.Integer(), server_default="0", nullable=False),
            sa.Column("is_active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.Column("current_queue_type", sa.Text(), nullable=True),
            sa.Column("last_reset_date", NAIVE, nullable=True),
            sa.Column("last_queue_check", NAIVE, nullable=True),
            sa.Column("created_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.Column("updated_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_user_call_scores")),
            sa.UniqueConstraint("user_id", name=op.f("uq_user_call_scores_user_id")),
            schema="public",
        )
        op.create_index(
            op.f("ix_user_call_scores_current_queue_type_current_score"),
            "user_call_scores",
            ["current_queue_type", "current_score"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_user_call_scores_is_active_current_score"),
            "user_call_scores",
            ["is_active", "current_score"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_user_call_scores_next_call_after_current_score"),
            "user_call_scores",
            ["next_call_after", "current_score"],
            unique=False,
            schema="public",
        )
    if not existing.has_table("callbacks", schema=schema):
        op.create_table(
            "callbacks",
            sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
            sa.Column("user_id", sa.BigInteger(), nullable=False),
            sa.Column("scheduled_for", NAIVE, nullable=False),
            sa.Column("callback_reason", sa.Text(), nullable=True),
            sa.Column("preferred_agent_id", sa.Integer(), nullable=True),
            sa.Column("original_call_session_id", sa.Uuid(), nullable=False),
            sa.Column("status", sa.Text(), server_default="pending", nullable=False),
            sa.Column("completed_call_session_id", sa.Uuid(), nullable=True),
            sa.Column(
                "queue_type", sa.Text(), server_default="outstanding_requests", nullable=False
            ),
            sa.Column("assigned_to_agent_id", sa.Integer(), nullable=True),
            sa.Column("assigned_at", NAIVE, nullable=True),
            sa.Column("lease_expires_at", NAIVE, nullable=True),
            sa.Column("completed_at", NAIVE, nullable=True),
            sa.Column("retry_count", sa.Integer(), server_default="0", nullable=False),
            sa.Column("max_retries", sa.Integer(), server_default="1", nullable=False),
            sa.Column("last_attempt_at", NAIVE, nullable=True),
            sa.Column("created_by_agent_id", sa.Integer(), nullable=True),
            sa.Column("created_by_source", sa.Text(), server_default="agent", nullable=False),
            sa.Column("created_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.Column("updated_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.ForeignKeyConstraint(
                ["preferred_agent_id"],
                ["public.agents.id"],
                name=op.f("fk_callbacks_preferred_agent_id_agents"),
            ),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_callbacks")),
            schema="public",
        )
        op.create_index(
            op.f("ix_callbacks_assigned_to_agent_id_status"),
            "callbacks",
            ["assigned_to_agent_id", "status"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_callbacks_preferred_agent_id_status_scheduled_for"),
            "callbacks",
            ["preferred_agent_id", "status", "scheduled_for"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_callbacks_queue_type_scheduled_for_status"),
            "callbacks",
            ["queue_type", "scheduled_for", "status"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_callbacks_scheduled_for"),
            "callbacks",
            ["scheduled_for"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_callbacks_status"), "callbacks", ["status"], unique=False, schema="public"
        )
        op.create_index(
            op.f("ix_callbacks_user_id_status"),
            "callbacks",
            ["user_id", "status"],
            unique=False,
            schema="public",
        )
    if not existing.has_table("conversions", schema=schema):
        op.create_table(
            "conversions",
            sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
            sa.Column("user_id", sa.BigInteger(), nullable=False),
            sa.Column("previous_queue_type", sa.Text(), nullable=False),
            sa.Column("conversion_type", sa.Text(), nullable=False),
            sa.Column("reason", sa.Text(), nullable=True),
            sa.Column("final_score", sa.Integer(), server_default="0", nullable=False),
            sa.Column("total_call_attempts", sa.Integer(), server_default="0", nullable=False),
            sa.Column("last_call_at", NAIVE, nullable=True),
            sa.Column("converted_at", NAIVE, nullable=False),
            sa.Column("primary_agent_id", sa.Integer(), nullable=True),
            sa.Column("contributing_agents", postgresql.JSON(), nullable=True),
            sa.Column(
                "signature_obtained", sa.Boolean(), server_default=sa.text("false"), nullable=False
            ),
            sa.Column("created_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.Column("updated_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.ForeignKeyConstraint(
                ["primary_agent_id"],
                ["public.agents.id"],
                name=op.f("fk_conversions_primary_agent_id_agents"),
            ),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_conversions")),
            schema="public",
        )
        op.create_index(
            op.f("ix_conversions_converted_at"),
            "conversions",
            ["converted_at"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_conversions_user_id"),
            "conversions",
            ["user_id"],
            unique=False,
            schema="public",
        )
    if not existing.has_table("missed_calls", schema=schema):
        op.create_table(
            "missed_calls",
            sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
            sa.Column("phone_number", sa.String(length=20), nullable=False),
            sa.Column("caller_name", sa.Text(), nullable=True),
            sa.Column("user_id", sa.BigInteger(), nullable=True),
            sa.Column("missed_at", NAIVE, nullable=False),
            sa.Column("reason", sa.String(length=50), nullable=False),
            sa.Column("status", sa.Text(), server_default="pending", nullable=False),
            sa.Column("assigned_to_agent_id", sa.Integer(), nullable=True),
            sa.Column("assigned_at", NAIVE, nullable=True),
            sa.Column("twilio_call_sid", sa.Text(), nullable=True),
            sa.Column("session_id", sa.Text(), nullable=True),
            sa.Column("created_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.Column("updated_at", NAIVE, server_default=sa.text("now()"), nullable=False),
            sa.ForeignKeyConstraint(
                ["assigned_to_agent_id"],
                ["public.agents.id"],
                name=op.f("fk_missed_calls_assigned_to_agent_id_agents"),
                ondelete="SET NULL",
            ),
            sa.PrimaryKeyConstraint("id", name=op.f("pk_missed_calls")),
            schema="public",
        )
        op.create_index(
            op.f("ix_missed_calls_assigned_to_agent_id"),
            "missed_calls",
            ["assigned_to_agent_id"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_missed_calls_phone_number"),
            "missed_calls",
            ["phone_number"],
            unique=False,
            schema="public",
        )
        op.create_index(
            op.f("ix_missed_calls_status_missed_at"),
            "missed_calls",
            ["status", "missed_at"],
            unique=False,
            schema="public",
        )


class NothingExists:
    """Stands for the database where the migration is only printed."""

    def has_table(self, name: str, *, schema: str) -> bool:
        """Whether the table is there: the printed plan shows every statement."""
        return False


def downgrade() -> None:
    """Drop our schema; the dialer's tables stay, with what is in them."""
    op.execute("DROP SCHEMA assignment CASCADE")
    op.execute("CREATE SCHEMA assignment")
