"""What a page tells of one thing: bounded, and near the truth where it is an estimate."""

from __future__ import annotations

import pytest

from assignment_workers.assignment import details
from assignment_workers.assignment.details import Funnel, funnel
from assignment_workers.policy.queues import UNSIGNED_USERS
from tests.world import User, World


def read(world: World) -> Funnel:
    with world.engine.connect() as connection:
        return funnel(connection, UNSIGNED_USERS, world.now)


def test_a_funnel_counts_each_user_of_the_pool_by_the_first_rule_they_break(world: World) -> None:
    world.add_users([User(user) for user in range(1, 6)])
    world.add_users([User(6, is_enabled=False), User(7, signature="file"), User(8, in_crm=False)])
    world.add_users([User(9, queue="outstanding_requests")])
    found = read(world)
    assert not found.is_estimate
    assert found.pool == 8
    told = {name: count for name, count in found.counts.items() if count}
    assert told == {"eligible": 5, "not_in_crm": 1, "disabled": 1, "signed": 1}


def test_a_large_pool_is_estimated_from_a_sample_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_users([User(user, is_enabled=user % 4 > 0) for user in range(1, 8001)])
    world.execute("ANALYZE user_call_scores")
    monkeypatch.setattr(details, "SAMPLED", 2000)
    found = read(world)
    assert found.is_estimate
    assert 3000 < found.pool < 16_000
    assert found.counts["disabled"] / found.pool == pytest.approx(0.25, abs=0.05)
    assert found.counts["eligible"] / found.pool == pytest.approx(0.75, abs=0.05)
