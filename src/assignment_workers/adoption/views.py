"""Views that have the names of the dialer's tables and show our data to programs that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assignment_workers.adoption.shapes import (
    DEPLOYED,
    LEGACY_CALL_QUEUE,
    MADE,
    QUEUE_TABLES,
    TARGET,
    TIME,
)
from assignment_workers.schema.migrate import OUR_VIEW

CALL_QUEUE = "call_queue"
"""The name of the old queue table that the dialer needs for its call sessions."""

REFUSE_WRITES = """
CREATE OR REPLACE FUNCTION assignment.refuse_write() RETURNS trigger LANGUAGE plpgsql AS $refuse$
BEGIN
    RAISE EXCEPTION 'public.% can only be read: ask for the next user with POST /v1/requests, '
        'finish with POST /v1/assignments/{id}/complete, skip or release, and rebuild with '
        'POST /v1/queues/{queue}/regenerate', TG_TABLE_NAME
        USING ERRCODE = 'feature_not_supported',
        HINT = 'The documentation says which call takes the place of which write: Taking over an'
            ' existing dialer''s database';
END $refuse$
"""

# A user in a dialer queue has the same id in every rebuild.
_VALUES: Mapping[str, tuple[str, str]] = {
    "id": ("md5('{queue} ' || user_id)::uuid", "uuid"),
    "user_id": ("user_id", "bigint"),
    "priority_score": ("score", "integer"),
    "queue_position": ("rank", "integer"),
    "status": ("status", "text"),
    "queue_reason": ("reason", "text"),
    "assigned_to_agent": ("agent_id", "integer"),
    "assigned_to_agent_id": ("agent_id", "integer"),
    "assigned_at": ("(claimed_at AT TIME ZONE 'UTC')::timestamp(3)", TIME),
    "available_from": (
        "(coalesce(available_from, published_at) AT TIME ZONE 'UTC')::timestamp(3)",
        TIME,
    ),
    "created_at": ("(published_at AT TIME ZONE 'UTC')::timestamp(3)", TIME),
    "updated_at": (
        "(coalesce(claimed_at, published_at) AT TIME ZONE 'UTC')::timestamp(3)",
        TIME,
    ),
}
"""Maps a column of the dialer's queue table to the value that our view shows in that column.

