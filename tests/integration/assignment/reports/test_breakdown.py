"""The service levels of a period, divided, are what the rows say."""

from __future__ import annotations

from datetime import timedelta

import pytest

from assignment_workers.assignment.reports.breakdown import Breakdown, breakdown
from assignment_workers.assignment.reports.report import report
from assignment_workers.gateway.dashboard.document import document
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import OUTSTANDING, UNSIGNED, User, World, outstanding


@pytest.fixture
def ended(world: World) -> World:
    """Six holds of the last hour by three agents of two teams; one is two hours old."""
    world.add_agents(1, 2, 3)
    world.execute("UPDATE agents SET team = CASE id WHEN 3 THEN 'north <one>' ELSE '' END")
    world.add_users([User(user) for user in range(1, 7)])
    world.add_users([outstanding(user) for user in range(11, 14)])
    world.regenerate()
    now = world.now
    world.now = now - timedelta(hours=2)
    world.complete(world.held(1))
    world.now = now - timedelta(minutes=30)
    world.complete(world.held(1))
    world.skip(world.held(1))
    world.now = now - timedelta(minutes=10)
    world.release(world.held(2))
    world.held(2)
    world.complete(world.held(3, OUTSTANDING))
    world.now = now
    world.execute(
        "UPDATE assignment.requests SET received_at = answered_at - agent_id * interval '20 ms'"
    )
    return world


def of_the_hour(world: World) -> Breakdown:
    with world.engine.connect() as connection:
        return breakdown(connection, since=world.now - timedelta(hours=1), until=world.now)


def test_queues_and_teams_share_the_assignments_of_the_period(ended: World) -> None:
    found = of_the_hour(ended)
    by_name = {each.name: each for each in (*found.queues, *found.teams)}
    unsigned, none = by_name[UNSIGNED], by_name["no team"]
    assert (unsigned.assignments, unsigned.completed, unsigned.skipped, unsigned.released) == (
        4,
        1,
        1,
        1,
    )
    assert unsigned.average == pytest.approx((0.02 + 0.02 + 0.04 + 0.04) / 4)
    assert (none.assignments, by_name["north <one>"].assignments) == (4, 1)
    assert by_name[OUTSTANDING].average == pytest.approx(0.06)


def test_parts_of_the_period_have_the_assignments_of_their_time(ended: World) -> None:
    parts = of_the_hour(ended).parts
    assert [part.assignments for part in parts] == [2, 3]
    assert [part.at for part in parts] == [
        ended.now - timedelta(minutes=30),
        ended.now - timedelta(minutes=10),
    ]
    assert parts[0].p50 == pytest.approx(0.02)


def test_the_page_escapes_what_the_database_says(ended: World) -> None:
    with ended.engine.connect() as connection:
        found = report(connection, loaded(), since=ended.now - timedelta(hours=1))
    written = document(found, of_the_hour(ended))
    assert "north &lt;one&gt;" in written
    assert "<one>" not in written


def test_a_period_without_anything_says_so(world: World) -> None:
    with world.engine.connect() as connection:
        found = report(connection, loaded(), since=world.now - timedelta(hours=1))
    written = document(found, of_the_hour(world))
    assert "Nobody was assigned in this period." in written
    assert "unknown" in written
