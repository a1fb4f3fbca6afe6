"""The incident: agent 26 is found user 2064, the dialer queue is rebuilt, the assignment fails.

The same three steps, in the same order, are put to the dialer that failed, to the usual remedies,
and to this project (original-dialer section 0); then all of them are put to the same load.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from random import Random

import psycopg
import pytest
from sqlalchemy import Engine, event, text

from assignment_workers.assignment.answers import Assigned, Done, Held, RequestAnswer
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.devstack import demo
from assignment_workers.lab.incident.dialer import Given, RecordNotFound
from assignment_workers.lab.incident.load import LoadPlan
from assignment_workers.lab.incident.original import WAYS, Original
from assignment_workers.lab.incident.ours import Ours
from assignment_workers.lab.incident.replay import ReplayResult, replay
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import connect
from tests.support.processes import wait_until
from tests.support.sessions import OTHERS

AGENT = 26
USER = demo.INCIDENT_USER


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


def incident(dialer: Original) -> Given | None:
    """What happened on 2025-07-31 at 09:04:59, in its order: whom agent 26 is given."""
    found = dialer.find(AGENT)
    assert found
    assert found.user_id == USER
    dialer.rebuild()
    return dialer.assign(AGENT, found)


@pytest.fixture
def made(database_url: str, engine: Engine) -> Iterator[Callable[[str], Original]]:
    """A dialer of the replay by its name."""
    with ExitStack() as keep:

        def make(name: str) -> Original:
            dialer = WAYS[name][1](
                database_url, agents=2, validation=timedelta(0), randomness=Random(7)
            )
            keep.callback(dialer.close)
            return dialer

        yield make


class Stopped(Ours):
    """This project. A claim is stopped between its last read and its first write."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url, agents=2, validation=timedelta(0), randomness=Random(7))
        self.published: list[object] = []
        self._go_on = threading.Event()
        self._answers: list[RequestAnswer | None] = []

    def incident(self) -> Held:
        """The same steps; the publication, started in between, has to wait for the claim."""
        found = threading.Event()

        def stopped() -> None:
            found.set()
            self._go_on.wait(20)

        def ask(transaction: FencedTransaction) -> list[RequestAnswer | None]:
            asked = [ClaimRequest(AGENT, "incident", "unsigned_users")]
            before_its_first_write(transaction, stopped)
            return claim(transaction, asked, policies=loaded().policies, settings=self.settings)

        claiming = threading.Thread(
            target=lambda: self._answers.extend(self.runner.run(ask)), daemon=True
        )
        begun = [claiming]
        claiming.start()
        try:
            assert found.wait(10)
            built = self.build()
            assert built
            publishing = threading.Thread(
                target=lambda: self.published.append(self.publish(built)), daemon=True
            )
            begun.append(publishing)
            publishing.start()
            wait_until(self._publication_waits, "the publication to stand behind the claim")
        finally:  # a thread that is left behind keeps its connection beyond the engine
            self._go_on.set()
            for thread in begun:
                thread.join(30)
        (answer,) = self._answers
        assert isinstance(answer, Assigned)
        return answer.assignment

    def _publication_waits(self) -> bool:
        sql = f"SELECT pid {OTHERS} AND wait_event_type = 'Lock'"
        sql += " AND query LIKE '%FROM assignment.sequencer%FOR UPDATE%'"
        with self.engine.connect() as connection:
            return connection.execute(text(sql)).first() is not None


