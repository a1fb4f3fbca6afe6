"""The history checker on a real database: a real run breaks nothing, each forged row one guarantee."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from assignment_workers.assignment.answers import Assigned, Done, Paused, TooLate
from assignment_workers.assignment.generations import pause
from assignment_workers.assignment.history.history import check, judge
from assignment_workers.assignment.history.records import RECORDS
from assignment_workers.assignment.history.replay import Breach
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import (
    Accept,
    Close,
    Complete,
    Defer,
)
from assignment_workers.assignment.operational_settings import SettingChange
from assignment_workers.assignment.pools import convert, discover
from assignment_workers.assignment.settings_changes import change
from assignment_workers.assignment.suppression_lists import Named, flip, stage
from assignment_workers.assignment.suppressions import do_not_contact, lift
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import AgentStatus, SuppressionKind
from tests.integration.assignment.history.forgeries import (
    EVENTS,
    ROWS,
    THIS,
    A,
    E,
    Forger,
    Forgery,
    R,
    Run,
)
from tests.support.shell import Shell
from tests.support.world import (
    FREE,
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    User,
    World,
    opened,
    outstanding,
    owner,
)

BOUND = timedelta(seconds=60)


@pytest.fixture(scope="module")
def run(module_database_url: str) -> Iterator[Run]:
    """A day's work in small: every kind of event but a race, and every kind of answer."""
    with opened(module_database_url) as world:
        made = Run(world.engine)
        work(made, module_database_url)
        yield made


def let_lapse(run: Run) -> None:
    """Work expires, an offer lapses; who is on break and back lets go of one that is deferred."""
    work = run.held(5)
    run.move(Accept(owner(work), run.settings.lease))
    run.renew(work)
    run.now += run.settings.lease
    assert run.expire() == 1
    run.held(5)
    run.now += run.settings.offer
    assert run.expire() == 1
    run.run(agent_status.state, 5, AgentStatus.BREAK, why="lunch")
    run.run(agent_status.state, 5, AgentStatus.AVAILABLE)
    run.move(Defer(owner(run.held(5)), run.settings.defer_maximum, rest=2 * HOUR, why="at work"))
    run.move(Close(owner(run.held(5)), "moved abroad"))


def work(run: Run, database_url: str) -> None:
    """Agents 1 to 9 work; at the end agent 9 alone holds somebody, and generation 7 is unpublished."""
    run.add_agents(*range(1, 10))
    run.add_users([*(User(user, user) for user in range(1, 21)), outstanding(31), outstanding(32)])
    run.now -= 600 * SECOND  # so that the early steps are past, and the last hold has not lapsed
    run.begin_term(database_url)
    run.regenerate()
    first, second, third, fourth = (run.held(agent) for agent in (1, 2, 3, 4))
    building = run.build()
    run.complete(first)
    run.skip(second)
    run.publish(building)
    run.release(run.held(8))
    run.renew(third)
    again = run.ask(3)
    assert isinstance(again, Assigned)
    assert again.replayed
    run.begin_term(database_url)
    run.release(fourth)
    run.complete(third, "call_back", callback_at=run.now + HOUR)
    run.execute(  # another writer promises the same
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id)"
        " SELECT user_id, scheduled_for, original_call_session_id FROM callbacks"
    )
    run.run(pause.pause, UNSIGNED)
    other = run.held(2, OUTSTANDING)
    run.now += SECOND
    assert isinstance(run.ask(1), Paused)
    run.release(other)
    run.run(pause.resume, UNSIGNED)
    assert isinstance(run.ask(1, deadline=run.now - SECOND), TooLate)
    old, new = run.build(), run.build()
    run.publish(new)
    run.publish(old)
    run.execute("UPDATE crm.users SET is_enabled = false WHERE id = 4")
    run.execute("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id IN (5, 6)")
    policy = loaded().policies[UNSIGNED]
    assert run.run(convert.remove_converted, policy, [5], policies=loaded().policies) == Done(
        counts={"converted": 1}
    )
    let_lapse(run)
    run.now += run.settings.skip_everyone
    run.release(run.held(6))
    run.regenerate(UNSIGNED)
    run.complete(run.held(2), "hung_up")
    run.release(run.held(7, None))
    keep_promises(run)
    run.add_users([User(33, has_score_row=False), User(34, queue="manual_call")])
    run.run(discover.assign_to_queue, [33, 34], loaded().policies)
    suppress_some(run)
    rests = (run.now + HOUR).replace(tzinfo=None)
    run.execute("UPDATE user_call_scores SET next_call_after = :at WHERE user_id = 32", at=rests)
    run.held(9, OUTSTANDING)
    allow_more(run)
    run.build()
    assert run.value("SELECT count(*) FROM assignment.events WHERE kind = 'expired'") == 1


