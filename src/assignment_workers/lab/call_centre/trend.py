"""Whether a figure keeps growing: what tells a leak from a warm-up.

A process that warms up grows fast and then ever less, or in a few steps; one that leaks grows on.
So the first `WARM_UP` seconds of each life do not count, what follows them is halved, and a figure
grows only as fast as it does in the slower of its halves. How fast a half grows is the median of
the slopes between all pairs of its samples that lie half of it apart or more (after Theil and Sen):
neither a fault now and then moves it nor what rises and falls in turns.

A process that is killed on purpose has several lives, one after the other. Each is looked at by
itself, for the next one begins small again; the slopes of all of them count together.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

Points = Sequence[tuple[float, float]]
"""Of one life: seconds of the run, and the value, in their order."""

WARM_UP = 60.0
"""Seconds of a life that do not count."""
LEAST = 16
"""Samples of a life after its warm-up: with fewer, chance alone may look like growth."""


class Limit(NamedTuple):
    """How much a figure may grow in the longest life that was watched."""

    unit: str
    share: float
    """Of its level: this much is the noise of an allocator, or of a machine."""
    beyond: float
    """What is too little to mean anything, in the figure's unit."""


class TrendFinding(StrEnum):
    """What can be said of a figure."""

    STEADY = "steady"
    GROWS = "grows"
    UNKNOWN = "too few samples"


class Trend(NamedTuple):
    """A figure's level after its warm-up, and what it grew by in the longest life since then."""

    finding: TrendFinding
    level: float | None = None
    grown: float | None = None
    seconds: float | None = None
    """How long that life was watched after its warm-up."""


def judge(lives: Iterable[Points], limit: Limit) -> Trend:
    """Whether the figure with these lives grows by more than it may."""
    watched = [life for each in lives if len(life := _warm(each)) >= LEAST]
    if not watched:
        return Trend(TrendFinding.UNKNOWN)
    halves = [(life[: len(life) // 2], life[len(life) // 2 :]) for life in watched]
    slope = min(_slope(half) for half in zip(*halves, strict=True))
    seconds = max(life[-1][0] - life[0][0] for life in watched)
    level = statistics.median(value for _, last in halves for _, value in last)
    grown = slope * seconds
    grows = grown > max(limit.beyond, limit.share * level)
    return Trend(TrendFinding.GROWS if grows else TrendFinding.STEADY, level, grown, seconds)


def _warm(life: Points) -> Points:
    return [(at, value) for at, value in life if at - life[0][0] >= WARM_UP]


def _slope(halves: Iterable[Points]) -> float:
    """Growth in a second."""
    return statistics.median(slope for half in halves for slope in _slopes(half))


def _slopes(half: Points) -> Iterator[float]:
    apart = len(half) // 2
    for number, (at, value) in enumerate(half):
        for later, then in half[number + apart :]:
            yield (then - value) / (later - at)
