"""Create and remove our triggers and unique indexes on the tables that the dialer also writes.

A rollback removes them; a later migration creates them again.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from assignment_workers.adoption.dialer_claims import FUNCTIONS, TRIGGERS
from assignment_workers.schema import online

PENDING = "status = 'pending'"
_OF_OUR_MIGRATIONS = {
    ("callbacks", "one_promise"): (
        "BEFORE INSERT OR UPDATE OF status, user_id ON public.callbacks FOR EACH ROW"
        f" WHEN (NEW.{PENDING}) EXECUTE FUNCTION assignment.one_promise()"
    ),
    ("missed_calls", "one_follow_up"): (
        "BEFORE INSERT OR UPDATE OF status, twilio_call_sid ON public.missed_calls FOR EACH ROW"
        f" WHEN (NEW.{PENDING} AND NEW.twilio_call_sid IS NOT NULL)"
        " EXECUTE FUNCTION assignment.one_follow_up()"
    ),
}
UNIQUE = {
    "uq_callbacks_pending_user": ("callbacks", "user_id", "created_at DESC, id DESC"),
    "uq_missed_calls_pending_call": ("missed_calls", "twilio_call_sid", "created_at, id"),
}
"""Maps the name of a unique index to its table, its column, and the order of preference.

If several pending rows have the same value, the first in this order stays pending, and the others
are cancelled.
"""


def missing(connection: Connection) -> Iterator[tuple[str, ...]]:
    """Yield the statements that create our missing triggers and unique indexes.

    Before a unique index is created, pending rows that it would reject are cancelled (`UNIQUE`).
    Run each statement separately, outside of a transaction. If one of several in a tuple fails,
    begin with the tuple's first one again. The functions in `dialer_claims.FUNCTIONS`, which some
    of the triggers call, are always replaced. The database must be at the revision of this release.
    """
    yield from ((sql,) for sql in FUNCTIONS)
    for (table, name), words in {**_OF_OUR_MIGRATIONS, **TRIGGERS}.items():
        if not connection.execute(text(_HAS_TRIGGER.format(table)), {"name": name}).scalar():
            yield (f"CREATE OR REPLACE TRIGGER {name} {words}",)
    for name, (table, column, order) in UNIQUE.items():
        if connection.execute(text(_HAS_INDEX.format(name))).scalar():
            continue
        yield (
            online.cancel_statement(
                table,
                f"""SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY {column}
                    ORDER BY {order}) AS n FROM public.{table}
                    WHERE {PENDING} AND {column} IS NOT NULL) AS told WHERE n > 1""",
            ),
            *online.index_statements(name, table, column, unique=True, where=PENDING),
        )


def remove(connection: Connection) -> None:
    """Remove all our triggers and unique indexes from the dialer's tables.

    The indexes are removed too, because without the triggers they would reject rows that the dialer
    writes.
    """
    for row in connection.execute(_OURS).all():
        connection.execute(text(f"DROP TRIGGER {row.name} ON {row.table}"))
    for name in UNIQUE:
        connection.execute(text(f"DROP INDEX IF EXISTS public.{name}"))


_HAS_TRIGGER = (
    "SELECT true FROM pg_trigger WHERE tgrelid = to_regclass('public.{}') AND tgname = :name"
)
_HAS_INDEX = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('public.{}')"
_OURS = text("""
    SELECT quote_ident(t.tgname) AS name, t.tgrelid::regclass::text AS table
    FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
    AND p.pronamespace = 'assignment'::regnamespace
""")
