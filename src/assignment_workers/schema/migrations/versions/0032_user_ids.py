"""Numbers for users whose ids in the CRM are UUIDs or texts, and a schema for views of the CRM."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and the schema, both empty: integers are used as they are."""
    op.create_table(
        "user_ids",
        sa.Column("user_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("uuid", sa.Uuid()),
        sa.Column("text", sa.Text()),
        sa.CheckConstraint("num_nonnulls(uuid, text) = 1", name=op.f("ck_user_ids_one")),
        sa.CheckConstraint("length(text) BETWEEN 1 AND 200", name=op.f("ck_user_ids_text")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_user_ids")),
        sa.UniqueConstraint("uuid", name=op.f("uq_user_ids_uuid")),
        sa.UniqueConstraint("text", name=op.f("uq_user_ids_text")),
        schema="assignment",
    )
    op.execute("CREATE SCHEMA IF NOT EXISTS crm_facts")


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP SCHEMA crm_facts CASCADE")
    op.drop_table("user_ids", schema="assignment")
