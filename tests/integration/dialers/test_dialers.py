"""Every dialer from end to end: the packaged one, and those of `examples`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from assignment_workers.assignment.answers import Assigned, Finished
from assignment_workers.assignment.audit import extend
from assignment_workers.assignment.claims.probes import plans
from assignment_workers.assignment.crm import fact_views, mirror_tables
from assignment_workers.assignment.crm.external_crm import configured
from assignment_workers.assignment.reports.explain import explain as explain_user
from assignment_workers.assignment.reports.explain import funnel as explain_queue
from assignment_workers.assignment.reports.status import queue_statuses
from assignment_workers.assignment.user_ids import number_of, own, shown
from assignment_workers.dialer import Dialer
from assignment_workers.dialer.check import problems, unread
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from tests.integration.assignment.pools.test_discover import pools, run
from tests.support.dialers import DIALERS, EXAMPLES, using
from tests.support.example_crm import (
    ExampleCrm,
    empty_database,
    example_elsewhere,
    example_in_maria,
)
from tests.support.external_crm import OtherCrm
from tests.support.servers import Maria
from tests.support.world import Claim, Requirement, User, World

SOON = timedelta(hours=1)


@dataclass(frozen=True)
class Case:
    """What fills the CRM of a dialer, and whom each dialer queue is to have, in order."""

    name: str
    fill: Callable[[World], None]
    expected: Mapping[str, list[UserId]]
    """The CRM's ids."""
    goal: tuple[str, str]
    """A change of facts by which `:user`, of the first dialer queue, reaches its goal; its name."""

    @property
    def dialer(self) -> Dialer:
        return DIALERS[self.name]


def fill_claims(world: World) -> None:
    wanting = (Claim(requirements=(Requirement(),)),)
    world.add_users(
        [
            *(User(each, has_score_row=False) for each in (5, 6, 7)),
            User(8, has_score_row=False, is_enabled=False),
            *(User(each, has_score_row=False, signature="f", claims=wanting) for each in (1, 2)),
        ]
    )


def fill_example(name: str, world: World) -> None:
    world.execute("DROP SCHEMA crm CASCADE")
    with world.engine.begin() as connection:
        connection.exec_driver_sql((EXAMPLES / name / "crm.sql").read_text().replace("%", "%%"))


def patient(number: int) -> str:
    return f"c11c0000-0000-4000-8000-{number:012}"


def donor(number: int) -> str:
    return f"D-{number:04}"


def clinic_belongs() -> dict[str, list[UserId]]:
    """What the comments of `crm.sql` say, in plain Python."""
    called = [each for each in range(1, 61) if each % 10]
    results = [each for each in called if each % 7 == 0]
    missed = [each for each in called if each % 5 == 0 and each not in results]
    recalls = [
        each for each in called if each % 3 == 0 and each not in results and each not in missed
    ]
    found = {
        "results": results,  # the oldest result first
        "missed_appointments": missed[::-1],  # the latest appointment first
        "recalls": recalls[::-1],  # the longest due first
    }
    return {queue: [patient(each) for each in users] for queue, users in found.items()}


def charity_belongs() -> dict[str, list[UserId]]:
    """What the comments of `crm.sql` say, in plain Python."""
    left = [each for each in range(1, 51) if each != 4]
    found: dict[str, list[int]] = {}
    for queue, every in {
        "pledges": 11,
        "thanks": 7,
        "major_donors": 5,
        "regular_donors": 3,
        "guests": 2,
    }.items():
        found[queue] = [each for each in left if each % every == 0]
        left = [each for each in left if each not in found[queue]]
    for queue in ("pledges", "major_donors", "regular_donors"):
        found[queue].reverse()  # the largest pledge or sum, and the latest end, first
    return {queue: [donor(each) for each in users] for queue, users in found.items()}


