"""Bring a dialer's database to ours while the dialer runs: expand, backfill, switch, contract.

Each step commits what it did together with the note that it did it, so a run that was killed is
taken up where it stood, and one that is done changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, insert, select, text
from sqlalchemy.schema import CreateColumn

from assignment_workers.adoption import views
from assignment_workers.adoption.inspect import Inspected, Report, Verdict, agent_expression
from assignment_workers.adoption.inspect import inspect as read_schema
from assignment_workers.adoption.shapes import QUEUE_TABLES
from assignment_workers.assignment import entries, ledger
from assignment_workers.assignment.answers import Assigned, RequestAnswer
from assignment_workers.assignment.holds import held
from assignment_workers.assignment.publish import publish
from assignment_workers.assignment.regenerate import partition
from assignment_workers.assignment.request import Request
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.errors import SchemaMismatch
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.engine import connect
from assignment_workers.schema.migrate import OUR_VIEW
from assignment_workers.schema.retry import patiently
from assignment_workers.schema.tables import DEFAULT_LANE, Assignment, Generation, Sequencer
from assignment_workers.settings import Settings

KEPT = "_before_adoption"
"""What the name of a table that was taken over ends with; it is never dropped."""
BATCH = 20_000
LOCK_AT_MOST = timedelta(milliseconds=250)
"""How long a statement waits for a lock, and the dialer's statements behind it."""
SWITCH_AT_MOST = timedelta(milliseconds=700)
"""How long the switch keeps the tables to itself: under a second with the wait for them."""
TRY_SECONDS = 300.0
STATEMENT_AT_MOST = timedelta(minutes=30)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A table of the dialer's that is taken over, and what it is like."""

    queue: str
    table: str
    types: dict[str, str]

    @property
    def agent(self) -> str:
        """Its agent in SQL."""
        return agent_expression(self.types, "q")


@contextmanager
def opened(database_url: str) -> Iterator[Engine]:
    """An engine whose statements stand in nobody's way for long."""
    engine = connect(
        database_url,
        name="assignment-workers schema migrate",
        statement_timeout=STATEMENT_AT_MOST,
        lock_timeout=LOCK_AT_MOST,
    )
    try:
        yield engine
    finally:
        engine.dispose()


def migrate(database_url: str, *, settings: Settings, tell: Tell, batch: int = BATCH) -> str:
    """Bring the database to ours from any state that `inspect` can name; returns the revision.

    `tell` hears of every step and batch as it is committed. Raises `SchemaMismatch` for a table
    that is of neither schema, before anything was changed, and `DatabaseUnavailable`.
    """
    with opened(database_url) as engine:
        with engine.connect() as connection:
            refuse_unknown(read_schema(connection))
        expand(engine, database_url, tell)
        patiently(lambda: renew_views(engine), seconds=TRY_SECONDS)
        with engine.connect() as connection:
            sources = found_sources(connection)
        if sources:
            _keep_books(engine)
            numbers = {
                each.queue: backfill(engine, each, tell=tell, batch=batch) for each in sources
            }
            one_queue_each(engine, numbers)
            patiently(
                lambda: switch(engine, sources, numbers, settings=settings), seconds=TRY_SECONDS
            )
            tell(f"switch: {', '.join(each.table for each in sources)} are views now")
            tell(f"contract: the old tables are kept, their names end with {KEPT}")
        if patiently(lambda: show_call_queue(engine), seconds=TRY_SECONDS):
            tell(f"contract: {views.CALL_QUEUE}, which was not there, is a view to read")
    return migrations.head()


def refuse_unknown(report: Report) -> None:
    """Raise `SchemaMismatch` for the first table that we need and cannot tell."""
    for each in report.tables:
        if each.needed and each.verdict is Verdict.UNKNOWN:
            raise SchemaMismatch(f"{_unlike(each)}: nothing was changed; see `schema inspect`")


def _unlike(table: Inspected) -> str:
    first = next((one for one in table.differences if one.aspect != "index"), None)
    about = f" ({first.aspect} {first.what})" if first else ""
    return f"the table public.{table.table} is of no schema that is known{about}"


def found_sources(connection: Connection) -> list[Source]:
    """The dialer's queue tables that are still its own."""
    return _described(connection, _SOURCES, {})


def _described(connection: Connection, which: TextClause, given: Mapping[str, str]) -> list[Source]:
    found = connection.execute(which, {"names": list(QUEUE_TABLES.values()), **given})
    types: dict[str, dict[str, str]] = {}
    for row in found:
        types.setdefault(row.name, {})[row.column] = row.type
    return [
        Source(queue, table, types[table])
        for queue, table in QUEUE_TABLES.items()
        if table in types
    ]


