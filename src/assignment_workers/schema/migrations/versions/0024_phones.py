"""Phone numbers have one identity: users' are stored, and suppressions are compared by it.

Suppressions of phone numbers are read anew, by the region in the settings. One that cannot be read
is kept, matches by its text, and keeps users who share its last digits waiting for an operator;
`assignment-workers do-not-contact list --by-text` lists those. SQL that is written by `--dry-run`
cannot read them: run with it, each is kept as one that cannot be read.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import context, op

from assignment_workers.phones import Identity, Reader, plain, reach, tails

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

TEXTS = sa.ARRAY(sa.Text())
INSTANT = sa.DateTime(timezone=True)
STANDS = "lifted_at IS NULL"
OF_0_1_0 = """
    CREATE VIEW assignment.bars AS
    SELECT id, kind, user_id, phone,
           right(regexp_replace(phone, '[^0-9]', '', 'g'), 9) AS phone_end,
           queue, reason, since, by, lifted_at, lifted_by, lifted_why
    FROM assignment.suppressions
"""
COMMENT = """
    COMMENT ON VIEW assignment.bars IS
    'assignment.suppressions by its name in 0.1.0, until 0.3.0'
"""
UNREAD = """
    UPDATE assignment.suppressions SET plain = lower(regexp_replace(phone, '\\s', '', 'g')),
        tail = nullif(right(regexp_replace(phone, '[^0-9]', '', 'g'), 7), ''), unsure = true
    WHERE phone IS NOT NULL
"""
# One that stands twice once both are read as one number is lifted: the other says the same.
READ = """
    UPDATE assignment.suppressions s
    SET number = r.number, plain = r.plain, tail = r.tail, unsure = r.unsure,
        lifted_at = CASE WHEN r.twice THEN now() ELSE s.lifted_at END,
        lifted_by = CASE WHEN r.twice THEN 'migration 0024' ELSE s.lifted_by END,
        lifted_why = CASE WHEN r.twice THEN 'the same number as another suppression'
                     ELSE s.lifted_why END
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
         AS r (id bigint, number text, plain text, tail text, unsure boolean, twice boolean)
    WHERE s.id = r.id
"""
WRITTEN = """
    SELECT id, phone, lifted_at IS NULL AS stands FROM assignment.suppressions
    WHERE phone IS NOT NULL ORDER BY id
