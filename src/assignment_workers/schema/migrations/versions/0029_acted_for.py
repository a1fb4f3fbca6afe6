"""The access log records which token acts for which agent."""

from __future__ import annotations

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

KINDS = (
    *("token_created", "token_revoked", "signed_in", "signed_out", "sign_in_failed"),
    *("unauthenticated", "forbidden"),
)
NAME = "ck_access_log_what"


def upgrade() -> None:
    """Accept one more kind."""
    _accept(*KINDS, "acted_for")


def downgrade() -> None:
    """Accept it no more, and delete its records."""
    op.execute("DELETE FROM assignment.access_log WHERE what = 'acted_for'")
    _accept(*KINDS)


def _accept(*kinds: str) -> None:
    said = ", ".join(f"'{each}'" for each in kinds)
    op.execute(
        f"ALTER TABLE assignment.access_log DROP CONSTRAINT {NAME},"
        f" ADD CONSTRAINT {NAME} CHECK (what IN ({said}))"
    )
