"""Growth after a warm-up is told from the warm-up itself, whatever the samples look like."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from assignment_workers.lab.call_centre.tables import Weight, bloated, longest_above, never_vacuumed
from assignment_workers.lab.call_centre.trend import Limit, Trend, TrendFinding, judge

MEMORY = Limit("MB", 0.1, 8)
EVERY = 5.0


def life(
    seconds: float, value: Callable[[float], float], *, began: float = 0.0, noise: float = 0.0
) -> list[tuple[float, float]]:
    """What a process that began then had at each of its ages."""
    chance = Random(1)
    ages = [number * EVERY for number in range(int(seconds / EVERY))]
    return [(began + age, value(age) + chance.gauss(0, noise)) for age in ages]


def found(*lives: list[tuple[float, float]]) -> Trend:
    return judge(lives, MEMORY)


def test_a_leak_is_found_and_told_in_the_figures_unit() -> None:
    trend = found(life(600, lambda age: 100 + age / 20, noise=1))
    assert trend.finding == TrendFinding.GROWS
    assert trend.seconds == 600 - 60 - EVERY
    assert trend.grown == pytest.approx(535 / 20, rel=0.1)


@pytest.mark.parametrize(
    "value",
    [
        lambda _: 100,
        lambda age: 100 + 40 * (1 - math.exp(-age / 60)),
        lambda age: 100 if age < 200 else 130,
        lambda age: 130 if age < 450 else 160,
        lambda age: 130 - age / 20,
        lambda age: 300 if age % 100 == 0 else 100,
        lambda age: 100 + age % 60,
        lambda age: 100 + age / 200,
    ],
    ids=["flat", "warms up", "a step", "a late step", "shrinks", "peaks", "saw", "too little"],
)
def test_what_does_not_grow_on_is_steady(value: Callable[[float], float]) -> None:
    assert found(life(600, value, noise=0.5)).finding == TrendFinding.STEADY


def test_what_grows_only_by_a_small_share_of_what_there_is_is_steady() -> None:
    assert found(life(600, lambda age: 1000 + age / 20)).finding == TrendFinding.STEADY


def test_each_life_of_a_process_is_looked_at_by_itself() -> None:
    """One that is killed begins small again, and the next is larger: neither is growth."""
    levels = (100, 120, 140)
    lives = [life(200, partial(max, level), began=200 * n) for n, level in enumerate(levels)]
    assert found(*lives).finding == TrendFinding.STEADY


def test_a_leak_is_found_in_lives_that_are_cut_short() -> None:
    lives = [life(250, lambda age: 100 + age / 8, began=250 * n, noise=1) for n in range(3)]
    trend = found(*lives)
    assert trend.finding == TrendFinding.GROWS
    assert trend.level == pytest.approx(100 + 200 / 8, rel=0.05), "not of three lives together"


@pytest.mark.parametrize("seconds", [0, 60, 130])
def test_a_short_life_cannot_be_judged(seconds: float) -> None:
    assert found(life(seconds, lambda age: 100 + age)) == Trend(TrendFinding.UNKNOWN)


def test_many_short_lives_cannot_be_judged_either() -> None:
    assert found(*[life(130, lambda age: age, began=130 * n) for n in range(20)]) == Trend(
        TrendFinding.UNKNOWN
    )


def test_a_table_is_bloated_by_what_its_rows_would_take_written_anew() -> None:
    healthy = Weight(name="events", rows=100_000, mb=40.0, anew_mb=36.6)
    small = Weight(name="sequencer", rows=1, mb=0.15, anew_mb=0.03)
    large = Weight(name="requests", rows=2000, mb=9.6, anew_mb=1.2)
    emptied = Weight(name="job_runs", rows=0, mb=2.5, anew_mb=0.02)
    assert bloated([healthy, small, large, emptied]) == [
        "bloat of requests: 4,800 bytes a row, and 600 were it written anew (8.0 times)",
        "bloat of job_runs: 2.5 MB without a row",
    ]


def test_dead_rows_that_nobody_takes_away_are_named() -> None:
    dead = {
        "entries": life(300, lambda _: 5.0),
        "events": life(300, lambda age: 5.0 if age % 60 else 0.5),
    }
    assert never_vacuumed(dead) == [
        "dead rows of entries: for 295 s more than 2 times autovacuum's threshold"
    ]
    assert longest_above(dead["events"], 2.0) == 50.0
