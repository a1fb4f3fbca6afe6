"""Rename `assignment.bars` to `assignment.suppressions`; `bars` stays as a view for one release.

Only names change: every lock is short. The events `barred` and `bar_lifted`, which are found by
their index, take their new names.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

CONSTRAINTS = ("kind", "whom", "phone_end", "user", "queue", "lifted")
INDEXES = ("uq_{}_user", "uq_{}_phone", "ix_{}_quarantined", "pk_{}", "{}_id_seq")
TO_SUPPRESSED = "UPDATE assignment.events SET kind = 'suppressed' WHERE kind = 'barred'"
TO_LIFTED = "UPDATE assignment.events SET kind = 'suppression_lifted' WHERE kind = 'bar_lifted'"
TO_BARRED = "UPDATE assignment.events SET kind = 'barred' WHERE kind = 'suppressed'"
TO_BAR_LIFTED = "UPDATE assignment.events SET kind = 'bar_lifted' WHERE kind = 'suppression_lifted'"
VIEW = """
    CREATE VIEW assignment.bars AS
    SELECT id, kind, user_id, phone, phone_end, queue, reason, since, by,
           lifted_at, lifted_by, lifted_why
    FROM assignment.suppressions
"""


def upgrade() -> None:
    """Rename the table with its constraints and indexes; create the view `bars`."""
    _rename("bars", "suppressions")
    op.execute(VIEW)
    op.execute(
        "COMMENT ON VIEW assignment.bars IS"
        " 'assignment.suppressions by its name in 0.1.0, until 0.3.0'"
    )
    op.execute(TO_SUPPRESSED)
    op.execute(TO_LIFTED)


def downgrade() -> None:
    """Give the table its old name again."""
    op.execute(TO_BARRED)
    op.execute(TO_BAR_LIFTED)
    op.execute("DROP VIEW assignment.bars")
    _rename("suppressions", "bars")


def _rename(old: str, new: str) -> None:
    op.rename_table(old, new, schema="assignment")
    for name in CONSTRAINTS:
        op.execute(
            f"ALTER TABLE assignment.{new} RENAME CONSTRAINT ck_{old}_{name} TO ck_{new}_{name}"
        )
    for name in INDEXES:
        op.execute(f"ALTER INDEX assignment.{name.format(old)} RENAME TO {name.format(new)}")