def allow_more(run: Run) -> None:
    """A rule changes; user 32, who waits because of another one, is judged anew."""
    more = [SettingChange(name="calls_per_day", value="9")]
    run.run(change, more, by="ann", why="a quiet day", given=run.settings)


def suppress_some(run: Run) -> None:
    """A user is suppressed and is not any more; a register of one number stands."""
    run.run(do_not_contact, reader=Reader(), user=20, reason="asked", by="ann")
    run.run(
        lift, SuppressionKind.DO_NOT_CONTACT, reader=Reader(), user=20, by="ann", why="a mistake"
    )
    listed = Named("register", replaces=True, reason="asked", by="ann")
    with run.engine.connect() as connection:
        staged = stage(
            connection, [(1, "+442079460000", None)], listed, Reader(), queues=loaded().policies
        )
    run.run(flip, staged.list_id or 0, by="ann", why="November's")


def keep_promises(run: Run) -> None:
    """One callback is tried again and then kept, one is called off."""
    for outcome in ("might_complete", "bad_number"):
        run.complete(run.held(2), "call_back", callback_at=run.now + 5 * SECOND)
        run.now += 5 * SECOND
        if outcome == "might_complete":
            retried = Complete(owner(run.held(2)), "no_answer", retry=SECOND)
            run.run(finish, [retried])
        back = run.held(2)
        assert back.source == "callback"
        run.complete(back, outcome)
    run.complete(run.held(2), "call_back", callback_at=run.now + 5 * SECOND)
    run.now += 5 * SECOND
    back = run.held(2)
    run.execute(
        "UPDATE callbacks SET status = 'cancelled' WHERE user_id = :user", user=back.user_id
    )
    run.complete(back, "bad_number")
    # Of three missed calls one is followed up, and one is called off; nobody knows who the last is.
    run.execute(
        "INSERT INTO missed_calls (user_id, phone_number, missed_at, reason)"
        " SELECT id, '', timezone('UTC', now() - interval '1 hour'), 'agents_busy'"
        " FROM unnest(ARRAY[1, 20, 999]) AS id"
    )
    run.execute("UPDATE user_call_scores SET last_outcome = 'no_claim' WHERE user_id = 1")
    back = run.held(2)
    assert (back.user_id, back.source) == (20, "missed_call")
    run.complete(back, "completed_form")


def breaches(run: Run, connection: Connection, **settings: Any) -> list[Breach]:
    given = run.settings.model_copy(update=settings)
    return judge(connection, dialer=loaded(), settings=given, bound=BOUND)


def test_hazard_d11_a_real_run_breaks_nothing(run: Run) -> None:
    kinds = set(run.column("SELECT kind FROM assignment.events"))
    assert kinds == set(EventKind) - {EventKind.RACE, EventKind.CLOCK_STEPPED}
    with run.engine.connect() as connection:
        assert check(connection, dialer=loaded(), settings=run.settings, bound=BOUND) == []


def test_a_run_whose_early_events_are_gone_breaks_nothing(run: Run) -> None:
    """Wherever the events begin, the rows tell what stood before them."""
    instants = run.column("SELECT DISTINCT at FROM assignment.events ORDER BY at")
    assert len(instants) > 25
    for since in instants:
        with run.engine.connect() as connection:
            connection.execute(text(FREE))
            connection.execute(
                text("DELETE FROM assignment.events WHERE at < :since"), {"since": since}
            )
            now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
            found = breaches(run, connection, history_retention=now - since)
            assert found == [], since