"""


def upgrade() -> None:
    """Create the tables, and read every suppression of a phone number."""
    op.create_table(
        "phones",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.Text()) for name in ("text", "country", "time_zone")),
        sa.Column("reader", sa.Text(), nullable=False),
        *(
            sa.Column(name, TEXTS, nullable=False)
            for name in ("numbers", "kinds", "tails", "unread")
        ),
        sa.Column("plain", sa.Text()),
        sa.Column("zones", TEXTS, nullable=False),
        sa.Column("home", sa.Text()),
        sa.Column("read_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_phones")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_phones_numbers"),
        "phones",
        ["numbers"],
        schema="assignment",
        postgresql_using="gin",
    )
    op.create_table(
        "phone_zones",
        sa.Column("zone", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("zone", name=op.f("pk_phone_zones")),
        schema="assignment",
    )
    _lists()
    _suppressions()
    for prefix in ("", "incoming_"):
        for name in ("country", "time_zone"):
            op.add_column(f"{prefix}users", sa.Column(name, sa.Text()), schema="crm_mirror")


def _lists() -> None:
    op.create_table(
        "suppression_lists",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'staged'"), nullable=False),
        sa.Column("replaces", sa.Boolean(), nullable=False),
        sa.Column("source", sa.Text()),
        sa.Column("queue", sa.Text()),
        sa.Column("expires_at", INSTANT),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("since", INSTANT, nullable=False),
        sa.Column("stands_since", INSTANT),
        sa.Column("retired_at", INSTANT),
        sa.CheckConstraint(
            "state IN ('staged', 'standing', 'retired')", name=op.f("ck_suppression_lists_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_suppression_lists")),
        schema="assignment",
    )
    op.create_index(
        op.f("ix_suppression_lists_name"),
        "suppression_lists",
        ["name"],
        schema="assignment",
        postgresql_where=sa.text("state = 'standing'"),
    )
    op.create_table(
        "suppressed_numbers",
        sa.Column("list_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.PrimaryKeyConstraint("list_id", "number", name=op.f("pk_suppressed_numbers")),
        schema="assignment",
        postgresql_partition_by="LIST (list_id)",
    )
    op.create_index(
        "ix_suppressed_numbers_tail",
        "suppressed_numbers",
        [sa.text("right(number, 7)")],
        schema="assignment",
    )


def _suppressions() -> None:
    # Read before anything is locked: what is written meanwhile, which is little, is read after.
    reader = Reader(context.config.attributes.get("phone_region", "GB"))
    read: dict[str, Identity] = {}
    if not context.is_offline_mode():
        rows = op.get_bind().execute(sa.text(WRITTEN))
        read |= {row.phone: reader.read(row.phone) for row in rows}
    op.execute("DROP VIEW assignment.bars")
    for name, kind in (
        ("number", sa.Text()),
        ("plain", sa.Text()),
        ("tail", sa.Text()),
        ("source", sa.Text()),
        ("expires_at", INSTANT),
    ):
        op.add_column("suppressions", sa.Column(name, kind), schema="assignment")
    op.add_column(
        "suppressions",
        sa.Column("unsure", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        schema="assignment",
    )
    op.drop_index("uq_suppressions_phone", table_name="suppressions", schema="assignment")
    op.drop_constraint(op.f("ck_suppressions_phone_end"), "suppressions", schema="assignment")
    op.drop_column("suppressions", "phone_end", schema="assignment")
    op.drop_constraint(op.f("ck_suppressions_queue"), "suppressions", schema="assignment")
    _read(reader, read)
    for name, rule in (
        ("queue", "kind = 'do_not_contact' OR (kind = 'closed') = (queue IS NOT NULL)"),
        ("number", "number IS NULL OR phone IS NOT NULL"),
    ):
        op.create_check_constraint(
            op.f(f"ck_suppressions_{name}"), "suppressions", rule, schema="assignment"
        )
    a_queue = sa.text("coalesce(queue, '')")
    indexes: tuple[tuple[bool, str, list[str | sa.TextClause], str], ...] = (
        (True, "uq_suppressions_number", ["number", a_queue], "number IS NOT NULL"),
        (
            True,
            "uq_suppressions_text",
            ["plain", a_queue],
            "number IS NULL AND phone IS NOT NULL",
        ),
        (False, "ix_suppressions_tail", ["tail"], "tail IS NOT NULL"),
        (False, "ix_suppressions_unsure", ["tail"], "unsure"),
    )
    for unique, name, columns, where in indexes:
        op.create_index(
            name,
            "suppressions",
            columns,
            unique=unique,
            schema="assignment",
            postgresql_where=sa.text(f"{STANDS} AND {where}"),
        )
    op.execute(OF_0_1_0)
    op.execute(COMMENT)


def _read(reader: Reader, read: dict[str, Identity]) -> None:
    op.execute(UNREAD)
    if context.is_offline_mode():
        return
    connection = op.get_bind()
    made = []
    known: set[str] = set()
    for row in connection.execute(sa.text(WRITTEN)).all():
        numbers = (read.get(row.phone) or reader.read(row.phone)).numbers
        one = numbers[0] if len(numbers) == 1 else None
        key = one.e164 if one else plain(row.phone)
        made.append(
            {
                "id": row.id,
                "number": one.e164 if one else None,
                "plain": plain(row.phone),
                "tail": reach(one.e164) if one else next(iter(tails(row.phone)), None),
                "unsure": one is None or not one.sure,
                "twice": row.stands and key in known,
            }
        )
        if row.stands:
            known.add(key)
    connection.execute(sa.text(READ), {"rows": json.dumps(made)})


def downgrade() -> None:
    """Take them away: suppressions of phone numbers are compared by their last nine digits."""
    op.execute("DROP VIEW assignment.bars")
    op.drop_constraint(op.f("ck_suppressions_queue"), "suppressions", schema="assignment")
    op.drop_constraint(op.f("ck_suppressions_number"), "suppressions", schema="assignment")
    for name in ("uq_suppressions_number", "uq_suppressions_text"):
        op.drop_index(name, table_name="suppressions", schema="assignment")
    for name in ("ix_suppressions_tail", "ix_suppressions_unsure"):
        op.drop_index(name, table_name="suppressions", schema="assignment")
    for name in ("number", "plain", "tail", "source", "expires_at", "unsure"):
        op.drop_column("suppressions", name, schema="assignment")
    op.add_column("suppressions", sa.Column("phone_end", sa.Text()), schema="assignment")
    op.execute(
        "UPDATE assignment.suppressions SET queue = NULL WHERE kind = 'do_not_contact';"
        "UPDATE assignment.suppressions SET phone_end ="
        " right(regexp_replace(phone, '[^0-9]', '', 'g'), 9) WHERE phone IS NOT NULL"
    )
    op.create_check_constraint(
        op.f("ck_suppressions_phone_end"),
        "suppressions",
        "(phone IS NULL) = (phone_end IS NULL)",
        schema="assignment",
    )
    op.create_check_constraint(
        op.f("ck_suppressions_queue"),
        "suppressions",
        "(kind = 'closed') = (queue IS NOT NULL)",
        schema="assignment",
    )
    op.create_index(
        "uq_suppressions_phone",
        "suppressions",
        ["phone_end"],
        unique=True,
        schema="assignment",
        postgresql_where=sa.text("lifted_at IS NULL AND phone_end IS NOT NULL"),
    )
    op.execute(
        "CREATE VIEW assignment.bars AS SELECT id, kind, user_id, phone, phone_end, queue, reason,"
        " since, by, lifted_at, lifted_by, lifted_why FROM assignment.suppressions"
    )
    for prefix in ("", "incoming_"):
        for name in ("country", "time_zone"):
            op.drop_column(f"{prefix}users", name, schema="crm_mirror")
    for name in ("suppressed_numbers", "suppression_lists", "phone_zones", "phones"):
        op.drop_table(name, schema="assignment")
