"""The incident: agent 26 is found user 2064, the dialer queue is rebuilt, the assignment fails.

The same three steps, in the same order, are put to the dialer that failed, to two usual remedies,
and to this project (original-dialer section 0).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest
from sqlalchemy import Engine, event, text

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Assigned, Done, RequestAnswer
from assignment_workers.assignment.claim import claim
from assignment_workers.assignment.doctor import examine
from assignment_workers.assignment.finish import Owner, complete
from assignment_workers.assignment.publish import publish
from assignment_workers.assignment.regenerate import regenerate
from assignment_workers.assignment.request import Request
from assignment_workers.assignment.turn import Turn
from assignment_workers.policy.queues import POLICIES, UNSIGNED_USERS
from assignment_workers.runtime import demo
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.line import Line
from assignment_workers.settings import Settings
from tests.processes import wait_until

AGENT = 26
USER = demo.INCIDENT_USER
SETTINGS = Settings.from_environment({})


class RecordNotFound(Exception):
    """What the original dialer met: the row to update is not there."""


class Dialer(Protocol):
    """The three steps, so that a test can put another's step between them."""

    def find(self, agent: int) -> object:
        """The next user for this agent, found and validated but not yet theirs."""

    def rebuild(self) -> None:
        """The dialer queue is built anew, as far as this dialer lets it while somebody is found."""

    def assign(self, agent: int, found: Any) -> int:
        """The user is the agent's now."""

    def holders(self) -> list[int]:
        """Who holds the user, by the dialer's own records, after all is done."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A call centre whose next user of `unsigned_users` is the incident's."""
    made = connect(database_url, name="test", statement_timeout=timedelta(seconds=30), pool_size=6)
    with made.begin() as connection:
        demo.seed(connection, users=1100, seed=7, now=datetime.now(UTC))
        connection.execute(
            text("UPDATE user_call_scores SET created_at = now() WHERE user_id = :user"),
            {"user": USER},
        )
    yield made
    made.dispose()


def incident(dialer: Dialer) -> int:
    """What happened on 2025-07-31 at 09:04:59, in its order: the user whom agent 26 is given."""
    found = dialer.find(AGENT)
    dialer.rebuild()
    return dialer.assign(AGENT, found)


