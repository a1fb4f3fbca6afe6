"""The simulation of a call centre agrees with what can be reckoned by hand."""

from __future__ import annotations

import pytest

from benchmarks.simulation import Centre, Costs, simulate

COSTS = Costs(
    message=0.001,
    claim_turn=0.003,
    claim_each=0.0002,
    finish_turn=0.003,
    finish_each=0.0001,
    client_call=0.00001,
)


def test_a_lone_agent_waits_for_nobody() -> None:
    found = simulate(Centre(1, cycle=1.0), COSTS, seconds=200)
    assert found.wait(0.99) == pytest.approx(0.0042 + 0.00001)
    assert found.together == pytest.approx(1.0, rel=0.02)


def test_agents_who_have_time_come_as_often_as_their_calls_let_them() -> None:
    found = simulate(Centre(500, cycle=50.0), COSTS, seconds=500, warm_up=50)
    assert found.rate == pytest.approx(10.0, rel=0.05)
    busy = 10 * (0.0042 + 0.0041)
    assert found.busy[0] == pytest.approx(busy, rel=0.1)


def test_at_full_speed_a_message_takes_many_and_a_second_lane_as_many_more() -> None:
    one = simulate(Centre(256, cycle=0.0), COSTS, seconds=3, warm_up=1)
    two = simulate(Centre(256, lanes=2, clients=2, cycle=0.0), COSTS, seconds=3, warm_up=1)
    limit = 1 / (0.004 / 64 + 0.0002 + 0.004 / 64 + 0.0001)  # 64 in a message, two kinds of two
    assert one.busy[0] == pytest.approx(1.0, rel=0.02)
    assert one.rate == pytest.approx(limit, rel=0.3)
    assert 1.5 < two.rate / one.rate < 2.1


def test_lanes_whose_messages_all_cross_are_slower_than_one() -> None:
    one = simulate(Centre(64, cycle=0.0), COSTS, seconds=2, warm_up=1)
    crossing = simulate(Centre(64, lanes=2, cycle=0.0, crossing=1.0), COSTS, seconds=2, warm_up=1)
    assert crossing.rate < one.rate


def test_client_processes_bound_the_rate_where_their_calls_cost_more() -> None:
    slow = Costs(**{**vars(COSTS), "client_call": 0.01})
    one = simulate(Centre(256, cycle=0.0), slow, seconds=5, warm_up=1)
    assert one.rate == pytest.approx(50.0, rel=0.1)
    assert one.busy[0] < 0.5
