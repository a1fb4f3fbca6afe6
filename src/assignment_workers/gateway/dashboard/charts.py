"""SVG charts without scripts, for the dashboard's pages and for the report as one HTML file.

The report has the service levels of a period; `document.py` makes it.

Templates make a chart from rows that contain only times and numbers. Before a page is made, its
facts are redacted: free text is hidden from a viewer who may not read it. The rows of a chart have
no free text, so the redaction changes nothing in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from assignment_workers.assignment.reports.breakdown import Part, UnansweredPart

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 190, 52, 22
"""The size of a chart, and the space for its two axes, in units of the SVG."""
TIMES_ON_AXIS = 6
QUANTILES = (("p50", ""), ("p95", "8 4"), ("p99", "2 3"))


@dataclass(frozen=True)
class Bar:
    """A bar of a chart, and the text that is shown when the pointer is over the bar."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """`done` for assignments, `unanswered` for requests without an answer; it sets the colour."""
    label: str
    moment: datetime
    """The start of that part of the chart's period for which the bar stands.

    `label` begins with this time as text.
    """


@dataclass(frozen=True)
class ChartLine:
    """A line of a chart, broken into pieces where values are missing.

    `pieces`: for each piece, its points in the form of SVG's attribute `points`.
    """

    name: str
    dashes: str
    pieces: Sequence[str]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis. `moment`: its time on the time axis; None on the axis of values."""

    at: float
    label: str
    moment: datetime | None = None


@dataclass(frozen=True)
class Chart:
    """A bar chart or line chart of a period, with the position of each mark, bar and line."""

    values: Sequence[Tick]
    times: Sequence[Tick]
    bars: Sequence[Bar] = ()
    lines: Sequence[ChartLine] = ()

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to draw."""
        return not self.bars and not any(each.pieces for each in self.lines)


@dataclass(frozen=True)
class Axis:
    """The time axis of a chart: a period, divided into equal parts."""

    since: datetime
    until: datetime
    parts: int

    @property
    def length(self) -> timedelta:
        """The length of one of the equal parts of the time axis."""
        return (self.until - self.since) / self.parts

    def place(self, moment: datetime) -> int:
        """Return the number, from 0, of the part of the time axis in which `moment` is."""
        return int((moment - self.since) / self.length + 0.001)

    def x(self, place: float) -> float:
        """Return the horizontal position at which part number `place` of the time axis begins."""
        return round(LEFT + place * (WIDTH - LEFT) / self.parts, 1)

    def ticks(self) -> list[Tick]:
        """Return the marks of the time axis."""
        step = max(1, self.parts // TIMES_ON_AXIS)
        short = self.until - self.since <= timedelta(days=2)
        form = "%H:%MZ" if short else "%m-%d %H:%MZ"
        places = {place: self.since + self.length * place for place in range(0, self.parts, step)}
        return [
            Tick(self.x(place), format(moment.astimezone(UTC), form), moment)
            for place, moment in places.items()
        ]


def counts_chart(
    axis: Axis,
    parts: Sequence[Part],
    unanswered: Sequence[UnansweredPart] = (),
    noun: str = "assignments",
) -> Chart:
    """Return a bar chart of the assignments in each part, with unanswered requests stacked on top.

    A part is one of the equal parts of the period. `noun`: the word for the assignments in labels.
    """
    done = {axis.place(each.at): each.assignments for each in parts}
    lost = {axis.place(each.at): each.count for each in unanswered}
    places = [place for place in sorted(done.keys() | lost.keys()) if 0 <= place < axis.parts]
    most = max((done.get(each, 0) + lost.get(each, 0) for each in places), default=0)
    bars = []
    for place in places:
        moment = (axis.since + axis.length * place).astimezone(UTC)
        base = 0
        for kind, count, words in (
            ("done", done.get(place, 0), noun),
            ("unanswered", lost.get(place, 0), "requests not answered"),
        ):
            if count:
                top, bottom = _y(base + count, most), _y(base, most)
                label = f"{moment:%Y-%m-%d %H:%MZ}: {count:,} {words}"
                x = axis.x(place) + 1
                width = round(axis.x(1) - axis.x(0) - 2, 1)
                bars.append(Bar(x, top, width, round(bottom - top, 1), kind, label, moment))
            base += count
    return Chart(_scale(most, lambda value: f"{value:,.0f}"), axis.ticks(), bars=bars)


def times_chart(axis: Axis, parts: Sequence[Part]) -> Chart:
    """Return a line chart of the time to assign: p50, p95 and p99."""
    places = {axis.place(each.at): each for each in parts}
    slowest = max((each.p99 or 0.0 for each in parts), default=0.0)
    lines = []
    for name, dashes in QUANTILES:
        pieces: list[list[str]] = [[]]
        for place in range(axis.parts + 1):
            value: float | None = getattr(places[place], name) if place in places else None
            if value is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{axis.x(place + 0.5)},{_y(value, slowest)}")
        # A single point is a line of no length; round line ends make it visible.
        whole = [piece * 2 if len(piece) == 1 else piece for piece in pieces if piece]
        lines.append(ChartLine(name, dashes, [" ".join(piece) for piece in whole]))
    scale = _scale(slowest, lambda value: f"{value * 1000:,.0f} ms")
    return Chart(scale, axis.ticks(), lines=lines)


def _y(value: float, most: float) -> float:
    inner = HEIGHT - BOTTOM
    return round(inner - (value / most * (inner - 10) if most else 0.0), 1)


def _scale(most: float, label: Callable[[float], str]) -> list[Tick]:
    if not most:
        return []
    return [Tick(_y(most * share, most), label(most * share)) for share in (0.0, 0.5, 1.0)]