class FindThenUpdate:
    """The dialer that failed: find, then update by id; a rebuild deletes and inserts every row."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._run(
            "CREATE TABLE unsigned_users_queue (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
            " user_id bigint NOT NULL, priority_score int NOT NULL, queue_position int NOT NULL,"
            " status text NOT NULL DEFAULT 'pending', assigned_to_agent int)"
        )
        self._fill()

    def find(self, agent: int) -> object:
        return self._run(
            "SELECT id, user_id FROM unsigned_users_queue WHERE status = 'pending'"
            " ORDER BY queue_position LIMIT 1"
        )[0]

    def rebuild(self) -> None:
        self._run("DELETE FROM unsigned_users_queue")
        self._fill()

    def assign(self, agent: int, found: Any) -> int:
        rows = self._run(
            "UPDATE unsigned_users_queue SET status = 'assigned', assigned_to_agent = :agent"
            " WHERE id = :id RETURNING user_id",
            agent=agent,
            id=found.id,
        )
        if not rows:
            raise RecordNotFound
        return int(rows[0].user_id)

    def holders(self) -> list[int]:
        rows = self._run(
            "SELECT assigned_to_agent FROM unsigned_users_queue"
            " WHERE user_id = :user AND status = 'assigned'",
            user=USER,
        )
        return [row.assigned_to_agent for row in rows]

    def _fill(self) -> None:
        self._run(
            "INSERT INTO unsigned_users_queue (user_id, priority_score, queue_position)"
            " SELECT user_id, current_score,"
            " row_number() OVER (ORDER BY current_score, created_at DESC)"
            " FROM user_call_scores WHERE current_queue_type = 'unsigned_users'"
        )

    def _run(self, sql: str, **parameters: object) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), parameters)
            return list(result.all()) if result.returns_rows else []


class FindThenUpsert(FindThenUpdate):
    """A usual remedy: a row that is gone is inserted again."""

    def assign(self, agent: int, found: Any) -> int:
        rows = self._run(
            "INSERT INTO unsigned_users_queue (id, user_id, priority_score, queue_position, status,"
            " assigned_to_agent) VALUES (:id, :user, 0, 1, 'assigned', :agent)"
            " ON CONFLICT (id) DO UPDATE SET status = 'assigned', assigned_to_agent = :agent"
            " RETURNING user_id",
            agent=agent,
            id=found.id,
            user=found.user_id,
        )
        return int(rows[0].user_id)


class SkipLocked(FindThenUpdate):
    """Another: the claim is one statement, but a rebuild still deletes every row."""

    def find(self, agent: int) -> object:
        return self._run(
            "UPDATE unsigned_users_queue SET status = 'assigned', assigned_to_agent = :agent"
            " WHERE id = (SELECT id FROM unsigned_users_queue WHERE status = 'pending'"
            " ORDER BY queue_position LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, user_id",
            agent=agent,
        )[0]

    def assign(self, agent: int, found: Any) -> int:
        return int(found.user_id)


class Ours:
    """This project. A claim is stopped between its last read and its first write."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.line = Line(engine, term=0)
        self.publishing: threading.Thread | None = None
        self.published: list[object] = []
        self._claiming: threading.Thread | None = None
        self._go_on = threading.Event()
        self._answers: list[RequestAnswer | None] = []
        self._publish(self._build())

    def find(self, agent: int) -> object:
        """The claim's transaction has found the user and has written nothing."""
        found = threading.Event()

        def stopped() -> None:
            found.set()
            self._go_on.wait(20)

        def ask(turn: Turn) -> list[RequestAnswer | None]:
            asked = [Request(agent, "incident", "unsigned_users")]
            with before_its_first_write(turn, stopped):
                return claim(turn, asked, policies=POLICIES, settings=SETTINGS)

        self._claiming = threading.Thread(
            target=lambda: self._answers.extend(self.line.run(ask)), daemon=True
        )
        self._claiming.start()
        assert found.wait(10)
        return None

    def rebuild(self) -> None:
        """The build runs to its end; its publication has to wait for the claim."""
        built = self._build()
        self.publishing = threading.Thread(target=lambda: self._publish(built), daemon=True)
        self.publishing.start()
        wait_until(self._publication_waits, "the publication to stand behind the claim")

    def assign(self, agent: int, found: Any) -> int:
        self._go_on.set()
        assert self._claiming
        assert self.publishing
        self._claiming.join(10)
        self.publishing.join(10)
        (answer,) = self._answers
        assert isinstance(answer, Assigned)
        return answer.assignment.user_id

    def holders(self) -> list[int]:
        with self.engine.connect() as connection:
            sql = "SELECT agent_id FROM assignment.assignments WHERE user_id = :u AND state = 'active'"
            return list(connection.execute(text(sql), {"u": USER}).scalars())

    def _build(self) -> int:
        def work(given: jobs.Work) -> jobs.Counts:
            number, _ = regenerate(given, UNSIGNED_USERS, trigger="level", settings=SETTINGS)
            return {"generation": number}

        job = jobs.Job("queue.regenerate", "level", UNSIGNED_USERS.queue)
        return jobs.run(self.engine, job, work).counts["generation"]

    def _publish(self, generation: int) -> None:
        self.published.append(
            self.line.run(lambda turn: publish(turn, generation, settings=SETTINGS))
        )

    def _publication_waits(self) -> bool:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE 'UPDATE assignment.sequencer%'"
        )
        with self.engine.connect() as connection:
            return bool(connection.execute(text(sql)).scalar_one())


@contextmanager
def before_its_first_write(turn: Turn, then: Callable[[], object]) -> Iterator[None]:
    """Stop the turn where the original dialer was overtaken."""

    def stop(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO assignment.assignments" in statement:
            then()

    event.listen(turn.connection, "before_cursor_execute", stop)
    try:
        yield
    finally:
        event.remove(turn.connection, "before_cursor_execute", stop)


def test_find_then_update_loses_the_user_to_the_rebuild(engine: Engine) -> None:
    dialer = FindThenUpdate(engine)
    with pytest.raises(RecordNotFound):
        incident(dialer)
    assert dialer.holders() == []


def test_an_upsert_leaves_the_user_to_be_called_twice(engine: Engine) -> None:
    dialer = FindThenUpsert(engine)
    assert incident(dialer) == USER
    assert dialer.find(27).user_id == USER  # type: ignore[attr-defined]


def test_skip_locked_alone_loses_the_hold_to_the_rebuild(engine: Engine) -> None:
    dialer = SkipLocked(engine)
    assert incident(dialer) == USER
    assert dialer.holders() == []


def test_here_the_agent_holds_the_user_whatever_is_rebuilt(engine: Engine) -> None:
    dialer = Ours(engine)
    assert incident(dialer) == USER
    assert dialer.holders() == [AGENT]
    first, second = dialer.published
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert second.counts["held"] == 1, "the new generation knows that the user is held"
    other = dialer.line.run(
        lambda turn: claim(
            turn, [Request(27, "next", "unsigned_users")], policies=POLICIES, settings=SETTINGS
        )
    )[0]
    assert isinstance(other, Assigned)
    assert other.assignment.user_id != USER
    with engine.connect() as connection:
        assert [each for each in examine(connection) if not each.ok] == []
    held = dialer._answers[0]
    assert isinstance(held, Assigned)
    ended = dialer.line.run(
        lambda turn: complete(
            turn, Owner(held.assignment.id, AGENT, held.assignment.version), "no_answer"
        )
    )
    assert ended.outcome == "completed"