CASES = {
    "claims": Case(
        "claims",
        fill_claims,
        {"unsigned_users": [7, 6, 5], "outstanding_requests": [2, 1]},
        (
            "UPDATE {crm}users SET current_signature_file_id = 'f' WHERE id = :user",
            "signature_obtained",
        ),
    ),
    "clinic": Case(
        "clinic",
        partial(fill_example, "clinic"),
        clinic_belongs(),
        ("UPDATE clinic.results SET state = 'told' WHERE patient_no = :user", "result_discussed"),
    ),
    "charity": Case(
        "charity",
        partial(fill_example, "charity"),
        charity_belongs(),
        ("UPDATE charity.pledges SET state = 'paid' WHERE donor_key = :user", "pledge_paid"),
    ),
}


PLACES = ("here", "elsewhere", "mariadb")
"""Where the CRM is: in our database, in another PostgreSQL, in a MariaDB."""


@dataclass(frozen=True)
class Stage:
    """A case and its CRM; `change` runs SQL there, with `:user`."""

    case: Case
    change: Callable[[str, UserId], object]


@pytest.fixture(
    params=[
        pytest.param((name, place), id=f"{name}-{place}")
        for name in CASES
        if name in DIALERS
        for place in PLACES
        if (name, place) != ("claims", "mariadb")  # test_external_crm has it
    ]
)
def stage(request: pytest.FixtureRequest, world: World) -> Iterator[Stage]:
    name, place = request.param
    case = CASES[name]
    world.now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    for each in case.expected:
        world.execute(
            "INSERT INTO assignment.queues VALUES (:name) ON CONFLICT DO NOTHING", name=each
        )
    with using(case.dialer), ExitStack() as keep:
        if place == "here":
            case.fill(world)
            if name == "claims":
                world.execute("UPDATE crm.users SET created_at = timezone('UTC', now())")
            world.read_crm(None)
            with world.engine.connect() as connection:
                fact_views.prepare(connection, loaded(), world.settings)
            world.execute("DELETE FROM agents")
            world.add_agents(*range(1, 10), allowed_queues=list(case.expected))
            yield Stage(case, lambda sql, user: world.execute(sql.format(crm="crm."), user=user))
            return
        server: str = request.getfixturevalue("postgres_server")
        if name == "claims":
            url = keep.enter_context(empty_database(server))
            world.crm = OtherCrm(url, "original")
            crm = ExampleCrm(url, world.crm.engine)
            case.fill(world)
            crm.change("UPDATE users SET created_at = timezone('UTC', now())")
        elif place == "elsewhere":
            crm = keep.enter_context(example_elsewhere(name, server))
        else:
            maria: Maria = request.getfixturevalue("maria")
            crm = keep.enter_context(example_in_maria(name, server, maria))
        world.execute("DROP SCHEMA crm CASCADE")
        world.add_agents(*range(1, 10), allowed_queues=list(case.expected))
        keep.enter_context(reading(world, crm.url))
        yield Stage(case, lambda sql, user: crm.change(sql.format(crm=""), user))


@contextmanager
def reading(world: World, url: str) -> Iterator[None]:
    """Let the world read the CRM at this address, by what its dialer declares."""
    world.set(crm_database_url=url, crm_timeout=timedelta(seconds=5))
    made = configured(loaded(), world.settings)
    assert made is not None
    made.check()
    world.read_crm(made)
    with world.engine.connect() as connection:
        mirror_tables.prepare(connection, loaded(), world.settings)
    try:
        yield
    finally:
        made.close()


def rebuild(world: World, case: Case) -> None:
    """Build and publish every dialer queue by the facts of now, wherever they are."""
    world.execute("DELETE FROM assignment.crm_reads")
    world.regenerate(*case.expected)