def before_its_first_write(transaction: FencedTransaction, then: Callable[[], object]) -> None:
    """Stop the turn where the original dialer was overtaken."""

    def stop(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO assignment.assignments" in statement:
            then()

    event.listen(transaction.connection, "before_cursor_execute", stop)


@pytest.mark.parametrize("name", ["original", "transaction", "retry", "optimistic"])
def test_hazard_b1_find_then_update_loses_the_user_to_the_rebuild(
    made: Callable[[str], Original], name: str
) -> None:
    dialer = made(name)
    with pytest.raises(RecordNotFound):
        incident(dialer)
    assert dialer.holders(USER) == []


def test_an_upsert_leaves_the_user_to_be_called_twice(made: Callable[[str], Original]) -> None:
    dialer = made("upsert")
    given = incident(dialer)
    assert given
    assert given.user_id == USER
    next_found = dialer.find(27)
    assert next_found
    assert next_found.user_id == USER


def test_skip_locked_alone_loses_the_hold_to_the_rebuild(made: Callable[[str], Original]) -> None:
    dialer = made("skip-locked")
    given = incident(dialer)
    assert given
    assert given.user_id == USER
    assert dialer.holders(USER) == []
    assert not dialer.finish(AGENT, given)


@pytest.mark.parametrize("name", ["original", "transaction", "retry", "lock"])
def test_two_agents_who_found_the_same_user_both_have_them(
    made: Callable[[str], Original], name: str
) -> None:
    dialer = made(name)
    found = dialer.find(AGENT), dialer.find(27)
    for agent, row in zip((AGENT, 27), found, strict=True):
        assert row
        given = dialer.assign(agent, row)
        assert given
        assert given.user_id == USER


def test_here_the_agent_holds_the_user_whatever_is_rebuilt(
    database_url: str, engine: Engine
) -> None:
    dialer = Stopped(database_url)
    held = dialer.incident()
    assert held.user_id == USER
    assert dialer.holders(USER) == [AGENT]
    (second,) = dialer.published
    assert isinstance(second, Done)
    assert second.counts["held"] == 1, "the new generation knows that the user is held"
    other = dialer.ask(27)
    assert other
    assert other.user_id != USER
    with engine.connect() as connection:
        assert [each for each in examine(connection, loaded()) if not each.ok] == []
    assert dialer.finish(AGENT, Given(USER, held))
    dialer.close()


BREAKS = {
    "original": ("held_twice", "destroyed", "not_found", "told_empty"),
    "transaction": ("held_twice", "destroyed", "not_found", "told_empty"),
    "retry": ("held_twice", "destroyed"),
    "optimistic": ("not_found", "told_empty", "destroyed"),
    "lock": ("destroyed",),
    "upsert": ("destroyed",),
    "skip-locked": ("destroyed",),
    "spared": ("lost",),
}
"""The counts of each way that are not zero on this load."""
SHOWN = tuple(BREAKS) if "EVERY_ROW" in os.environ else ("original", "optimistic", "spared")
"""The ways that are replayed beside ours: `make long` replays all of them."""
REPLAYS = 5
"""A machine that is busy with other work may bring few agents and rebuilds together in one."""


@pytest.mark.timeout(200)
def test_on_the_same_load_every_other_way_breaks_and_ours_does_not(postgres_server: str) -> None:
    validation = timedelta(milliseconds=60)  # so slow that a rebuild always overtakes somebody
    plan = LoadPlan(agents=30, seconds=2.0, speed=600, seed=7, validation=validation)
    results = replay(postgres_server, plan, [*SHOWN, "ours"]).results
    found = {result.name: result for result in results}
    assert found["ours"].requests > plan.agents, "hardly anybody asked"
    assert found["ours"].rebuilds > 2
    assert found["ours"].is_clean, found["ours"]
    for name in SHOWN:
        counts = BREAKS[name]
        replays = [found[name]]
        while missing := [c for c in counts if not any(getattr(each, c) for each in replays)]:
            assert len(replays) < REPLAYS, (missing, replays)
            replays += replay(postgres_server, plan, [name]).results


def test_a_replay_leaves_no_database_behind(postgres_server: str, database_url: str) -> None:
    def databases() -> set[str]:
        with psycopg.connect(postgres_server) as admin:
            return {row[0] for row in admin.execute("SELECT datname FROM pg_database")}

    before = databases()
    plan = LoadPlan(agents=2, seconds=0.2, speed=600, seed=7, validation=timedelta(0))
    with pytest.raises(KeyboardInterrupt):
        replay(database_url, plan, ["ours"], done=interrupted)
    assert databases() == before


def interrupted(_: ReplayResult) -> None:
    raise KeyboardInterrupt