Each value is a pair: the SQL expression, and the expression's SQL type. A column that is not named
here shows its default, or null.
"""


def create(table: str, queue: str, types: Mapping[str, str]) -> Sequence[str]:
    """Return the statements that create the view of a dialer queue.

    The view's name is that of the table with a suffix (`MADE`), until the table is renamed and the
    view gets the table's name. The view has the columns of the table that it replaces, in the same
    order and with the same `types`, so statements prepared earlier keep working. Claimable users
    are shown as pending, held users as assigned, users who may be called only later as skipped, and
    removed users as inactive. A column that somebody added to the table is null.
    """
    return _view(f"{table}{MADE}", _query(table, queue, types))


def renew(table: str, queue: str, types: Mapping[str, str]) -> Sequence[str]:
    """Return the statements that recreate an existing view with the same columns.

    Roles keep their privileges on the view. The statements can be repeated.
    """
    return _view(table, _query(table, queue, types))


def _query(table: str, queue: str, types: Mapping[str, str]) -> str:
    known = {**TARGET[table].columns, **DEPLOYED[table].columns}
    shown = []
    for name, kind in types.items():
        default = "NULL"
        if name in known and known[name].default not in (None, "now()"):
            default = str(known[name].default)
        if name == "requirement_types":
            default = "'{}'" if kind.endswith("[]") else "'[]'"
        value, of = _VALUES.get(name, (default, ""))
        quoted = name.replace('"', '""')
        shown.append(f'{_as(value.replace("{queue}", queue), of, kind)} AS "{quoted}"')
    return f"SELECT {', '.join(shown)} FROM ({_users_query(queue)}) AS place {_UNLOCKABLE}"


# A row computed by a view cannot be locked, and with FOR UPDATE SKIP LOCKED PostgreSQL would give
# the row to two readers. PostgreSQL refuses the lock on the nullable side of an outer join. The
# planner removes this join again, because it reads nothing and matches at most one row.
_UNLOCKABLE = (
    "LEFT JOIN (SELECT id AS of_none FROM assignment.generations) AS unlockable ON of_none = 0"
)


def _as(value: str, of: str, kind: str) -> str:
    """Return SQL that casts `value` from the type `of` to the type `kind`.

    Equal types get no cast, because a cast would keep PostgreSQL from using an index.
    """
    if of == kind:
        return value
    if of == TIME and kind.endswith("with time zone"):
        return f"({value} AT TIME ZONE 'UTC')::{kind}"
    return f"({value})::{kind}"


def take_name(table: str) -> str:
    """Return the statement that gives our new view the name of the dialer's queue table `table`.

    The dialer's table must have been renamed before, because the name must be free.
    """
    return f"ALTER VIEW public.{table}{MADE} RENAME TO {table}"


def create_call_queue() -> Sequence[str]:
    """Return the statements that create the view `call_queue`, for readers of an old table.

    The old table had the name `call_queue` too: it was the dialer's first queue table. The view
    shows the users of both queues of the existing dialer, `unsigned_users` and
    `outstanding_requests`. Run the statements only in a database that no longer has the table. A
    table `call_queue` that still exists has to stay, because the rows of the dialer's table
    `call_sessions` refer to it.
    """
    shown = []
    for name, column in LEGACY_CALL_QUEUE.columns.items():
        default = "NULL" if column.default in (None, "now()") else column.default
        value = _VALUES.get(name, (f"{default}::{column.type}", ""))[0]
        value = value.replace("'{queue} '", "queue || ' '")
        shown.append(f'{"queue" if name == "queue_type" else value} AS "{name}"')
    places = " UNION ALL ".join(_users_query(queue) for queue in QUEUE_TABLES)
    return _view(CALL_QUEUE, f"SELECT {', '.join(shown)} FROM ({places}) AS every {_UNLOCKABLE}")


def _view(table: str, query: str) -> Sequence[str]:
    made = [f"CREATE OR REPLACE VIEW public.{table} AS {query}"]
    made.append(f"COMMENT ON VIEW public.{table} IS '{OUR_VIEW}'")
    for name, when, every in (
        ("refuse_write", "INSTEAD OF", "ROW"),
        ("refuse_statement", "BEFORE", "STATEMENT"),
    ):
        made.append(
            f"CREATE OR REPLACE TRIGGER {name} {when} INSERT OR UPDATE OR DELETE ON public.{table} "
            f"FOR EACH {every} EXECUTE FUNCTION assignment.refuse_write()"
        )
    return made


def _users_query(queue: str) -> str:
    """Return a query of a dialer queue's users: those in its published generation, and held ones.

    A user whom an agent holds from this queue may have no entry in that generation. The query has
    one branch per status, so that a reader of one status reads only that branch. The branch of the
    pending users is sorted by rank. The ORDER BY is inside this branch, because the planner would
    not move an ORDER BY of the whole query into the branch. PostgreSQL reads the pending users in
    this order from an index, the same index from which a claim reads users. So reading the first
    user costs the same with ten entries and with ten million.
    """
    number, published_at = (
        f"(SELECT {column} FROM assignment.generations"
        f" WHERE queue = '{queue}' AND state = 'published')"
        for column in ("id", "published_at")
    )

    def placed(state: str, status: str, rest: str) -> str:
        return f"""
        (SELECT e.user_id, e.score, e.rank, {published_at} AS published_at, e.available_from,
                e.reason, NULL::integer AS agent_id, NULL::timestamptz AS claimed_at,
                '{status}'::text AS status, '{queue}'::text AS queue
         FROM assignment.entries e
         WHERE e.generation_id = {number} AND e.state = '{state}' {rest})"""

    unheld = """AND NOT EXISTS (
            SELECT FROM assignment.assignments a
            WHERE a.user_id = e.user_id AND a.state = 'active')"""
    held = f"""
        (SELECT a.user_id, coalesce(e.score, a.score), coalesce(e.rank, a.rank::integer),
                CASE WHEN e.user_id IS NULL THEN a.claimed_at ELSE {published_at} END,
                e.available_from, a.reason, a.agent_id, a.claimed_at, 'assigned', '{queue}'
         FROM assignment.assignments a
         LEFT JOIN assignment.entries e ON e.generation_id = {number} AND e.user_id = a.user_id
         WHERE a.state = 'active' AND (a.queue = '{queue}' OR e.user_id IS NOT NULL))"""
    return " UNION ALL ".join(
        (
            placed("ready", "pending", "ORDER BY e.rank"),
            placed("waiting", "skipped", unheld),
            placed("out", "inactive", unheld),
            held,
        )
    )
