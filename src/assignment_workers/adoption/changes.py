"""Record the dialer's changes to a queue table during the copy, and apply them to the copy."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from assignment_workers.adoption.sources import SourceTable, score
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.schema import online

FEW = 500
"""The number of recorded changes below which the switch begins. The switch is the transaction that
replaces the dialer's tables by views of ours; it applies the remaining changes itself.

It is also the number of changes that one statement of the switch applies. It is small, so that
PostgreSQL finds the changed rows by an index, however large the tables are.
"""
AT_A_TIME = 20_000
"""The most changes that one statement applies before the switch."""

TABLE = """CREATE TABLE IF NOT EXISTS assignment.adoption_changes (
    queue text NOT NULL, user_id bigint NOT NULL)"""
"""The SQL that creates the table of users whose rows have changed since the copy began. For each
statement of the dialer, triggers add one row for each user whose rows the statement changed.
"""

_FUNCTION = """
CREATE OR REPLACE FUNCTION assignment.note_change() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $note$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO assignment.adoption_changes
        SELECT DISTINCT TG_ARGV[0], user_id FROM is_now WHERE user_id IS NOT NULL;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO assignment.adoption_changes
        SELECT DISTINCT TG_ARGV[0], user_id FROM was WHERE user_id IS NOT NULL;
    ELSE
        INSERT INTO assignment.adoption_changes
        SELECT TG_ARGV[0], user_id FROM is_now WHERE user_id IS NOT NULL
        UNION SELECT TG_ARGV[0], user_id FROM was WHERE user_id IS NOT NULL;
    END IF;
    RETURN NULL;
END $note$
"""
_SEEN = {
    "insert": "NEW TABLE AS is_now",
    "update": "OLD TABLE AS was NEW TABLE AS is_now",
    "delete": "OLD TABLE AS was",
}


def begin(source: SourceTable) -> Iterator[str]:
    """Yield the statements that start recording every change of a dialer's queue table.

    They wait for running writes to the table. Run them in the transaction that begins the copy, so
    that no change is missed.
    """
    yield f"DELETE FROM assignment.adoption_changes WHERE queue = '{source.queue}'"
    yield _FUNCTION
    for what, seen in _SEEN.items():
        yield (
            f"CREATE OR REPLACE TRIGGER note_{what} AFTER {what} ON public.{source.table}"
            f" REFERENCING {seen} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION assignment.note_change('{source.queue}')"
        )


def end(source: SourceTable) -> Iterator[str]:
    """Yield the statements that stop recording the changes of a dialer's queue table."""
    for what in _SEEN:
        yield f"DROP TRIGGER IF EXISTS note_{what} ON public.{source.table}"


def index(connection: Connection, source: SourceTable) -> tuple[str, ...]:
    """Return the statements that build an index on the column `user_id` of a dialer's queue table.

    The function `carry_over` finds the rows of changed users by this index. The dialer's own tables
    may have no such index. Run each statement outside of a transaction, in the given order. After a
    failure, begin with the first statement again. The first statement drops an invalid index that a
    killed run has left; this locks the table only briefly. The build itself blocks no reads and no
    writes of the table.

    The index saves time in the switch, the transaction that replaces the dialer's tables by views
    of ours. Without the index, the switch only takes longer. So the result is empty if the index
    cannot be built: if the table is partitioned, or if something else has the index's name.
    """
    name = _index_name(source.table)
    fits = text(_INDEX_FITS.format(table=source.table, name=name))
    if not connection.execute(fits).scalar():
        return ()
    return (
        *online.index_statements(name, source.table, "user_id"),
        f"ANALYZE (SKIP_LOCKED) public.{source.table} (user_id)",
    )


def drop_index(connection: Connection, table: str) -> None:
    """Remove the index of the function `index` from a dialer's queue table, if it is there."""
    name = _index_name(table)
    if connection.execute(text(_IS_INDEX_OF.format(table=table, name=name))).scalar():
        connection.execute(text(f"DROP INDEX public.{name}"))


def _index_name(table: str) -> str:
    return f"{table}_adoption_user"


