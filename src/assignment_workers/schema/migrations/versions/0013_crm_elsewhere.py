"""A CRM elsewhere has its facts mirrored here; what discovery has reached is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MIRROR = "crm_mirror"
NAIVE = postgresql.TIMESTAMP(precision=3)


def upgrade() -> None:
    """Create the schema `crm_mirror`, `assignment.crm_reads` and `assignment.watermarks`."""
    op.execute(f"CREATE SCHEMA IF NOT EXISTS {MIRROR}")
    for prefix in ("", "incoming_"):
        kind = ["UNLOGGED"] if prefix else []
        op.create_table(
            f"{prefix}users",
            sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("is_enabled", sa.Boolean()),
            sa.Column("phone_number", sa.Text()),
            sa.Column("current_signature_file_id", sa.Text()),
            sa.Column("created_at", NAIVE),
            sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{prefix}users")),
            schema=MIRROR,
            prefixes=kind,
        )
        op.create_table(
            f"{prefix}claims",
            sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
            sa.Column("user_id", sa.BigInteger()),
            sa.Column("status", sa.Text()),
            sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{prefix}claims")),
            schema=MIRROR,
            prefixes=kind,
        )
        op.create_table(
            f"{prefix}claim_requirements",
            sa.Column("id", sa.Text(), nullable=False),
            sa.Column("claim_id", sa.BigInteger()),
            sa.Column("type", sa.Text()),
            sa.Column("status", sa.Text()),
            sa.Column("claim_requirement_reason", sa.Text()),
            sa.Column("created_at", NAIVE),
            sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{prefix}claim_requirements")),
            schema=MIRROR,
            prefixes=kind,
        )
    op.create_index(op.f("ix_claims_user_id"), "claims", ["user_id"], schema=MIRROR)
    op.create_index(
        op.f("ix_claim_requirements_claim_id"), "claim_requirements", ["claim_id"], schema=MIRROR
    )
    op.create_table(
        "crm_reads",
        sa.Column("whole", sa.Boolean(), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("whole", name=op.f("ck_crm_reads_one")),
        sa.PrimaryKeyConstraint("whole", name=op.f("pk_crm_reads")),
        schema="assignment",
    )
    op.create_table(
        "watermarks",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("reached", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_watermarks")),
        schema="assignment",
    )


def downgrade() -> None:
    """Take them away: a CRM elsewhere cannot be used, and discovery begins anew."""
    op.drop_table("watermarks", schema="assignment")
    op.drop_table("crm_reads", schema="assignment")
    op.execute(f"DROP SCHEMA {MIRROR} CASCADE")  # the dialer decides which tables it has
