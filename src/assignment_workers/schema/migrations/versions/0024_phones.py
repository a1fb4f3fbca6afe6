"""Phone numbers have one identity: users' are stored, and suppressions are compared by it.

Suppressions of phone numbers are read anew, by the region in the settings. One that cannot be read
is kept, matches by its text, and keeps users who share its last digits waiting for an operator;
`assignment-workers do-not-contact list --by-text` lists those. SQL that is written by `--dry-run`
cannot read them: run with it, each is kept as one that cannot be read.

Short locks: columns, indexes and constraints come beside what is in use, and suppressions are read
5,000 at a time, each batch in a transaction of its own. What the older version writes meanwhile is
found by an index of its own, and read when the columns of the older version are dropped.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import context, op

from assignment_workers.phones import Reader, plain, reach, tails
from assignment_workers.schema import online

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
    plain = lower(regexp_replace(phone, '\\s', '', 'g')),
    tail = nullif(right(regexp_replace(phone, '[^0-9]', '', 'g'), 7), ''), unsure = true
"""
KEEP_UNREAD = f"""
    DO $keep$
    DECLARE reached bigint; newest bigint;
    BEGIN
        SELECT min(id) - 1, max(id) INTO reached, newest FROM assignment.suppressions;
        WHILE reached < newest LOOP
            UPDATE assignment.suppressions SET {UNREAD}
            WHERE phone IS NOT NULL AND id > reached AND id <= reached + {online.BATCH};
            COMMIT;
            reached := reached + {online.BATCH};
        END LOOP;
    END $keep$
"""  # noqa: S608 - nothing in it is given
READ = """
    UPDATE assignment.suppressions s
    SET number = r.number, plain = r.plain, tail = r.tail, unsure = r.unsure
    FROM jsonb_to_recordset(CAST(:rows AS jsonb))
         AS r (id bigint, number text, plain text, tail text, unsure boolean)
    WHERE s.id = r.id
"""
WRITTEN = f"""
    SELECT id, phone FROM assignment.suppressions
    WHERE phone IS NOT NULL AND plain IS NULL ORDER BY id LIMIT {online.BATCH}
"""  # noqa: S608
# One that stands twice once both are read as one number is lifted: the other says the same.
LIFT_TWINS = """
    UPDATE assignment.suppressions s
    SET lifted_at = now(), lifted_by = 'migration 0024',
        lifted_why = 'the same number as another suppression'
    FROM (
        SELECT id, row_number() OVER (
            PARTITION BY coalesce(number, plain), number IS NULL ORDER BY id) AS place
        FROM assignment.suppressions
        WHERE lifted_at IS NULL AND phone IS NOT NULL AND plain IS NOT NULL
    ) AS each
    WHERE each.place > 1 AND s.id = each.id
"""
# The same for the few that were read last, by the indexes that are there by then.
LIFT_TWIN = """
    UPDATE assignment.suppressions s
    SET lifted_at = now(), lifted_by = 'migration 0024',
        lifted_why = 'the same number as another suppression'
    WHERE s.id = :id AND s.lifted_at IS NULL AND EXISTS (
        SELECT 1 FROM assignment.suppressions o
        WHERE o.lifted_at IS NULL AND o.id <> s.id AND o.phone IS NOT NULL AND (
            o.number = CAST(:number AS text)
            OR CAST(:number AS text) IS NULL AND o.number IS NULL AND o.plain = :plain))
"""
COLUMNS = """
    ALTER TABLE assignment.suppressions
    ADD COLUMN IF NOT EXISTS number text, ADD COLUMN IF NOT EXISTS plain text,
    ADD COLUMN IF NOT EXISTS tail text, ADD COLUMN IF NOT EXISTS source text,
    ADD COLUMN IF NOT EXISTS expires_at timestamptz,
    ADD COLUMN IF NOT EXISTS unsure boolean NOT NULL DEFAULT false
"""
TO_READ = "ix_suppressions_to_read"
INDEXES = (
    (True, "uq_suppressions_number", "number, coalesce(queue, '')", "number IS NOT NULL"),
    (
        True,
        "uq_suppressions_text",
        "plain, coalesce(queue, '')",
        "number IS NULL AND phone IS NOT NULL",
    ),
    (False, "ix_suppressions_tail", "tail", "tail IS NOT NULL"),
    (False, "ix_suppressions_unsure", "tail", "unsure"),
)
RULES = {
    "of_queue": "kind = 'do_not_contact' OR (kind = 'closed') = (queue IS NOT NULL)",
    "number": "number IS NULL OR phone IS NOT NULL",
}