def test_a_hold_that_outlives_its_lease_is_found(world: World) -> None:
    world.now -= HOUR
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    hold = world.held(1)
    with world.engine.connect() as connection:
        found = check(connection, dialer=loaded(), settings=world.settings, bound=BOUND)
    assert found == [Breach(7, 0, f"assignment {hold.id} has outlived its lease")]


def test_the_order_of_a_generation_whose_entries_are_gone_is_not_judged(run: Run) -> None:
    with run.engine.connect() as connection:
        connection.execute(text(FREE))
        connection.execute(text("DROP TABLE assignment.entries_1"))
        connection.execute(
            text(
                f"UPDATE {E} SET details = jsonb_set(details, '{{rank}}', '9')"
                f" WHERE kind = 'assigned' AND generation_id = 1 AND agent_id = 1"
            )
        )
        connection.execute(
            text(f"UPDATE {A} SET rank = 9 WHERE generation_id = 1 AND agent_id = 1")
        )
        assert breaches(run, connection) == []


@pytest.fixture
def forger(run: Run) -> Iterator[Forger]:
    with run.engine.connect() as connection:
        connection.execute(
            text(f"ALTER TABLE {R} DROP CONSTRAINT fk_requests_assignment_id_assignments")
        )
        connection.execute(text(FREE))
        yield Forger(run, connection)


def _forge(forger: Forger, forgery: Forgery) -> None:
    if isinstance(forgery, str):
        for statement in forgery.split(";"):
            forger.execute(statement)
    else:
        forgery(forger)


@pytest.mark.parametrize(
    ("forgery", "guarantee", "what"),
    ROWS,
    ids=[f"{number}_{what}" for number, (*_, what) in enumerate(ROWS)],
)
def test_a_forged_row_breaks_one_guarantee(
    run: Run, forger: Forger, forgery: Forgery, guarantee: int, what: str
) -> None:
    _forge(forger, forgery)
    subject, said = what.split(" is ", 1) if what.startswith("dialer queue") else what.split(" ", 1)
    found = breaches(run, forger.connection)
    assert [each.guarantee for each in found] == [guarantee], found
    assert found[0].what.startswith(subject)
    assert found[0].what.endswith(said)


def test_a_row_is_forged_for_every_query() -> None:
    forged = [what for _, _, what in ROWS]
    assert [
        each.what for each in RECORDS if not any(what.endswith(each.what) for what in forged)
    ] == []


@pytest.mark.parametrize(("forgery", "broken"), EVENTS, ids=map(str, range(len(EVENTS))))
def test_a_forged_event_breaks_what_it_says(
    run: Run, forger: Forger, forgery: Forgery, broken: dict[int, int]
) -> None:
    _forge(forger, forgery)
    found = breaches(run, forger.connection)
    assert Counter(each.guarantee for each in found) == broken, found


def test_the_doctor_replays_the_history_when_asked(
    run: Run, module_database_url: str, tmp_path: Path
) -> None:
    servers = {"DATABASE_URL": module_database_url, "REDIS_URL": "redis://127.0.0.1:1"}
    words = ("doctor", "--history", "--json")

    def told() -> list[dict[str, Any]]:
        """Without a stack, what the doctor says of one is not good: the exit code is 1."""
        found = Shell(tmp_path).run(*words, **servers).json(1)
        return [
            each
            for each in found
            if not each["check"].endswith((" serves agents", " serve agents"))
        ]

    good = told()
    assert all(each["ok"] for each in good)
    assert good[-1] | {"ok": True, "count": 0} == good[-1]
    run.execute(f"UPDATE {A} SET version = 3 WHERE {THIS}")
    try:
        broken = told()
    finally:
        run.execute(f"UPDATE {A} SET version = 2 WHERE {THIS}")
    assert [each for each in broken if not each["ok"]] == [broken[-1]]
    assert broken[-1]["check"] == good[-1]["check"]
    assert (broken[-1]["guarantee"], broken[-1]["count"]) == (8, 1)