def expand(engine: Engine, database_url: str, tell: Tell) -> None:
    """Our schema, and in the shared tables what is missing: only added, nothing rewritten."""
    patiently(
        lambda: migrations.upgrade(database_url, lock_timeout=LOCK_AT_MOST), seconds=TRY_SECONDS
    )
    with engine.connect() as connection:
        missing = list(additions(connection))
    for sql in missing:
        patiently(lambda sql=sql: _run(engine, sql), seconds=TRY_SECONDS)  # type: ignore[misc]
    tell(f"expand: at revision {migrations.head()}, {len(missing)} columns and defaults added")


def additions(connection: Connection) -> Iterator[str]:
    """What the shared tables lack of ours, each as a statement that rewrites no row."""
    dialect = connection.dialect
    for table in read_schema(connection).tables:
        model = Agent.metadata.tables.get(f"public.{table.table}")
        if model is None or table.verdict is Verdict.ABSENT:
            continue
        for each in table.differences:
            column = model.columns.get(each.what)
            if each.aspect == "column" and column is not None:
                words = CreateColumn(column).compile(dialect=dialect)
                yield f"ALTER TABLE public.{table.table} ADD COLUMN IF NOT EXISTS {words}"
            elif each.aspect == "default" and each.found is None:
                yield (
                    f"ALTER TABLE public.{table.table} "
                    f"ALTER COLUMN {each.what} SET DEFAULT {each.expected}"
                )
            elif each.aspect == "unique":
                yield f"CREATE UNIQUE INDEX CONCURRENTLY ON public.{table.table} ({each.what})"


def _run(engine: Engine, sql: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(sql))


def _keep_books(engine: Engine) -> None:
    with engine.begin() as connection:
        for sql in BOOKS:
            connection.execute(text(sql))


def backfill(engine: Engine, source: Source, *, tell: Tell, batch: int) -> int:
    """Copy who waits in the table into a generation, in batches by key; returns its number.

    A user who is there twice gets their best place. No batch locks a row of the dialer's.
    """
    number = _begun(engine, source)
    table = partition(number)
    while True:
        with engine.begin() as connection:
            row = connection.execute(
                text(copy_statement(source, number, table)), {"queue": source.queue, "batch": batch}
            ).one()
        if not row.copied:
            break
        tell(f"backfill: {source.table}: {row.total} rows read")
    with engine.begin() as connection:
        connection.execute(text(duplicates_statement(source)))
    return number


def _begun(engine: Engine, source: Source) -> int:
    """The generation that is being filled: that of the run before, or a new one."""
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
        return number


