"""The report of a run: one HTML page without external resources."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from assignment_workers.lab.call_centre.recorder import AgentActivity, Recorder
from assignment_workers.lab.call_centre.soak import Soaked
from assignment_workers.lab.call_centre.verdict import Verdict

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 200, 56, 22
BUCKETS = 60
COLOURS = {
    AgentActivity.TALKING: "#2a6f97",
    AgentActivity.WRITING: "#61a5c2",
    AgentActivity.ASKING: "#f4a261",
    AgentActivity.IDLE: "#e9c46a",
    AgentActivity.RESTING: "#b7b7a4",
    AgentActivity.AWAY: "#e5e5e5",
}

SHADES = (
    "#013a63",
    "#2a6f97",
    "#61a5c2",
    "#2a9d8f",
    "#e9c46a",
    "#f4a261",
    "#e76f51",
    "#9d4edd",
    "#6c757d",
    "#b7b7a4",
)

Point = tuple[float, float]


@dataclass(frozen=True)
class DrawnShape:
    """A line or an area of a chart, as SVG points, with its colour."""

    points: str
    colour: str


@dataclass(frozen=True)
class AxisMark:
    """A label and its position `at` on an axis of a chart, in the units of the SVG image.

    The label is a value on the axis, or the name of a fault. The label of a fault is at the time at
    which the fault began.
    """

    at: float
    label: str


@dataclass(frozen=True)
class RunChart:
    """A chart in the HTML report of a run.

    `marks`: the labels of the vertical axis. `key`: the legend, as pairs of a name and a colour.
    """

    name: str
    marks: Sequence[AxisMark]
    lines: Sequence[DrawnShape] = ()
    areas: Sequence[DrawnShape] = ()
    key: Sequence[tuple[str, str]] = ()


def page(recorder: Recorder, verdict: Verdict, soaked: Soaked | None = None) -> str:
    """Return the HTML report of a run.

    `soaked`: for a soak (a long run to find drift), its result, which the report then shows too.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    span = _span(recorder)
    return environment.get_template("page.html").render(
        verdict=verdict,
        soaked=soaked,
        levels=_levels(verdict),
        counts=[(name, f"{count:,}") for name, count in verdict.counts.items()],
        records=[(name, f"{count:,}") for name, count in verdict.records.items()],
        rate=_rate(recorder),
        waits=_waits(recorder),
        states=_states(recorder),
        claimable=_claimable(recorder),
        drift=[] if soaked is None else _drift(recorder, soaked),
        times=[
            AxisMark(_x(recorder, span * part / 4), f"{span * part / 4:.0f} s") for part in range(5)
        ],
        faults=[AxisMark(_x(recorder, fault.at), fault.what) for fault in recorder.faults],
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
    )


def _levels(verdict: Verdict) -> list[tuple[str, str]]:
    levels = verdict.levels
    return [
        ("requests", f"{levels.requests:,}"),
        ("users assigned", f"{levels.assigned:,}"),
        ("answered", f"{levels.answered_share:.3%}"),
        ("answered within 100 ms", f"{levels.soon_share:.1%}"),
        ("mean", f"{levels.mean_ms:,.1f} ms"),
        ("median", f"{levels.median_ms:,.1f} ms"),
        ("95 %", f"{levels.p95_ms:,.1f} ms"),
        ("99 %", f"{levels.p99_ms:,.1f} ms"),
        ("worst", f"{levels.worst_ms:,.1f} ms"),
    ]


def _drift(recorder: Recorder, soaked: Soaked) -> list[RunChart]:
    charts = []
    for kind in dict.fromkeys(each.kind for each in soaked.series):
        same = [each for each in soaked.series if each.kind == kind]
        shades = [(each, SHADES[number % len(SHADES)]) for number, each in enumerate(same)]
        lines = [(life, colour) for each, colour in shades for life in each.lives]
        name = f"{kind}, {same[0].unit}" if same[0].unit else kind
        key = [(each.name, colour) for each, colour in shades]
        charts.append(_chart(recorder, name, lines, key=key))
    return charts


