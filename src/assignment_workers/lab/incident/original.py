"""The original dialer, which failed in the incident, and the remedies that were proposed for it.

In the incident, a rebuild deleted a row of the dialer queue while the row was being assigned to an
agent. The code follows docs/original-dialer.md, sections 0, 3, 5 and 6. The class of each remedy
changes one thing in its base class. The base class is the original or another remedy. Therefore any
difference between the results of a remedy and of its base class comes from that change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from assignment_workers.lab.incident.dialer import Given, RecordNotFound, warm
from assignment_workers.schema.engine import connect

QUEUE = "unsigned_users"
LIMIT = 200
LOW = 20
ATTEMPTS = 10
REPLICA_CONNECTIONS = 40
RETRIES = 3
BACK_OFF_SECONDS = 0.05

TABLE = """
CREATE TABLE unsigned_users_queue (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  user_id bigint NOT NULL,
  priority_score int NOT NULL DEFAULT 0,
  queue_position int NOT NULL,
  status text NOT NULL DEFAULT 'pending',
  assigned_to_agent int,
  assigned_at timestamp(3),
  created_at timestamp(3) DEFAULT now(),
  updated_at timestamp(3) DEFAULT now());
CREATE INDEX ON unsigned_users_queue (status, priority_score);
CREATE INDEX ON unsigned_users_queue (queue_position)
"""

FIND = """
SELECT id, user_id, updated_at FROM unsigned_users_queue
WHERE status = 'pending' AND assigned_to_agent IS NULL ORDER BY queue_position LIMIT 1
"""
"""The query for the first row of the queue. It locks no row.

Like the original's query it ignores the column `available_from`, so `TABLE` has no such column.
"""

ASSIGN = """
UPDATE unsigned_users_queue SET status = 'assigned', assigned_to_agent = :agent,
  assigned_at = now(), updated_at = clock_timestamp() WHERE id = :id RETURNING id
"""
"""The update that assigns a row by its id alone: if two agents run it, the later one gets the row.
"""

CANDIDATES = """
(SELECT user_id, current_score FROM user_call_scores
 WHERE current_queue_type = 'unsigned_users' AND is_active
   AND (next_call_after IS NULL OR next_call_after <= timezone('UTC', now()))
   AND current_score = 0 ORDER BY created_at DESC)
UNION ALL
(SELECT user_id, current_score FROM user_call_scores
 WHERE current_queue_type = 'unsigned_users' AND is_active
   AND (next_call_after IS NULL OR next_call_after <= timezone('UTC', now()))
   AND current_score > 0 AND created_at <= timezone('UTC', now()) - interval '2 hours'
 ORDER BY current_score, created_at DESC LIMIT :limit)
"""

VALID = """
SELECT u.is_enabled AND coalesce(u.current_signature_file_id, '') = ''
  AND NOT (EXISTS (SELECT 1 FROM crm.claims c WHERE c.user_id = u.id)
           AND NOT EXISTS (SELECT 1 FROM crm.claims c WHERE c.user_id = u.id
                           AND coalesce(lower(c.status), '') <> 'cancelled'))
FROM crm.users u WHERE u.id = :user
"""

HELD = "SELECT user_id FROM unsigned_users_queue WHERE status = 'assigned'"

CALLED = """
UPDATE user_call_scores SET current_score = current_score + 1, total_attempts = total_attempts + 1,
  next_call_after = timezone('UTC', now()) + interval '4 hours', last_outcome = 'no_answer'