def one_queue_each(engine: Engine, numbers: dict[str, int]) -> None:
    """A user who is in both stays in the one of their score row, or else in `unsigned_users`.

    Then the places are numbered without gaps: a rank is one user's.
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


def switch(
    engine: Engine, sources: list[Source], numbers: dict[str, int], *, settings: Settings
) -> None:
    """In one transaction: holds become assignments, tables become views, generations are published.

    The dialer waits for it, once: its cost is that of the holds, not of the tables. What takes
    longer than `SWITCH_AT_MOST` once the tables are locked is undone, to be tried again: raises
    SQLAlchemy's `OperationalError`.
    """
    with engine.begin() as connection:
        prepare_partitions(connection, numbers)
    with engine.begin() as connection:
        turn = locked_turn(connection)
        for number in numbers.values():
            publish(turn, number)
        connection.execute(text(views.REFUSE_WRITES))
        for each in sources:
            for sql in views.create(each.table, each.queue, each.types):
                connection.execute(text(sql))
            connection.execute(text(_grant(each.table)))
        names = ", ".join(f"public.{each.table}" for each in sources)
        connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
        connection.execute(text(_BRIEFLY))
        connection.execute(text(holds_statement(sources)))
        connection.execute(text(JUDGE_HOLDS))
        connection.execute(_LEAVE_OTHERS, {"generations": list(numbers.values())})
        for each in sources:
            given = {"queue": each.queue, "generation": numbers[each.queue]}
            connection.execute(_PLACE_HOLDS, given)
        for each in sources:
            for sql in renaming(each.table):
                connection.execute(text(sql))
        _take_over(turn, numbers, settings)
        connection.execute(_SWITCHED, {"queues": list(numbers), "at": turn.now})
        connection.execute(_IN_TIME)


def renaming(table: str) -> tuple[str, str]:
    """The statements by which the table gives its name to the view."""
    return f"ALTER TABLE public.{table} RENAME TO {table}{KEPT}", views.take_name(table)


def renew_views(engine: Engine) -> None:
    """The views of an older version become those of this one; else nothing changes."""
    with engine.begin() as connection:
        for sql in renewal(connection):
            connection.execute(text(sql))


def renewal(connection: Connection) -> Iterator[str]:
    """The statements that make the views that are there as this version makes them."""
    for each in _described(connection, _VIEWS, {"comment": OUR_VIEW}):
        yield from views.renew(each.table, each.queue, each.types)
    if connection.execute(SHOWS_CALL_QUEUE, {"comment": OUR_VIEW}).scalar():
        yield from views.create_call_queue()


def show_call_queue(engine: Engine) -> bool:
    """Where a dialer was taken over that has no `call_queue`, show one; whether it was made now."""
    with engine.begin() as connection:
        if not connection.execute(_CALL_QUEUE_MISSING, {"comment": OUR_VIEW}).scalar_one():
            return False
        for sql in views.create_call_queue():
            connection.execute(text(sql))
        return True


def prepare_partitions(connection: Connection, numbers: dict[str, int]) -> None:
    """Index and attach the filled tables, and mark them built; done before, nothing is done."""
    for number in numbers.values():
        name = partition(number)
        if connection.execute(_ATTACHED, {"name": name}).scalar_one():
            continue
        ready = f"CREATE INDEX ON {name} (generation_id, rank) WHERE state = 'ready'"
        waiting = f"CREATE INDEX ON {name} (generation_id, available_from) WHERE state = 'waiting'"
        attach = f"ALTER TABLE assignment.entries ATTACH PARTITION {name} FOR VALUES IN ({number})"
        for sql in (ready, waiting, f"ANALYZE {name}", attach):
            connection.execute(text(sql))
        connection.execute(
            text(
                f"UPDATE assignment.generations SET built_at = clock_timestamp(), "
                f"size = (SELECT count(*) FROM {name}) WHERE id = :number"
            ),
            {"number": number},
        )


def locked_turn(connection: Connection) -> Turn:
    """A turn of the default lane: no sequencer, of whichever lane, writes while it lasts."""
    rows = connection.execute(
        select(Sequencer.lane, Sequencer.term).order_by(Sequencer.lane).with_for_update()
    ).all()
    term = next(row.term for row in rows if row.lane == DEFAULT_LANE)
    now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return Turn(connection, now, term)


def _take_over(turn: Turn, numbers: dict[str, int], settings: Settings) -> None:
    kept = turn.connection.execute(_HOLDS_KEPT).mappings().all()
    made: list[dict[str, Any]] = [
        {
            "id": turn.new_id(),
            "request_id": f"adopted-{row['row_id']}-{numbers[row['queue']]}",
            "user_id": row["user_id"],
            "agent_id": row["agent_id"],
            "queue": row["queue"],
            "generation_id": numbers[row["queue"]],
            "rank": row["rank"],
            "score": row["score"],
            "reason": row["reason"] or "adopted",
            "term": turn.term,
            "source": "queue",
            "state": "active",
            "version": 1,
            "claimed_at": turn.now,
            "lease_expires_at": turn.now + settings.lease,
            "accepted_at": turn.now,
        }
        for row in kept
    ]
    if made:
        turn.connection.execute(_INSERT_HOLDS, {"rows": made})
    entries.hold(turn, [each["user_id"] for each in made])
    turn.connection.execute(ledger.STORE, {"answered": ledger.answered(turn, _answers(made))})
    turn.record(
        *(
            {
                "kind": EventKind.ASSIGNED,
                "queue": each["queue"],
                "user_id": each["user_id"],
                "agent_id": each["agent_id"],
                "assignment_id": each["id"],
                "request_id": each["request_id"],
                "generation_id": each["generation_id"],
                "details": {
                    "rank": each["rank"],
                    "lease_expires_at": each["lease_expires_at"],
                    "adopted": True,
                },
            }
            for each in made
        )
    )


def _answers(made: list[dict[str, Any]]) -> dict[Request, RequestAnswer]:
    return {
        Request(each["agent_id"], each["request_id"], each["queue"]): Assigned(
            assignment=held(each)
        )
        for each in made
    }


def holds_statement(sources: Iterable[Source]) -> str:
    """Everything that the tables call assigned, for `JUDGE_HOLDS`."""
    holds = " UNION ALL ".join(_holds(sources))
    return f"CREATE TEMPORARY TABLE found_holds ON COMMIT DROP AS {holds}"


def _holds(sources: Iterable[Source]) -> Iterator[str]:
    for each in sources:
        yield (
            f"SELECT '{each.queue}' AS queue, '{each.table}' AS found_in, q.id AS row_id,"
            f" q.user_id, {each.agent} AS agent_id, q.assigned_at, q.queue_position AS position,"
            " q.priority_score AS score, q.queue_reason AS reason, NULL::text AS rule"
            f" FROM public.{each.table} q WHERE q.status = 'assigned'"
        )


def copy_statement(source: Source, number: int, table: str) -> str:
    return f"""
        WITH batch AS MATERIALIZED (
            SELECT q.id, q.user_id, q.status, q.queue_position, q.priority_score, q.created_at
            FROM public.{source.table} q
            WHERE q.id > coalesce((SELECT last_id FROM assignment.adoptions WHERE queue = :queue),
                                  '00000000-0000-0000-0000-000000000000')
            ORDER BY q.id LIMIT :batch
        ), copied AS (
            INSERT INTO {table} AS e (generation_id, user_id, rank, score)
            SELECT DISTINCT ON (user_id) {number}, user_id,
                   coalesce(queue_position, 2147483647), priority_score
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


def duplicates_statement(source: Source) -> str:
    """Say which rows lost: a user's best position stays; no other status than ours is copied."""
    return f"""
        INSERT INTO assignment.adoption_decisions (at, found_in, row_id, user_id, rule)
        SELECT clock_timestamp(), '{source.table}', id, user_id, rule FROM (
            SELECT q.id, q.user_id, CASE
                WHEN q.status NOT IN ('pending', 'assigned', 'completed', 'skipped', 'inactive',
                                      'invalid')
                THEN 'status outside the vocabulary: not queued'
                WHEN q.status IN ('pending', 'assigned') AND row_number() OVER (
                    PARTITION BY q.user_id, q.status IN ('pending', 'assigned')
                    ORDER BY q.queue_position NULLS LAST, q.created_at, q.id) > 1
                THEN 'twice in this queue: the lowest position stays' END AS rule
            FROM public.{source.table} q) AS judged
        WHERE rule IS NOT NULL ON CONFLICT DO NOTHING
    """


def _grant(table: str) -> str:
    """Whoever could use the table can use the view: a write is refused by us, with a word why."""
    return f"""
        DO $grant$ DECLARE given record; BEGIN
            FOR given IN SELECT DISTINCT grantee, privilege_type FROM pg_class c,
                LATERAL aclexplode(c.relacl) WHERE c.oid = 'public.{table}'::regclass
                AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
            LOOP
                EXECUTE format('GRANT %s ON public.{table}{views.MADE} TO %s', given.privilege_type,
                    CASE given.grantee WHEN 0 THEN 'PUBLIC'
                    ELSE quote_ident(pg_get_userbyid(given.grantee)) END);
            END LOOP;
        END $grant$
    """


BOOKS = (
    """CREATE TABLE IF NOT EXISTS assignment.adoptions (
        queue text PRIMARY KEY, generation_id bigint NOT NULL, last_id uuid,
        rows_read bigint NOT NULL DEFAULT 0, switched_at timestamptz)""",
    """CREATE TABLE IF NOT EXISTS assignment.adoption_decisions (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL,
        found_in text NOT NULL, row_id uuid, user_id bigint, agent_id integer, rule text NOT NULL,
        UNIQUE NULLS NOT DISTINCT (found_in, row_id, user_id, rule))""",
)
"""How far a taking over is, and what it decided: only where there is something to take over."""

_COLUMNS = """
    SELECT c.relname AS name, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(:names)
"""
_SOURCES = text(f"{_COLUMNS} AND c.relkind IN ('r', 'p')")
_VIEWS = text(f"{_COLUMNS} AND c.relkind = 'v' AND obj_description(c.oid, 'pg_class') = :comment")
SHOWS_CALL_QUEUE = text(
    f"SELECT obj_description(to_regclass('public.{views.CALL_QUEUE}'), 'pg_class') = :comment"
)
_CALL_QUEUE_MISSING = text(f"""
    SELECT to_regclass('public.{views.CALL_QUEUE}') IS NULL AND EXISTS (
        SELECT FROM pg_class c WHERE c.relkind = 'v'
        AND c.relnamespace = 'public'::regnamespace
        AND obj_description(c.oid, 'pg_class') = :comment)
""")
_SWITCH_MS = round(SWITCH_AT_MOST.total_seconds() * 1000)
# No statement outlasts the time, nor does a client that has stopped; the last of these asks whether
# all of it together did, and ends it as PostgreSQL ends a statement that takes too long.
_BRIEFLY = f"""
    SET LOCAL statement_timeout TO {_SWITCH_MS};
    SET LOCAL idle_in_transaction_session_timeout TO {_SWITCH_MS};
    SELECT set_config('assignment.locked_at', clock_timestamp()::text, true)
"""
_IN_TIME = text(f"""
    DO $in_time$ BEGIN
        IF clock_timestamp() - current_setting('assignment.locked_at')::timestamptz
            > interval '{_SWITCH_MS} ms' THEN
            RAISE EXCEPTION 'the switch took too long' USING ERRCODE = 'query_canceled';
        END IF;
    END $in_time$
""")
_SNAPSHOT = text("SELECT pg_current_snapshot()::text")
_FIND_BUILD = text("""
    SELECT a.generation_id FROM assignment.adoptions a
    JOIN assignment.generations g ON g.id = a.generation_id AND g.state = 'building'
    WHERE a.queue = :queue AND a.switched_at IS NULL
""")
_NOTE_BUILD = text("""
    INSERT INTO assignment.adoptions (queue, generation_id) VALUES (:queue, :generation)
    ON CONFLICT (queue) DO UPDATE SET generation_id = excluded.generation_id, last_id = NULL,
    rows_read = 0, switched_at = NULL
""")
_ATTACHED = text("SELECT relispartition FROM pg_class WHERE oid = CAST(:name AS regclass)")
_SWITCHED = text("""
    UPDATE assignment.adoptions SET switched_at = :at WHERE queue = ANY(:queues)
""")
# An agent keeps their newest hold; of the agents left on one user the newest keeps the user.
JUDGE_HOLDS = """
    UPDATE found_holds SET rule = 'assigned with no agent: back in the queue'
    WHERE agent_id IS NULL;
    UPDATE found_holds h SET rule = 'the agent does not exist: back in the queue'
    WHERE rule IS NULL AND NOT EXISTS (SELECT FROM public.agents a WHERE a.id = h.agent_id);
    UPDATE found_holds h SET rule = 'held already by an assignment'
    WHERE rule IS NULL AND EXISTS (SELECT FROM assignment.assignments a
        WHERE a.state = 'active' AND (a.user_id = h.user_id OR a.agent_id = h.agent_id));
    UPDATE found_holds h SET rule = 'an older hold of the agent: back in the queue'
    FROM (SELECT row_id, row_number() OVER (
              PARTITION BY agent_id ORDER BY assigned_at DESC NULLS LAST, row_id) AS n
          FROM found_holds WHERE rule IS NULL) AS numbered
    WHERE numbered.row_id = h.row_id AND numbered.n > 1;
    UPDATE found_holds h SET rule = 'an older hold of the user: the newest agent keeps them'
    FROM (SELECT row_id, row_number() OVER (
              PARTITION BY user_id ORDER BY assigned_at DESC NULLS LAST, row_id) AS n
          FROM found_holds WHERE rule IS NULL) AS numbered
    WHERE numbered.row_id = h.row_id AND numbered.n > 1;
    INSERT INTO assignment.adoption_decisions (at, found_in, row_id, user_id, agent_id, rule)
    SELECT clock_timestamp(), found_in, row_id, user_id, agent_id, rule FROM found_holds
    WHERE rule IS NOT NULL ON CONFLICT DO NOTHING
"""
_LEAVE_OTHERS = text("""
    DELETE FROM assignment.entries e USING found_holds h
    WHERE h.rule IS NULL AND e.user_id = h.user_id AND e.generation_id = ANY(:generations)
""")
# Who is held was taken first: their places come before all others, so the order of claims is kept.
_PLACE_HOLDS = text("""
    INSERT INTO assignment.entries (generation_id, user_id, rank, score)
    SELECT :generation, user_id, row_number() OVER (ORDER BY assigned_at, row_id)
           - count(*) OVER (), score
    FROM found_holds WHERE rule IS NULL AND queue = :queue
""")
_HOLDS_KEPT = text("""
    SELECT *, row_number() OVER (PARTITION BY queue ORDER BY assigned_at, row_id)
              - count(*) OVER (PARTITION BY queue) AS rank
    FROM found_holds WHERE rule IS NULL ORDER BY queue, rank
""")
_INSERT_HOLDS = insert_rows(
    Assignment,
    *(
        getattr(Assignment, name)
        for name in (
            "id",
            "request_id",
            "user_id",
            "agent_id",
            "queue",
            "generation_id",
            "rank",
            "score",
            "reason",
            "term",
            "source",
            "state",
            "version",
            "claimed_at",
            "lease_expires_at",
            "accepted_at",
        )
    ),
)