_IS_INDEX_OF = """SELECT true FROM pg_index WHERE indrelid = to_regclass('public.{table}')
    AND indexrelid = to_regclass('public.{name}')"""
_INDEX_FITS = f"""SELECT relkind = 'r'
    AND (to_regclass('public.{{name}}') IS NULL OR EXISTS ({_IS_INDEX_OF}))
    FROM pg_class WHERE oid = to_regclass('public.{{table}}')"""


def carry_over(
    connection: Connection,
    source: SourceTable,
    number: int,
    other: int | None,
    *,
    most: int = AT_A_TIME,
) -> int:
    """Apply at most `most` recorded changes of a dialer's queue table to a generation (build).

    `source`: the queue table. `number`: the generation. `other`: the generation of the other dialer
    queue; None: there is no other. A user of a changed row is removed from `number` if the queue
    table has no pending or assigned row of the user, or if the user is in `other`. Any other user
    of a changed row is added at the end or, if in `number` already, keeps the position. Returns the
    number of applied changes.
    """
    placed = (
        ""
        if other is None
        else (
            f"AND NOT EXISTS (SELECT FROM {partition(other)} o"
            f" WHERE o.generation_id = {other} AND o.user_id = q.user_id)"
        )
    )
    return int(
        connection.execute(
            text(f"""
            WITH taken AS MATERIALIZED (
                SELECT ctid FROM assignment.adoption_changes WHERE queue = :queue LIMIT {most}
            ), changed AS MATERIALIZED (
                DELETE FROM assignment.adoption_changes c USING taken WHERE c.ctid = taken.ctid
                RETURNING c.user_id
            ), users AS MATERIALIZED (SELECT DISTINCT user_id FROM changed),
            waiting AS MATERIALIZED (
                SELECT DISTINCT ON (q.user_id) q.user_id, {score("q")} AS score,
                       q.queue_position AS place
                FROM public.{source.table} q JOIN users ON users.user_id = q.user_id
                WHERE q.status IN ('pending', 'assigned') {placed}
                ORDER BY q.user_id, q.queue_position NULLS LAST, q.created_at, q.id
            ), gone AS (
                DELETE FROM {partition(number)} e USING users
                WHERE e.generation_id = {number} AND e.user_id = users.user_id
                AND NOT EXISTS (SELECT FROM waiting w WHERE w.user_id = e.user_id)
            ), come AS (
                INSERT INTO {partition(number)} (generation_id, user_id, rank, score)
                SELECT {number}, w.user_id, row_number() OVER (ORDER BY place NULLS LAST, w.user_id)
                       + {_last_rank(number)}, w.score
                FROM waiting w
                ON CONFLICT (generation_id, user_id) DO NOTHING
            )
            SELECT count(*) FROM changed"""),
            {"queue": source.queue},
        ).scalar_one()
    )


def _last_rank(number: int) -> str:
    """Return the SQL expression for the greatest rank of the users in a generation (build).

    Users who were removed from the generation are left out. The other users are ready, held or
    waiting. The expression has a separate subquery for each of these three states, because there is
    an index for each state. So the expression needs little time. That matters, because the dialer's
    statements wait meanwhile.
    """
    of_state = f"SELECT rank FROM {partition(number)} WHERE generation_id = {number} AND state ="
    return (
        f"(SELECT coalesce(max(rank), 0) FROM ("
        f"({of_state} 'ready' ORDER BY rank DESC LIMIT 1)"
        f" UNION ALL {of_state} 'held' UNION ALL {of_state} 'waiting') AS last)"
    )


def remaining(connection: Connection) -> int:
    """Return the number of the dialer's changes that are not applied yet; 500 (`FEW`) at most.

    While the dialer's queue tables are copied into generations (builds), triggers record each user
    whose rows the dialer changes in these tables. Each such record is a change. `carry_over`
    applies the changes to the generations, and deletes their records.
    """
    return int(connection.execute(_REMAINING).scalar_one())


_REMAINING = text(
    f"SELECT count(*) FROM (SELECT FROM assignment.adoption_changes LIMIT {FEW}) AS found"
)
