"""Copy the users of a dialer's queue table into a generation in batches, while the dialer runs."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, insert, text

from assignment_workers.adoption import changes
from assignment_workers.adoption.shapes import QUEUE_TABLES
from assignment_workers.adoption.sources import SourceTable, narrowed, score
from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.schema.retry import patiently
from assignment_workers.schema.tables import Generation

TRY_SECONDS = 300.0
Tell = Callable[[str], None]
"""The type of a function that reports one line of progress to the operator.

The line is about a step or a batch that was committed, or about a database session that the
migration waits for.
"""


def backfill(engine: Engine, source: SourceTable, *, tell: Tell, batch: int) -> int:
    """Copy the queued users of a dialer's queue table into a generation; return its number.

    A generation is one build of a dialer queue. Rows are read in batches of `batch` rows in the
    order of their ids; the pending and assigned ones are copied. No row of the dialer's table is
    locked. If a user has several rows, the one with the best position is copied.
    """
    number = patiently(lambda: _begun(engine, source), seconds=TRY_SECONDS)
    table = partition(number)
    while True:
        with engine.begin() as connection:
            first = connection.execute(_LAST_ID, {"queue": source.queue}).scalar() is None
            row = connection.execute(
                text(copy_statement(source, number, table, first=first)),
                {"queue": source.queue, "batch": batch},
            ).one()
        if not row.copied:
            break
        tell(f"backfill: {source.table}: {row.total} rows read")
    with engine.begin() as connection:
        connection.execute(text(duplicates_statement(source)))
    return number


def _begun(engine: Engine, source: SourceTable) -> int:
    """Return the number of the generation to fill: that of an interrupted run, or a new one."""
    with engine.begin() as connection:
        found = connection.execute(_FIND_BUILD, {"queue": source.queue}).scalar()
        if found is not None:
            return int(found)
        snapshot = connection.execute(_SNAPSHOT).scalar_one()
        number = connection.execute(
            insert(Generation)
            .values(
                queue=source.queue,
                trigger="adoption",
                started_at=text("clock_timestamp()"),
                snapshot=snapshot,
            )
            .returning(Generation.id)
        ).scalar_one()
        connection.execute(
            text(
                f"CREATE TABLE {partition(number)} (LIKE assignment.entries INCLUDING DEFAULTS"
                f" INCLUDING CONSTRAINTS, CONSTRAINT bound CHECK (generation_id = {number}),"
                " PRIMARY KEY (generation_id, user_id))"
            )
        )
        connection.execute(_NOTE_BUILD, {"queue": source.queue, "generation": number})
        for sql in changes.begin(source):
            connection.execute(text(sql))
        return number


def one_queue_each(engine: Engine, numbers: dict[str, int]) -> None:
    """Keep each user in one dialer queue only, then number the positions without gaps.

    `numbers` has the generation (build) of each dialer queue. A user who is in both queues of the
    dialer stays in the queue that the user's row in `user_call_scores` names. If it names neither,
    the user stays in `unsigned_users`.
    """
    with engine.begin() as connection:
        if len(numbers) == len(QUEUE_TABLES):
            for stays, leaves in (
                ("outstanding_requests", "unsigned_users"),
                ("unsigned_users", "outstanding_requests"),
            ):
                connection.execute(
                    text(f"""
                    WITH gone AS (
                        DELETE FROM {partition(numbers[leaves])} e
                        USING {partition(numbers[stays])} o WHERE o.user_id = e.user_id
                        AND coalesce((SELECT s.current_queue_type FROM public.user_call_scores s
                                      WHERE s.user_id = e.user_id), '') {
                        "=" if stays == "outstanding_requests" else "<>"
                    } 'outstanding_requests'
                        RETURNING e.user_id)
                    INSERT INTO assignment.adoption_decisions (at, found_in, user_id, rule)
                    SELECT clock_timestamp(), '{QUEUE_TABLES[leaves]}', user_id,
                           'in both queues: stays in {stays}' FROM gone
                    ON CONFLICT DO NOTHING
                    """)
                )
        for number in numbers.values():
            connection.execute(
                text(f"""
                UPDATE {partition(number)} e SET rank = numbered.rank FROM (
                    SELECT user_id, row_number() OVER (ORDER BY rank, user_id) AS rank
                    FROM {partition(number)}) AS numbered
                WHERE numbered.user_id = e.user_id AND numbered.rank <> e.rank
                """)
            )


def copy_statement(source: SourceTable, number: int, table: str, *, first: bool = False) -> str:
    """Return the SQL that copies the next batch of rows of a dialer's queue table into `table`.

    `source`: the dialer's queue table. `number`: the generation (build) whose users are in `table`.
    The SQL has two parameters: `queue`, the name of the dialer queue, and `batch`, the number of
    rows. It continues after the row that was copied last; with `first` it begins with the first
    row.
    """
    last = "(SELECT last_id FROM assignment.adoptions WHERE queue = :queue)"
    after = "" if first else f"WHERE q.id > {last}"
    return f"""
        WITH batch AS MATERIALIZED (
            SELECT q.id, q.user_id, q.status, q.queue_position, q.priority_score, q.created_at
            FROM public.{source.table} q
            {after}
            ORDER BY q.id LIMIT :batch
        ), copied AS (
            INSERT INTO {table} AS e (generation_id, user_id, rank, score)
            SELECT DISTINCT ON (user_id) {number}, user_id,
                   {narrowed("coalesce(queue_position, 2147483647)")}, {score("batch")}
            FROM batch WHERE status IN ('pending', 'assigned')
            ORDER BY user_id, queue_position NULLS LAST, created_at, id
            ON CONFLICT (generation_id, user_id) DO UPDATE
            SET rank = excluded.rank, score = excluded.score WHERE excluded.rank < e.rank
        )
        UPDATE assignment.adoptions a SET rows_read = a.rows_read + (SELECT count(*) FROM batch),
               last_id = coalesce((SELECT id FROM batch ORDER BY id DESC LIMIT 1), a.last_id)
        WHERE a.queue = :queue
        RETURNING (SELECT count(*) FROM batch) AS copied, a.rows_read AS total
    """


def duplicates_statement(source: SourceTable) -> str:
    """Return the SQL that records rows that the copy leaves out, each with the reason.

    The SQL records a pending or assigned row if the user has another such row with a better
    position, and a row with a status that the dialer does not declare. Rows with another declared
    status, such as completed, are left out of the copy without a record.
    """
    return f"""
        INSERT INTO assignment.adoption_decisions (at, found_in, row_id, user_id, rule)
        SELECT clock_timestamp(), '{source.table}', id, user_id, rule FROM (
            SELECT q.id, q.user_id, CASE
                WHEN coalesce(q.status, '') NOT IN ('pending', 'assigned', 'completed', 'skipped',
                                                    'inactive', 'invalid')
                THEN 'status outside the vocabulary: not queued'
                WHEN q.status IN ('pending', 'assigned') AND row_number() OVER (
                    PARTITION BY q.user_id, q.status IN ('pending', 'assigned')
                    ORDER BY q.queue_position NULLS LAST, q.created_at, q.id) > 1
                THEN 'twice in this queue: the lowest position stays' END AS rule
            FROM public.{source.table} q) AS judged
        WHERE rule IS NOT NULL ON CONFLICT DO NOTHING
    """


_SNAPSHOT = text("SELECT pg_current_snapshot()::text")


_FIND_BUILD = text("""
    SELECT a.generation_id FROM assignment.adoptions a
    JOIN assignment.generations g ON g.id = a.generation_id AND g.state = 'building'
    WHERE a.queue = :queue AND a.switched_at IS NULL
""")


_LAST_ID = text("SELECT last_id FROM assignment.adoptions WHERE queue = :queue")


_NOTE_BUILD = text("""
    INSERT INTO assignment.adoptions (queue, generation_id) VALUES (:queue, :generation)
    ON CONFLICT (queue) DO UPDATE SET generation_id = excluded.generation_id, last_id = NULL,
    rows_read = 0, switched_at = NULL
""")