def upgrade() -> None:
    """Read every suppression of a phone number, and create the tables."""
    reader = Reader(context.config.attributes.get("phone_region", "GB"))
    with online.alone():
        _beside(reader)
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
    for prefix in ("", "incoming_"):
        for name in ("country", "time_zone"):
            op.add_column(f"{prefix}users", sa.Column(name, sa.Text()), schema="crm_mirror")
    _suppressions(reader)


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


def _beside(reader: Reader) -> None:
    """All that takes long. Each statement commits by itself and can be run again."""
    op.execute(COLUMNS)
    to_read = "phone IS NOT NULL AND plain IS NULL"
    online.index(TO_READ, "suppressions", "id", where=to_read, schema="assignment")
    if context.is_offline_mode():
        op.execute(KEEP_UNREAD)
    else:
        while _read(reader):
            pass
    op.execute(LIFT_TWINS)
    for unique, name, columns, where in INDEXES:
        stands = f"{STANDS} AND {where}"
        online.index(
            name, "suppressions", columns, unique=unique, where=stands, schema="assignment"
        )
    # What was written while the indexes were built: so next to nothing is left for the lock.
    while not context.is_offline_mode() and _read(reader, twins=True):
        pass
    for what, rule in RULES.items():
        name = op.f(f"ck_suppressions_{what}")
        op.execute(
            f"ALTER TABLE assignment.suppressions DROP CONSTRAINT IF EXISTS {name},"
            f" ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID"
        )
        op.execute(f"ALTER TABLE assignment.suppressions VALIDATE CONSTRAINT {name}")


def _suppressions(reader: Reader) -> None:
    """Drop what the older version compares by. Cost: that of what it wrote since `_beside`."""
    op.execute("DROP VIEW assignment.bars")
    op.drop_index("uq_suppressions_phone", table_name="suppressions", schema="assignment")
    op.drop_constraint(op.f("ck_suppressions_phone_end"), "suppressions", schema="assignment")
    op.drop_column("suppressions", "phone_end", schema="assignment")
    op.drop_constraint(op.f("ck_suppressions_queue"), "suppressions", schema="assignment")
    op.execute(
        "ALTER TABLE assignment.suppressions"
        " RENAME CONSTRAINT ck_suppressions_of_queue TO ck_suppressions_queue"
    )
    if not context.is_offline_mode():
        while _read(reader, twins=True):
            pass
    op.drop_index(TO_READ, table_name="suppressions", schema="assignment")
    op.execute(OF_0_1_0)
    op.execute(COMMENT)


def _read(reader: Reader, *, twins: bool = False) -> bool:
    """Read the next suppressions of a phone number; false where there are none.

    `twins`: one that stands already under another text is lifted before it is read.
    """
    connection = op.get_bind()
    rows = connection.execute(sa.text(WRITTEN)).all()
    made = [{"id": row.id, **_identity(reader, row.phone)} for row in rows]
    for each in made if twins else ():
        connection.execute(sa.text(LIFT_TWIN), each)
        connection.execute(sa.text(READ), {"rows": json.dumps([each])})
    if made and not twins:
        connection.execute(sa.text(READ), {"rows": json.dumps(made)})
    return bool(made)


def _identity(reader: Reader, phone: str) -> dict[str, object]:
    numbers = reader.read(phone).numbers
    one = numbers[0] if len(numbers) == 1 else None
    return {
        "number": one.e164 if one else None,
        "plain": plain(phone),
        "tail": reach(one.e164) if one else next(iter(tails(phone)), None),
        "unsure": one is None or not one.sure,
    }


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