WHERE user_id = :user
"""


@dataclass(frozen=True)
class HeadRow:
    """The first row of the dialer queue, with the values at the time it was read.

    `row` is the id of the row. `version` is the time of the last change of the row.
    """

    row: UUID
    user_id: int
    version: object


class Original:
    """The original dialer: it reads a row of the queue, checks the user, then updates the row.

    The user is checked in another database, and the update uses the id of the row. A rebuild
    deletes all rows and inserts new ones. In the incident, a rebuild deleted the row between the
    first step and the last.
    """

    def __init__(
        self,
        database_url: str,
        *,
        agents: int,
        validation: timedelta,
        randomness: Random,
    ) -> None:
        """Create the dialer queue's table in this database and fill it.

        The dialer reads another database to check that a user is eligible. `validation` is the
        median time of this read, which the replay simulates with a pause.
        """
        limits = timedelta(seconds=30)
        self.engine: Engine = connect(
            database_url, name="replay", statement_timeout=limits, pool_size=agents + 4
        )
        self._replica: Engine = connect(
            database_url,
            name="replay replica",
            statement_timeout=limits,
            pool_size=REPLICA_CONNECTIONS,
        )
        warm(self.engine, agents)
        warm(self._replica, min(agents, REPLICA_CONNECTIONS))
        self._validation = validation.total_seconds()
        self._randomness = randomness
        self._rebuilds = 0
        self._run(TABLE)
        self.rebuild()

    def ask(self, agent: int) -> Given | None:
        """Assign the first valid user of the queue to this agent; return the user or None.

        The first row is found, its user is validated in another database, and the row is assigned
        by its id. If the user is invalid, the row becomes inactive and the next row is tried, up to
        ten rows in all. The result is None if no row is pending, or if the users of ten rows are
        invalid; the agent is then shown an empty queue. Raises `RecordNotFound` if a rebuild
        deletes the row after it was found and before it is assigned.
        """
        for _ in range(ATTEMPTS):
            found = self.find(agent)
            if found is None:
                return None
            if self._is_valid(found.user_id):
                return self.assign(agent, found)
            self._put_aside(found)
        return None

    def find(self, agent: int) -> HeadRow | None:
        """Return the first pending row, without assigning it; None if there is none."""
        with self._transaction(agent) as connection:
            row = connection.execute(text(FIND)).first()
        return HeadRow(row.id, row.user_id, row.updated_at) if row else None

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Assign the row `found`, which `find` returned, to the agent.

        The row is updated by its id. Raises `RecordNotFound` if a rebuild has deleted the row after
        `find` returned it.
        """
        with self._transaction(agent) as connection:
            row = connection.execute(text(ASSIGN), {"agent": agent, "id": found.row}).first()
        if row is None:
            raise RecordNotFound(str(found.row))
        return Given(found.user_id, found.row)

    def finish(self, agent: int, given: Given) -> bool:
        """Write the outcome to the score row, then complete the queue row by its id.

        Return False if a rebuild has deleted the queue row after the row was assigned. The outcome
        stays in the score row in that case too.
        """
        self._run(CALLED, user=given.user_id)
        completed = (
            "UPDATE unsigned_users_queue SET status = 'completed' WHERE id = :id RETURNING id"
        )
        return bool(self._run(completed, id=given.token))

    def check_level(self) -> None:
        """Rebuild if fewer than 20 rows are pending. Assigned rows do not count."""
        counted = "SELECT count(*) FROM unsigned_users_queue WHERE status = 'pending'"
        if self._run(counted)[0][0] < LOW:
            self.rebuild()

    def rebuild(self) -> None:
        """Delete all rows of the dialer queue, then insert the best users.

        Each statement is committed on its own, so agents see the half-built queue.
        """
        self._rebuilds += 1
        self._clear()
        self._fill(self._candidates())

    def rebuilds(self) -> int:
        """Return the number of rebuilds so far, including the one that first filled the queue."""
        return self._rebuilds

    def settle(self) -> None:
        """Do nothing: holds of the original dialer have no lease, so none of them can expire."""

    def stuck(self) -> int:
        """Return the number of users whose row in the dialer queue has the status 'assigned'."""
        return len({row.user_id for row in self._run(HELD)})

    def holders(self, user: int) -> list[int]:
        """Return the agents to whom the tables assign this user."""
        found = self._run(
            "SELECT assigned_to_agent FROM unsigned_users_queue"
            " WHERE user_id = :user AND status = 'assigned' ORDER BY 1",
            user=user,
        )
        return [row[0] for row in found]

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()
        self._replica.dispose()

    def _clear(self) -> None:
        self._run("DELETE FROM unsigned_users_queue")

    def _candidates(self) -> list[Any]:
        found = self._run(CANDIDATES, limit=LIMIT)
        new = sum(1 for row in found if row.current_score == 0)
        return found[: max(LIMIT, new)]

    def _fill(self, candidates: list[Any]) -> None:
        with self.engine.connect() as connection:
            for place, row in enumerate(candidates):
                connection.execute(
                    text(
                        "INSERT INTO unsigned_users_queue (user_id, priority_score, queue_position)"
                        " VALUES (:user, :score, :place)"
                    ),
                    {"user": row.user_id, "score": row.current_score, "place": place + 1},
                )
                connection.commit()

    def _is_valid(self, user: int) -> bool:
        """Return True if the other database shows the user as eligible.

        Sleeps first, to simulate the time that a read over a network takes.
        """
        if self._validation:
            time.sleep(self._validation * self._randomness.lognormvariate(0, 0.5))
        with self._replica.connect() as connection:
            return bool(connection.execute(text(VALID), {"user": user}).scalar())

    def _put_aside(self, found: HeadRow) -> None:
        self._run(
            "UPDATE unsigned_users_queue SET status = 'inactive' WHERE id = :id", id=found.row
        )

    @contextmanager
    def _transaction(self, agent: int) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    def _run(self, sql: str, **parameters: object) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), parameters)
            return list(result.all()) if result.returns_rows else []


