"""Dirt in every column, in each schema: looked at, compared, taken over, worked on, given back.

A few databases by default; `make test-adoption` takes every schema with several seeds, and kills
the migration of each at every step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any

import pytest
from sqlalchemy import create_engine

from assignment_workers.adoption.compare import compare
from assignment_workers.adoption.plan import plan
from assignment_workers.adoption.rollback import rollback
from assignment_workers.assignment import jobs, phones
from assignment_workers.assignment.answers import Finished
from assignment_workers.assignment.callbacks.missed_calls import match
from assignment_workers.assignment.history import history
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.pools import convert
from assignment_workers.assignment.pools.age import age_scores
from assignment_workers.assignment.pools.discover import discover, reconcile
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.engine import driver_url
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.adoption.dirt import USERS, spoil
from tests.adoption.moving import SETTINGS, Killed, moved, rows, state
from tests.adoption.test_inspect import inspected
from tests.adoption.test_two_worlds import claimed, claimed_missed
from tests.support.world import BOTH, DAY, User, World, opened, outstanding

EVERY = "EVERY_ROW" in os.environ
CASES = (
    [(name, seed) for name in dialers.DIALERS for seed in (1, 2, 3)]
    if EVERY
    else [("deployed", 1), ("target", 2), ("widened", 3), ("hybrid the other way", 4)]
)
CLEAN = range(1001, 1041)
"""Users who can be called: the first half are unsigned, the others' requests are outstanding."""
ENDS = (-(2**63), 2**63 - 1, -1, 0, 999)
"""Users of dirty rows, whom the CRM knows as well."""


def fill(url: str, name: str, seed: int) -> None:
    """A dialer with a CRM beside it, users who can be called, and dirt."""
    with connected(url) as connection:
        dialers.STATES[name](connection)
        connection.execute("CREATE SCHEMA crm")
        half = CLEAN[len(CLEAN) // 2]
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at)"
            f" SELECT gen_random_uuid(), n, CASE WHEN n < {half} THEN 'unsigned_users'"
            " ELSE 'outstanding_requests' END, now()"
            f" FROM generate_series({CLEAN.start}, {CLEAN.stop - 1}) n"
        )
        for table, users in ((UNSIGNED, range(CLEAN.start, half)), (OUTSTANDING, CLEAN[20:])):
            dialers.queue(connection, table, *((user, user, "pending", None) for user in users))
        spoil(connection, seed)
    engine = create_engine(driver_url(url))
    CrmBase.metadata.create_all(engine)
    engine.dispose()


@contextmanager
def looked_at(url: str) -> Iterator[Any]:
    engine = create_engine(driver_url(url))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def check(url: str) -> None:
    """It is this version's, and no guarantee is broken, now or at any time."""
    assert inspected(url).is_ours
    with looked_at(url) as connection:
        migrations.check(connection)
        connection.rollback()
        assert [
            each for each in examine(connection, loaded()) if not each.ok and each.guarantee
        ] == []
        connection.rollback()
        assert (
            history.check(
                connection, dialer=loaded(), settings=SETTINGS, bound=timedelta(minutes=2)
            )
            == []
        )


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_dialer_full_of_dirt_is_taken_over_worked_on_and_given_back(
    empty_database_url: str, name: str, seed: int
) -> None:
    url = empty_database_url
    fill(url, name, seed)
    counts = f"SELECT (SELECT count(*) FROM {UNSIGNED}), (SELECT count(*) FROM {OUTSTANDING})"
    ((before, other),) = rows(url, counts)
    assert min(before, other) > len(CLEAN) // 2 + 2
    assert rows(url, "SELECT count(*) > 0 FROM agents WHERE NOT isfinite(created_at)") == [(True,)]
    assert inspected(url).obstacles == ()
    with looked_at(url) as connection:
        found = {
            (each.queue, each.only) for each in compare(connection, None, now=datetime.now(UTC))
        }
        assert found >= {(queue, "theirs") for queue in BOTH}, "the CRM knows nobody yet"
        connection.rollback()
        assert "-- 3. switch" in plan(connection, None, url)
    moved(url, batch=15)
    check(url)
    assert rows(
        url,
        f"SELECT (SELECT count(*) FROM {UNSIGNED}_before_adoption),"
        f" (SELECT count(*) FROM {OUTSTANDING}_before_adoption)",
    ) == [(before, other)]
    for table in (UNSIGNED, OUTSTANDING):
        rows(url, f"SELECT * FROM {table} WHERE status = 'pending'")
    work(url)
    check(url)
    rollback(url)
    ((left, other_left),) = rows(url, counts)
    assert (left >= before, other_left >= other) == (True, True)
    moved(url, batch=15)
    check(url)


def work(url: str) -> None:
    """An afternoon on it: every outcome, rebuilds, every job, and promises of both worlds."""
    with opened(url) as world:
        world.term = 0  # that of the migration
        world.execute("UPDATE assignment.sequencer SET term = 0")
        known = [User(user, has_score_row=False, claims=()) for user in (*USERS, *ENDS)]
        half = len(CLEAN) // 2
        callable_ = [User(user, has_score_row=False) for user in CLEAN[:half]]
        callable_ += [replaced(outstanding(user)) for user in CLEAN[half:]]
        world.add_users([*known, *callable_])
        world.regenerate()
        agents = iter(
            world.column(
                "SELECT id FROM agents WHERE starts_with(email, 'agent') AND id NOT IN (SELECT"
                " agent_id FROM assignment.assignments WHERE state = 'active') ORDER BY id"
            )
        )
        _promises(world, url, next(agents), next(agents))
        for number, outcome in enumerate(loaded().outcomes_by_name.values()):
            hold = world.held(next(agents), BOTH[number % 2])
            assert isinstance(world.complete(hold, outcome.name, **_said(world, outcome)), Finished)
        for end in (world.skip, world.release):
            assert isinstance(end(world.held(next(agents), None)), Finished)
        world.set(offer=timedelta(milliseconds=1))
        world.now = world.held(next(agents), None).lease_expires_at
        assert world.expire() > 0
        _jobs(world)
        world.regenerate()
        world.release(world.held(next(agents), None))


