"""What a page tells of one thing: bounded, and near the truth where it is an estimate."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from redis import Redis

from assignment_workers.assignment.reports import details
from assignment_workers.assignment.reports.details import PoolFunnel, funnel
from assignment_workers.gateway.dashboard import views
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.dashboard.views import PageSource
from assignment_workers.gateway.read_cache import ReadCache
from tests.support.world import UNSIGNED, User, World


def read(world: World) -> PoolFunnel:
    with world.engine.connect() as connection:
        return funnel(connection, world.policies[UNSIGNED], world.now)


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


def test_pages_judge_by_the_calling_rules_that_are_set(world: World, redis_url: str) -> None:
    """As the claim does: `POLICIES` alone would say that everybody is eligible."""
    world.add_users([User(user) for user in range(1, 6)])
    world.regenerate()
    weekday = "sun" if datetime.now(UTC).weekday() in {2, 3} else "wed"
    world.set(
        calling_hours=f"{weekday} 03:00-03:01",
        calling_zones="UTC",
        attempts_maximum=3,
        offer_without_number=True,
    )
    world.execute("UPDATE user_call_scores SET total_attempts = 3 WHERE user_id = 1")
    with Redis.from_url(redis_url) as redis:
        source = PageSource(ReadCache(world.engine), Schedule(redis), world.settings)
        shown = views.queue(UNSIGNED, "hour").read(source)
        counted = views.rules(UNSIGNED).read(source)
        user = views.user(2).read(source)
    assert shown is not None
    assert counted is not None
    assert user is not None
    told = {name: count for name, count in shown["funnel"].counts.items() if count}
    assert told == {"attempts_used_up": 1, "outside_calling_hours": 4}
    steps = {each.why: each.users for each in counted["counted"].steps}
    assert steps == told
    assert (counted["counted"].complete, counted["counted"].claimable) == (True, 0)
    assert user["explained"].queues[0].why == "outside_calling_hours"
