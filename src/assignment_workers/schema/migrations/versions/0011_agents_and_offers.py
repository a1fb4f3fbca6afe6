"""Agents have states, a claim is an offer until it is accepted, users are deferred and closed.

No row of `assignments` is rewritten but the active ones, which count as accepted. Its index and its
constraint are made by reading the table once each, about a second for ten million rows, and claims
wait for that.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create `agents_state` and `agents_seen`; add to `assignments` and to `bars`."""
    op.create_table(
        "agents_state",
        sa.Column("agent_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("since", INSTANT, nullable=True),
        sa.Column("by", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("session_began", INSTANT, nullable=True),
        sa.Column("calls_in_session", sa.Integer(), server_default="0", nullable=False),
        sa.Column("working_since", INSTANT, nullable=True),
        sa.Column("last_call_ended_at", INSTANT, nullable=True),
        sa.Column("offers_lapsed", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "state IN ('available', 'on_call', 'wrap_up', 'break', 'offline')",
            name=op.f("ck_agents_state_state"),
        ),
        sa.CheckConstraint("(state IS NULL) = (since IS NULL)", name=op.f("ck_agents_state_since")),
        sa.CheckConstraint(
            "(session_began IS NULL) = (state IS NULL OR state = 'offline')",
            name=op.f("ck_agents_state_session"),
        ),
        sa.CheckConstraint(
            "calls_in_session >= 0 AND offers_lapsed >= 0", name=op.f("ck_agents_state_counts")
        ),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agents_state")),
        schema="assignment",
    )
    op.create_table(
        "agents_seen",
        sa.Column("agent_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("pk_agents_seen")),
        schema="assignment",
        postgresql_with={"fillfactor": "50"},
    )
    for name, kind in (
        ("accepted_at", INSTANT),
        ("ended_how", sa.Text()),
        ("put_off_until", INSTANT),
    ):
        op.add_column("assignments", sa.Column(name, kind, nullable=True), schema="assignment")
    op.execute("UPDATE assignment.assignments SET accepted_at = claimed_at WHERE state = 'active'")
    # By the usual rest: what was set is not known here.
    op.execute(
        "UPDATE assignment.assignments SET put_off_until = ended_at + interval '15 minutes'"
        " WHERE state = 'skipped' AND ended_at > now() - interval '15 minutes'"
    )
    op.create_check_constraint(
        op.f("ck_assignments_ended_how"),
        "assignments",
        "ended_how IS NULL OR (ended_how IN ('deferred', 'closed') AND state = 'skipped')"
        " OR (ended_how = 'offer_lapsed' AND state = 'expired')",
        schema="assignment",
    )
    op.create_index(
        "ix_assignments_put_off",
        "assignments",
        ["put_off_until"],
        schema="assignment",
        postgresql_where=sa.text("put_off_until IS NOT NULL"),
    )
    op.add_column("bars", sa.Column("queue", sa.Text(), nullable=True), schema="assignment")
    _bars(
        kinds="kind IN ('do_not_contact', 'quarantine', 'closed')",
        user="kind = 'do_not_contact' OR phone IS NULL",
        old="ck_bars_quarantine",
        new="ck_bars_user",
        key=["user_id", "kind", sa.text("coalesce(queue, '')")],
    )
    op.create_check_constraint(
        op.f("ck_bars_queue"),
        "bars",
        "(kind = 'closed') = (queue IS NOT NULL)",
        schema="assignment",
    )


def downgrade() -> None:
    """Take them away: who was closed is offered again, and what an agent stated is forgotten."""
    op.execute("DELETE FROM assignment.bars WHERE kind = 'closed'")
    op.drop_constraint(op.f("ck_bars_queue"), "bars", schema="assignment")
    _bars(
        kinds="kind IN ('do_not_contact', 'quarantine')",
        user="kind <> 'quarantine' OR phone IS NULL",
        old="ck_bars_user",
        new="ck_bars_quarantine",
        key=["user_id", "kind"],
    )
    op.drop_column("bars", "queue", schema="assignment")
    op.drop_index("ix_assignments_put_off", table_name="assignments", schema="assignment")
    op.drop_constraint(op.f("ck_assignments_ended_how"), "assignments", schema="assignment")
    for name in ("put_off_until", "ended_how", "accepted_at"):
        op.drop_column("assignments", name, schema="assignment")
    op.drop_table("agents_seen", schema="assignment")
    op.drop_table("agents_state", schema="assignment")


def _bars(*, kinds: str, user: str, old: str, new: str, key: list[str | sa.TextClause]) -> None:
    op.drop_constraint(op.f("ck_bars_kind"), "bars", schema="assignment")
    op.create_check_constraint(op.f("ck_bars_kind"), "bars", kinds, schema="assignment")
    op.drop_constraint(op.f(old), "bars", schema="assignment")
    op.create_check_constraint(op.f(new), "bars", user, schema="assignment")
    op.drop_index("uq_bars_user", table_name="bars", schema="assignment")
    op.create_index(
        "uq_bars_user",
        "bars",
        key,
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("lifted_at IS NULL AND user_id IS NOT NULL"),
    )