def _rate(recorder: Recorder) -> RunChart:
    points = [
        (after.at, (after.assigned - before.assigned) / max(after.at - before.at, 0.001))
        for before, after in zip(recorder.samples, recorder.samples[1:], strict=False)
    ]
    return _chart(recorder, "Users assigned a second", [(points, "#2a6f97")])


def _claimable(recorder: Recorder) -> RunChart:
    known = [(s.at, float(s.claimable)) for s in recorder.samples if s.claimable is not None]
    return _chart(recorder, "Claimable users", [(known, "#2a9d8f")])


def _waits(recorder: Recorder) -> RunChart:
    span = _span(recorder) / BUCKETS
    buckets: dict[int, list[float]] = {}
    for wait in recorder.waits:
        buckets.setdefault(int(wait.at / span), []).append(wait.seconds * 1000)

    def line(of: Callable[[list[float]], float]) -> list[Point]:
        return [((number + 0.5) * span, of(each)) for number, each in sorted(buckets.items())]

    lines = [(line(max), "#a9d6e5"), (line(statistics.median), "#013a63")]
    return _chart(recorder, "Time to assign", lines, log=True)


def _states(recorder: Recorder) -> RunChart:
    agents = max(len(recorder.states), 1)
    base = [0.0] * len(recorder.samples)
    areas = []
    for state, colour in COLOURS.items():
        top = [
            low + sample.states[state] for low, sample in zip(base, recorder.samples, strict=True)
        ]
        places = [
            _place(recorder, (s.at, y), agents) for s, y in zip(recorder.samples, top, strict=True)
        ]
        places += [
            _place(recorder, (s.at, y), agents) for s, y in zip(recorder.samples, base, strict=True)
        ][::-1]
        areas.append(DrawnShape(_joined(places), colour))
        base = top
    return RunChart(
        "What the agents did",
        _marks([(0, "0"), (agents, str(agents))], agents),
        areas=areas,
        key=[(str(state), colour) for state, colour in COLOURS.items()],
    )


def _chart(
    recorder: Recorder,
    name: str,
    lines: Sequence[tuple[list[Point], str]],
    *,
    log: bool = False,
    key: Sequence[tuple[str, str]] = (),
) -> RunChart:
    scaled = [([(x, _log(y) if log else y) for x, y in points], colour) for points, colour in lines]
    most = max([y for points, _ in scaled for _, y in points], default=1.0)
    most = math.ceil(most) if log else max(most * 1.05, 1.0)
    marks = (
        [(float(power), f"{10**power:,}") for power in range(int(most) + 1)]
        if log
        else [(most * part / 4, f"{most * part / 4:,.0f}") for part in range(5)]
    )
    drawn = [
        DrawnShape(_joined([_place(recorder, point, most) for point in points]), colour)
        for points, colour in scaled
    ]
    return RunChart(name, _marks(marks, most), lines=drawn, key=key)


def _marks(marks: Sequence[tuple[float, str]], most: float) -> list[AxisMark]:
    return [AxisMark(round(_y(value, most), 1), label) for value, label in marks]


def _place(recorder: Recorder, point: Point, most: float) -> Point:
    return _x(recorder, point[0]), _y(point[1], most)


def _x(recorder: Recorder, at: float) -> float:
    return round(LEFT + (WIDTH - LEFT) * min(at / _span(recorder), 1.0), 1)


def _y(value: float, most: float) -> float:
    high = HEIGHT - BOTTOM - 8
    return 8 + high * (1 - min(max(value, 0.0) / max(most, 0.001), 1.0))


def _span(recorder: Recorder) -> float:
    return max(
        [sample.at for sample in recorder.samples[-1:]] + [wait.at for wait in recorder.waits[-1:]],
        default=1.0,
    )


def _log(value: float) -> float:
    return math.log10(max(value, 1.0))


def _joined(places: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
