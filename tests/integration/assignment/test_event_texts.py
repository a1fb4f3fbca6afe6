"""Events are append-only by the database, and what people typed stands beside them."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import audit
from assignment_workers.assignment.generations.pause import pause
from assignment_workers.assignment.generations.purge import prune_history
from assignment_workers.assignment.lifecycle.agent_status import state
from assignment_workers.assignment.lifecycle.moves import Close, Defer
from assignment_workers.assignment.suppressions import do_not_contact, lift
from assignment_workers.phones import Reader
from assignment_workers.schema.tables import AgentStatus, SuppressionKind
from tests.support.world import DAY, UNSIGNED, User, World, owner

TYPED = "TYPED by a person"
PHONE = "+44 7700 900123"


@pytest.fixture
def spoken(world: World) -> World:
    """A world in which something was typed by every operation that takes a text."""
    world.add_agents(1, 2, 3)
    world.add_users([User(number, number) for number in range(1, 6)])
    world.regenerate(UNSIGNED)
    rest = timedelta(minutes=5)
    world.move(Defer(owner(world.held(1)), DAY, None, rest, TYPED))
    world.move(Close(owner(world.held(2)), TYPED))
    world.complete(world.held(3), notes=TYPED)
    world.run(state, 1, AgentStatus.BREAK, by=TYPED, why=TYPED)
    world.run(pause, UNSIGNED, by=TYPED, why=TYPED)
    world.run(do_not_contact, reader=Reader(), phone=PHONE, reason=TYPED, by=TYPED)
    world.run(do_not_contact, reader=Reader(), user=5, reason=TYPED, by="token 0a")
    kind = SuppressionKind.DO_NOT_CONTACT
    world.run(lift, kind, reader=Reader(), user=5, by="agent 1", why=TYPED)
    return world


def test_no_event_holds_what_somebody_typed_and_all_of_it_is_kept_beside(spoken: World) -> None:
    events = str(spoken.rows("SELECT * FROM assignment.events"))
    assert "TYPED" not in events
    number = PHONE.removeprefix("+44 ")  # in full: four digits of it may be part of a random id
    assert number not in events
    assert number.replace(" ", "") not in events
    texts = dict(
        spoken.rows(
            "SELECT e.kind || coalesce(e.user_id::text, ''), t.texts FROM assignment.events e"
            " JOIN assignment.event_texts t ON t.event_id = e.id"
        )
    )
    assert texts == {
        "deferred1": {"why": TYPED},
        "closed2": {"why": TYPED},
        "agent_state": {"by": TYPED, "why": TYPED},
        "queue_paused": {"by": TYPED, "why": TYPED},
        "suppressed": {"by": TYPED, "reason": TYPED, "phone": PHONE},
        "suppressed5": {"reason": TYPED},
        "suppression_lifted5": {"why": TYPED},
    }
    assert {"by": "agent 1", "kind": "do_not_contact"}.items() <= spoken.value(
        "SELECT details FROM assignment.events WHERE kind = 'suppression_lifted'"
    ).items()


def test_a_claim_writes_no_text(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    world.release(world.held(1))
    assert world.value("SELECT count(*) FROM assignment.event_texts") == 0
    with world.engine.connect() as connection:
        plan = connection.execute(
            text(
                "EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO assignment.events (at, kind, details)"
                " VALUES (now(), 'assigned', '{\"rank\": 1}')"
            )
        ).scalar_one()
        connection.rollback()
    called = {each["Trigger Name"]: each["Calls"] for each in plan[0]["Triggers"]}
    assert called.get("part_texts", 0) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE assignment.events SET user_id = 7",
        "DELETE FROM assignment.events",
        "TRUNCATE assignment.events",
        "WITH gone AS (DELETE FROM assignment.events RETURNING 1) SELECT count(*) FROM gone",
        (
            "INSERT INTO assignment.events (id, at, kind) OVERRIDING SYSTEM VALUE"
            " VALUES (1, now(), 'x') ON CONFLICT (id) DO UPDATE SET kind = 'x'"
        ),
    ],
)
def test_the_database_refuses_to_change_an_event(spoken: World, statement: str) -> None:
    before = spoken.rows("SELECT * FROM assignment.events ORDER BY id")
    with pytest.raises(DBAPIError, match="append-only"):
        spoken.execute(statement)
    assert spoken.rows("SELECT * FROM assignment.events ORDER BY id") == before


def test_the_purge_deletes_what_is_past_its_retention_and_nobody_after_it(spoken: World) -> None:
    count = spoken.value("SELECT count(*) FROM assignment.events")
    spoken.tamper("UPDATE assignment.events SET at = at - interval '91 days' WHERE id <= 2")
    with spoken.engine.begin() as connection:
        assert prune_history(connection, settings=spoken.settings)["events"] == 0, "not chained yet"
    with spoken.engine.connect() as connection:
        audit.extend(connection)
    with spoken.engine.begin() as connection:
        assert prune_history(connection, settings=spoken.settings)["events"] == 2
        with pytest.raises(DBAPIError, match="append-only"), connection.begin_nested():
            connection.execute(text("DELETE FROM assignment.events"))
    assert spoken.value("SELECT count(*) FROM assignment.events") == count - 2


def test_the_purge_empties_texts_after_their_retention(spoken: World) -> None:
    spoken.set(text_retention=DAY)
    with spoken.engine.begin() as connection:
        prune_history(connection, settings=spoken.settings)
    assert spoken.value("SELECT count(*) FROM assignment.event_texts") == 7
    spoken.execute("UPDATE assignment.event_texts SET at = at - interval '25 hours'")
    spoken.execute(
        "UPDATE assignment.assignments SET claimed_at = claimed_at - interval '25 hours',"
        " ended_at = ended_at - interval '25 hours' WHERE state <> 'active'"
    )
    spoken.execute("UPDATE assignment.suppressions SET lifted_at = lifted_at - interval '25 hours'")
    with spoken.engine.begin() as connection:
        counts = prune_history(connection, settings=spoken.settings)
    assert (counts["event_texts"], counts["notes"], counts["reasons"]) == (7, 1, 1)
    assert spoken.value("SELECT count(*) FROM assignment.assignments WHERE notes <> ''") == 0
    standing = "SELECT count(*) FROM assignment.suppressions WHERE reason = :typed"
    assert spoken.value(standing, typed=TYPED) == 2, "what stands is kept"


def test_the_texts_of_old_events_are_moved_and_put_back(empty_database_url: str) -> None:
    from alembic import command
    from sqlalchemy import create_engine

    from assignment_workers.schema import migrate
    from assignment_workers.schema.engine import driver_url

    def to(revision: str, *, down: bool = False) -> None:
        engine = create_engine(driver_url(empty_database_url))
        with engine.connect() as connection:
            config = migrate._config(connection)
            (command.downgrade if down else command.upgrade)(config, revision)
        engine.dispose()

    to("0025")
    to("-1", down=True)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(
            "INSERT INTO assignment.events (at, kind, details) SELECT now(), 'deferred',"
            " jsonb_build_object('why', 'text ' || n, 'until', n) FROM generate_series(1, 12000) n"
        )
    to("0025")
    with psycopg.connect(empty_database_url) as connection:
        found = connection.execute(
            "SELECT count(*), count(*) FILTER (WHERE NOT details ? 'why' AND texts->>'why'"
            " = 'text ' || (details->>'until')) FROM assignment.events"
            " JOIN assignment.event_texts ON event_id = id"
        ).fetchone()
    assert found == (12000, 12000)
    to("-1", down=True)
    with psycopg.connect(empty_database_url) as connection:
        back = connection.execute(
            "SELECT count(*) FROM assignment.events WHERE details->>'why' LIKE 'text %'"
        ).fetchone()
    assert back == (12000,)