def replaced(user: User) -> User:
    return User(user.id, has_score_row=False, signature=user.signature, claims=user.claims)


def _said(world: World, outcome: Outcome) -> dict[str, Any]:
    """What is said with the outcome."""
    said: dict[str, Any] = {"notes": "\U0001f4de" * 100} if outcome.needs_notes else {}
    return said | ({"callback_at": world.now + DAY} if outcome.needs_callback else {})


def _promises(world: World, url: str, theirs: int, ours: int) -> None:
    """The dialer's code claims a callback and a missed call and ends them; then ours does."""
    held = world.column("SELECT user_id FROM assignment.assignments WHERE state = 'active'")
    first, second, *_ = (user for user in CLEAN if user not in held)
    for user, table, claim in (
        (first, "callbacks", claimed),
        (second, "missed_calls", claimed_missed),
    ):
        values = (
            "(id, user_id, scheduled_for, original_call_session_id) VALUES (gen_random_uuid(), %s,"
            " now() - interval '5 min', gen_random_uuid())"
            if table == "callbacks"
            else "(id, user_id, missed_at, phone_number, reason) VALUES (gen_random_uuid(), %s,"
            " now() - interval '5 min', '1', 'agents_busy')"
        )
        for agent in (theirs, ours):
            with connected(url) as connection:
                made = connection.execute(
                    f"INSERT INTO {table} {values} RETURNING id".encode(), [user]
                ).fetchone()
                assert made is not None
                if agent == ours:
                    break
                assert claim(connection, made[0], theirs) == 1
                assert world.column(
                    "SELECT agent_id FROM assignment.assignments"
                    " WHERE state = 'active' AND user_id = :user",
                    user=user,
                ) == [theirs]
                connection.execute(
                    f"UPDATE {table} SET status = 'completed' WHERE id = %s".encode(), [made[0]]
                )
    world.now = world.value("SELECT date_trunc('milliseconds', clock_timestamp())")
    sources: set[str] = set()
    while {"callback", "missed_call"} - sources:
        hold = world.held(ours, None)
        sources.add(hold.source)
        assert isinstance(world.complete(hold, "no_answer"), Finished)


def _jobs(world: World) -> None:
    """Every job that reads or writes the tables shared with the dialer."""
    numbers = world.policies[BOTH[0]].numbers

    def clean(given: Work) -> Counts:
        for policy in world.policies.values():
            users = convert.converted(given.connection, policy, after=-(2**63), now=world.now)
            world.run(convert.remove_converted, policy, users, policies=world.policies)
        return {}

    found: list[int] = []
    work: dict[str, Any] = {
        "phones.read": lambda given: phones.read(given, numbers),
        "missed_calls.match": lambda given: match(given, loaded(), None, world.settings),
        "queue.discover": partial(
            discover,
            dialer=loaded(),
            crm=None,
            policies=world.policies,
            send=found.extend,
            randomness=Random(1),
        ),
        "queue.reconcile": partial(
            reconcile, dialer=loaded(), crm=None, policies=world.policies, send=found.extend
        ),
        "queue.clean_conversions": clean,
        "scores.age": lambda given: age_scores(
            given, world.now.replace(hour=0, minute=0), loaded().policies.values()
        ),
    }
    for name, each in work.items():
        assert jobs.run(world.engine, Job(name, "hand"), each).skipped is None, name


KILLED = ["a few rows", *(dialers.DIALERS if EVERY else ())]
FEWER = 1 if EVERY else 3
"""Every so many steps are killed."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_is_killed_after_any_step_is_taken_up_by_the_next(
    postgres_server: str, empty_database_url: str, name: str
) -> None:
    url, batch = empty_database_url, 15
    if name in dialers.DIALERS:
        fill(url, name, 5)
    else:
        batch = 3
        with connected(url) as connection:
            dialers.dirty(connection)
    with copied(postgres_server, url) as copy:
        steps = told_by(copy, batch)
        whole = state(copy)
    assert len(steps) >= 6
    for number in range(1, len(steps) + 1, FEWER):
        with copied(postgres_server, url) as copy:
            with pytest.raises(Killed):
                told_by(copy, batch, until=number)
            moved(copy, batch=batch)
            check(copy)
            assert state(copy) == whole, steps[number - 1]


def told_by(url: str, batch: int, *, until: int | None = None) -> list[str]:
    """The steps of a migration, which is killed once it has told of so many."""
    steps: list[str] = []

    def tell(said: str) -> None:
        if said.startswith("waits for"):
            return  # an autovacuum may be in the way of one run and not of the next
        steps.append(said)
        if len(steps) == until:
            raise Killed

    moved(url, batch=batch, tell=tell)
    return steps


@contextmanager
def copied(server: str, url: str) -> Iterator[str]:
    """A copy of the database, for as long as the block lasts."""
    name = url.rpartition("/")[2]
    with connected(server) as admin:
        admin.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name} STRATEGY file_copy".encode())
    try:
        yield f"{url}_copy"
    finally:
        with connected(server) as admin:
            admin.execute(f"DROP DATABASE {name}_copy WITH (FORCE)".encode())