class InOneTransaction(Original):
    """A remedy that was proposed for the original dialer: find and assign in one transaction."""

    def __init__(self, *given: Any, **options: Any) -> None:  # noqa: ANN401 - passed on
        self._open: dict[int, Connection] = {}
        super().__init__(*given, **options)

    def ask(self, agent: int) -> Given | None:
        """Find, validate and assign as `Original` does, but in one transaction."""
        try:
            return super().ask(agent)
        finally:
            if kept := self._open.pop(agent, None):
                kept.close()

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Assign the row, and commit the transaction that `find` began."""
        given = super().assign(agent, found)
        self._open[agent].commit()
        return given

    @contextmanager
    def _transaction(self, agent: int) -> Iterator[Connection]:
        if agent not in self._open:
            self._open[agent] = self.engine.connect()
        yield self._open[agent]

    def close(self) -> None:
        """Close the connections."""
        for connection in self._open.values():
            connection.close()
        super().close()


class Retried(Original):
    """A remedy that was proposed for the original dialer: retry a failed update.

    The time between the retries grows exponentially.
    """

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Assign the row; if the row is gone, retry three times.

        The retries fail too, because a deleted id never returns. After the last retry,
        `RecordNotFound` is raised.
        """
        for attempt in range(RETRIES):
            try:
                return super().assign(agent, found)
            except RecordNotFound:
                time.sleep(BACK_OFF_SECONDS * 2**attempt)
        return super().assign(agent, found)


class Optimistic(Original):
    """A remedy that was proposed for the original dialer: optimistic locking.

    The update succeeds only if the row is unchanged since it was read; otherwise the search for a
    row begins again.
    """

    def ask(self, agent: int) -> Given | None:
        """Find and assign a row; start again if the row has changed in the meantime.

        After three such repetitions a further conflict raises `RecordNotFound`. The agent is then
        shown an empty queue.
        """
        for _ in range(RETRIES):
            try:
                return super().ask(agent)
            except RecordNotFound:
                continue
        return super().ask(agent)

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Assign the row, if it is unchanged since `find` read it.

        Raises `RecordNotFound` if the row has changed or was deleted.
        """
        guarded = ASSIGN.replace("WHERE", "WHERE status = 'pending' AND updated_at = :version AND")
        rows = self._run(guarded, agent=agent, id=found.row, version=found.version)
        if not rows:
            raise RecordNotFound(str(found.row))
        return Given(found.user_id, found.row)


class Locked(InOneTransaction):
    """A remedy for the original dialer: a lock makes claims wait while the queue is rebuilt."""

    SHARED = "SELECT pg_advisory_xact_lock_shared(907)"

    def rebuild(self) -> None:
        """Rebuild under an exclusive lock: running claims end first, and new claims wait."""
        with self.engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(907)"))
            super().rebuild()

    def find(self, agent: int) -> HeadRow | None:
        """Return the first pending row, after waiting for the end of a running rebuild."""
        with self._transaction(agent) as connection:
            connection.execute(text(self.SHARED))
        return super().find(agent)


class Upserted(Original):
    """A remedy for the original dialer: insert the row again if it is missing at the update."""

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Assign the row, or insert it if it is missing. This always succeeds."""
        self._run(
            "INSERT INTO unsigned_users_queue (id, user_id, queue_position, status,"
            " assigned_to_agent) VALUES (:id, :user, 1, 'assigned', :agent)"
            " ON CONFLICT (id) DO UPDATE SET status = 'assigned', assigned_to_agent = :agent",
            id=found.row,
            user=found.user_id,
            agent=agent,
        )
        return Given(found.user_id, found.row)


class SkipLocked(Original):
    """A remedy for the original dialer: find and assign in one statement, with SKIP LOCKED.

    The statement skips the rows that other claims have locked. A rebuild still deletes all rows.
    """

    def find(self, agent: int) -> HeadRow | None:
        """Assign the first row that no other claim has locked, and return the row.

        The user of the row is validated only after that.
        """
        rows = self._run(
            ASSIGN.replace(
                ":id", f"({FIND} FOR UPDATE SKIP LOCKED)".replace("id, user_id, updated_at", "id")
            )
            + ", user_id, updated_at",
            agent=agent,
        )
        return HeadRow(rows[0].id, rows[0].user_id, rows[0].updated_at) if rows else None

    def assign(self, agent: int, found: HeadRow) -> Given | None:
        """Return the user of the row `found`; `find` has already assigned this row to the agent."""
        return Given(found.user_id, found.row)


class Spared(SkipLocked):
    """A remedy for the original dialer: `SkipLocked`, and a rebuild keeps the assigned rows.

    An assignment has no lease. If an agent goes away without finishing a call, the row therefore
    stays assigned, and no agent gets its user again.
    """

    def _clear(self) -> None:
        self._run("DELETE FROM unsigned_users_queue WHERE status <> 'assigned'")

    def _candidates(self) -> list[Any]:
        held = {row[0] for row in self._run(HELD)}
        return [row for row in super()._candidates() if row.user_id not in held]


WAYS: dict[str, tuple[str, Callable[..., Original]]] = {
    "original": ("find, validate, update by id; delete all and insert", Original),
    "transaction": ("find and update in one transaction", InOneTransaction),
    "retry": ("retry with exponential back-off", Retried),
    "optimistic": ("optimistic locking, and find again", Optimistic),
    "lock": ("a lock while the queue is rebuilt", Locked),
    "upsert": ("upsert instead of update", Upserted),
    "skip-locked": ("FOR UPDATE SKIP LOCKED", SkipLocked),
    "spared": ("SKIP LOCKED, and a rebuild spares assigned rows", Spared),
}
"""Maps the name of the original, and of each remedy, to its description and its class."""
