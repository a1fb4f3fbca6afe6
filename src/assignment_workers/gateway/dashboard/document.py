"""The service levels of a period as one HTML file that contains its style and charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version

from assignment_workers.assignment.reports.breakdown import BARS, Breakdown, Part
from assignment_workers.assignment.reports.report import Report
from assignment_workers.gateway.dashboard.render import HERE, environment

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 200, 48, 22
"""Size of a chart in its own units; the last two are the space for its axes."""


@dataclass(frozen=True)
class Bar:
    """A bar of the report's chart of assignments, and its label."""

    x: float
    y: float
    width: float
    height: float
    told: str


@dataclass(frozen=True)
class ChartLine:
    """A line of the report's chart of times: SVG points, one text per unbroken piece."""

    name: str
    dashes: str
    pieces: Sequence[str]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    told: str


def document(report: Report, shares: Breakdown) -> str:
    """Return the service report as the text of one HTML file. `shares`: its breakdown."""
    length = (report.until - report.since) / BARS
    places = {round((part.at - report.since) / length): part for part in shares.parts}
    most = max((part.assignments for part in shares.parts), default=0)
    slowest = max((part.p99 or 0.0 for part in shares.parts), default=0.0)
    return (
        environment()
        .get_template("document.html")
        .render(
            report=report,
            shares=shares,
            style=(HERE / "assets" / "dashboard.css").read_text(encoding="utf-8"),
            version=version("assignment-workers"),
            width=WIDTH,
            height=HEIGHT,
            left=LEFT,
            bottom=BOTTOM,
            bars=_bars(places, most),
            lines=_lines(places, slowest),
            counts=_scale(most, lambda value: f"{value:,.0f}"),
            times=_scale(slowest, lambda value: f"{value * 1000:,.0f} ms"),
            hours=_hours(report.since, report.until, length),
        )
    )


def _x(place: float) -> float:
    return round(LEFT + place * (WIDTH - LEFT) / BARS, 1)


def _y(value: float, most: float) -> float:
    inner = HEIGHT - BOTTOM
    return round(inner - (value / most * (inner - 10) if most else 0.0), 1)


def _bars(places: dict[int, Part], most: int) -> list[Bar]:
    made = []
    for place, part in sorted(places.items()):
        top = _y(part.assignments, most)
        told = f"{part.at:%Y-%m-%d %H:%MZ}: {part.assignments:,} assignments"
        made.append(Bar(_x(place) + 1, top, _x(1) - _x(0) - 2, HEIGHT - BOTTOM - top, told))
    return made


def _lines(places: dict[int, Part], slowest: float) -> list[ChartLine]:
    made = []
    for name, dashes in (("p50", ""), ("p95", "8 4"), ("p99", "2 3")):
        pieces: list[list[str]] = [[]]
        for place in range(BARS + 1):
            value: float | None = getattr(places[place], name) if place in places else None
            if value is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{_x(place + 0.5)},{_y(value, slowest)}")
        # A single point is a line of no length; round line ends make it visible.
        whole = [piece * 2 if len(piece) == 1 else piece for piece in pieces if piece]
        made.append(ChartLine(name, dashes, [" ".join(piece) for piece in whole]))
    return made


def _scale(most: float, told: Callable[[float], str]) -> list[Tick]:
    if not most:
        return []
    return [Tick(_y(most * share, most), told(most * share)) for share in (0.0, 0.5, 1.0)]


def _hours(since: datetime, until: datetime, length: timedelta) -> list[Tick]:
    form = "%H:%MZ" if until - since <= timedelta(days=2) else "%m-%d %H:%MZ"
    return [
        Tick(_x(place), format(since + length * place, form)) for place in range(0, BARS, BARS // 6)
    ]
