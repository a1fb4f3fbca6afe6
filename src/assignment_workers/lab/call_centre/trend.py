"""The trend of a figure: tells a leak from a warm-up.

A figure is something that is measured repeatedly, such as the memory of a process. A process that
warms up grows fast at first and then ever less, or in a few steps; a process that leaks keeps
growing. A process that is killed on purpose is started again. Each time from a start to the end of
the process is one life. A figure that belongs to no process, such as the size of a table, has only
one life, which is the whole run. The first `WARM_UP` seconds of each life do not count.

The other samples of each life are cut into two halves. Within a half, slopes are computed between
pairs of samples (after Theil and Sen). Only pairs that are far apart are used: if the half has 20
samples, the second of a pair comes at least 10 samples after the first. No slope is computed
between two lives, because a new process begins small again.

Then one median is taken of the slopes in the first halves of all lives, and another of the slopes
in the second halves of all lives. The smaller of the two medians is the growth of the figure per
second. This growth is multiplied by the longest time for which one life was measured after its
warm-up. The product is compared with the limit of the figure.

An occasional fault hardly changes a median, because it affects only a few slopes. For a figure that
alternately rises and falls, both medians are near zero, because its slopes are partly positive and
partly negative.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

Points = Sequence[tuple[float, float]]
"""The samples of one figure in one life, in order of time.

A sample is a pair: the time in seconds since the run began, and the value.
"""

WARM_UP = 60.0
"""The seconds at the beginning of a process's life whose samples do not count."""
LEAST = 16
"""The least number of samples after the warm-up. With fewer, chance alone may look like growth."""


class Limit(NamedTuple):
    """The growth that a figure may show in a run without being reported.

    It is `share` times the figure's median, or `beyond` if that is larger. `unit` is the figure's
    unit, such as MB.
    """

    unit: str
    share: float
    """The allowed growth as a fraction of the figure's median.

    Growth up to this fraction is no sign of a leak, because for example memory use fluctuates.
    """
    beyond: float
    """The growth that is always allowed, in the unit of the figure."""


class TrendFinding(StrEnum):
    """The conclusion about the growth of a measured figure, such as the memory of a process."""

    STEADY = "steady"
    GROWS = "grows"
    UNKNOWN = "too few samples"


class Trend(NamedTuple):
    """The finding whether a figure keeps growing, with its median `level` and its growth.

    `grown` is the growth over the time that `seconds` gives. `level`, `grown` and `seconds` are
    None if there were too few samples.
    """

    finding: TrendFinding
    level: float | None = None
    grown: float | None = None
    seconds: float | None = None
    """The longest time for which one process was measured without a restart, after its warm-up."""


def judge(lives: Iterable[Points], limit: Limit) -> Trend:
    """Judge if a figure keeps growing by more than its limit.

    `lives` has one list of samples for each start of the measured process.
    """
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
    """Return the median growth of a figure per second, over many pairs of samples.

    `halves`: one half of the samples of each life that has enough samples. A life is the time from
    a start of the process to its end. Either all of these halves are first halves, or all of them
    are second halves. The two samples of a pair are from the same half. The second sample of the
    pair comes later in that half, by at least half of the half's number of samples.
    """
    return statistics.median(slope for half in halves for slope in _slopes(half))


def _slopes(half: Points) -> Iterator[float]:
    apart = len(half) // 2
    for number, (at, value) in enumerate(half):
        for later, then in half[number + apart :]:
            yield (then - value) / (later - at)