def test_a_dialer_from_its_crm_to_every_outcome(world: World, stage: Stage) -> None:
    case = stage.case
    assert list(problems(case.dialer)) == []
    run(world)
    placed = {user: queue for user, queue in pools(world).items() if queue is not None}
    expected = {user: queue for queue, users in case.expected.items() for user in users}
    ids = own(loaded(), world.engine, placed)
    assert {ids[user]: queue for user, queue in placed.items()} == expected
    rebuild(world, case)
    for queue, users in case.expected.items():
        assert [ids[each] for each in world.states(queue)] == users
    _explained(world, case)
    first = next(iter(case.expected))
    _each_outcome(world, stage, first)
    with world.engine.connect() as connection:
        extend(connection)
    assert world.unhealthy() == []


def _explained(world: World, case: Case) -> None:
    """Whom a build took is said to be claimable, and whom it left out is told why."""
    with world.engine.connect() as connection:
        for queue, users in case.expected.items():
            found = explain_queue(
                connection,
                world.policies[queue],
                settings=world.settings,
                now=world.now,
                at_most=None,
            )
            assert found is not None
            for user in users:
                said = explain_user(
                    connection,
                    loaded(),
                    world.external_crm,
                    number_of(loaded(), connection, user),
                    policies=world.policies,
                    settings=world.settings,
                    now=world.now,
                )
                assert said is not None
                assert queue in said.model_dump_json()
                assert shown(loaded(), connection, said).user_id == user
        listed = [each.queue for each in queue_statuses(connection, loaded().policies)]
        assert listed[: len(case.expected)] == list(case.expected)
        found_plans = list(plans(connection, world.policies, world.now))
        assert [each for each in found_plans if each.error] == []
        if world.settings.crm_database_url is None:  # else a claim has the facts as parameters
            assert [each for each in found_plans if each.scanned] == []


def _each_outcome(world: World, stage: Stage, queue: str) -> None:
    """Complete calls until each outcome was given once, each with what it needs."""
    case = stage.case
    change, conversion = case.goal
    converting = next(each for each in case.dialer.outcomes if each.converts)
    hold = world.held(1, queue)
    first = case.expected[queue][0]
    assert shown(loaded(), world.engine, hold).user_id == first
    stage.change(change, first)
    assert isinstance(world.complete(hold, converting.name), Finished)
    assert world.rows("SELECT user_id, conversion_type FROM conversions") == [
        (hold.user_id, conversion)
    ]
    for outcome in case.dialer.outcomes:
        if outcome is converting:
            continue
        world.now += timedelta(days=200)  # everybody has rested
        world.execute("UPDATE user_call_scores SET is_active = true")
        rebuild(world, case)
        given = world.ask(2, None)
        if not isinstance(given, Assigned):
            break
        said: dict[str, Any] = {}
        if outcome.needs_notes:
            assert world.complete(given.assignment, outcome.name).outcome == "refused"
            said["notes"] = "said so"
        if outcome.needs_callback:
            assert world.complete(given.assignment, outcome.name).outcome == "refused"
            said["callback_at"] = world.now + SOON
        assert isinstance(world.complete(given.assignment, outcome.name, **said), Finished)
        user = given.assignment.user_id
        (event,) = [
            each for each in world.events("completed") if each["details"]["outcome"] == outcome.name
        ]
        asked = {action.name for action in outcome.actions}
        assert asked <= set(event["details"].get("actions", []))
        row = world.rows(
            "SELECT last_outcome, next_call_after FROM user_call_scores WHERE user_id = :user",
            user=user,
        )
        expected = said.get("callback_at") or (world.now + outcome.delay if outcome.delay else None)
        assert row == [(outcome.name, expected and expected.replace(tzinfo=None))]
        if outcome.terminal:
            world.now += timedelta(days=400)
            rebuild(world, case)
            assert all(user not in world.states(each) for each in case.expected)
    else:
        given_ones = {each["details"]["outcome"] for each in world.events("completed")}
        assert given_ones == {each.name for each in case.dialer.outcomes}
        return
    raise AssertionError(f"nobody was left for {outcome.name}")


def test_the_facts_of_every_dialer_can_be_read_from_another_database() -> None:
    for dialer in DIALERS.values():
        assert list(unread(dialer)) == []
