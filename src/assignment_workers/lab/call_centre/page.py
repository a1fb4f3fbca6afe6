"""The report of a run: one HTML page without external resources."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from html import escape

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

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 920px; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin-top: 2em }
.verdict { padding: .7em 1em; border-radius: 6px; font-weight: 600 }
.good { background: #d8f3dc } .bad { background: #ffd6d6 }
table { border-collapse: collapse } td, th { padding: .15em 1em .15em 0; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
svg { display: block; margin: .5em 0 } text { font-size: 11px; fill: #555 }
.key span { margin-right: 1.2em } .key i { display: inline-block; width: .9em; height: .9em;
       margin-right: .35em; vertical-align: -1px }
.columns { display: flex; gap: 4em; flex-wrap: wrap }
"""

Point = tuple[float, float]


def page(recorder: Recorder, verdict: Verdict, soaked: Soaked | None = None) -> str:
    """Return the HTML page of a run; for a soak also the measured figures and what drifted."""
    levels = verdict.levels
    broken = "".join(f"<li>{escape(each)}</li>" for each in verdict.broken)
    said = (
        f'<p class="verdict bad">Broken: {len(verdict.broken)}</p><ul>{broken}</ul>'
        if verdict.broken
        else '<p class="verdict good">Every guarantee held.</p>'
    )
    faults = f", {len(verdict.faults)} faults" if verdict.chaos else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A simulated call centre</title>
<style>{STYLE}</style></head><body>
<h1>A simulated call centre: {verdict.agents} agents, {verdict.seconds:g} s at {verdict.speed:g}
times the real pace{faults}, seed {verdict.seed}</h1>
{said}
<div class="columns"><div><h2>Service levels</h2>{
        _table(
            [
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
        )
    }</div>
<div><h2>What happened</h2>{_table((n, f"{c:,}") for n, c in verdict.counts.items())}</div>
<div><h2>The records</h2>{_table((n, f"{c:,}") for n, c in verdict.records.items())}</div></div>
<h2>Users assigned a second</h2>{_rate(recorder)}
<h2>Time to assign (median dark, worst light; milliseconds, each line ten times the one below)</h2>
{_waits(recorder)}
<h2>What the agents did</h2>{_states(recorder)}
<h2>Claimable users</h2>{_claimable(recorder)}
{"" if soaked is None else _drift(recorder, soaked)}
{_faults(verdict)}
<p>Red lines are faults. Waits are those of the agents, from the first sending of a request to its
answer, whatever was down meanwhile.</p>
</body></html>
"""


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (
        f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _faults(verdict: Verdict) -> str:
    if not verdict.faults:
        return ""
    rows = "".join(
        f'<tr><td class="number">{fault.at:.1f}</td><td>{escape(fault.what)}</td>'
        f'<td class="number">{"" if fault.back_after is None else f"{fault.back_after:.2f}"}</td>'
        "</tr>"
        for fault in verdict.faults
    )
    return (
        "<h2>Faults</h2><table><tr><th>at, s</th><th>what</th>"
        f"<th>next answer to a new request after, s</th></tr>{rows}</table>"
    )


def _drift(recorder: Recorder, soaked: Soaked) -> str:
    said = "".join(f"<li>{escape(each)}</li>" for each in [*soaked.drifted, *soaked.unjudged])
    if soaked.drifted or soaked.unjudged:
        words = f"Drifted: {len(soaked.drifted)}. Not judged: {len(soaked.unjudged)}."
    else:
        words = "Nothing drifted."
    parts = [
        "<h2>Drift</h2>",
        f'<p class="verdict {"bad" if said else "good"}">{words}</p><ul>{said}</ul>',
        "<table><tr><th></th><th></th><th>level</th><th>grown by</th><th>in, s</th><th></th></tr>",
        *(
            f"<tr><td>{escape(each.kind)}</td><td>{escape(each.name)}</td>"
            + "".join(
                f'<td class="number">{"" if value is None else f"{value:,.4g}"}</td>'
                for value in (each.level, each.grown, each.watched)
            )
            + f"<td>{escape(each.unit)} {escape(each.finding)}</td></tr>"
            for each in soaked.series
        ),
        "</table>",
        f"<h2>Tables, after {soaked.purged} generations were purged</h2>",
        "<table><tr><th></th><th>rows</th><th>MB</th><th>bytes a row</th><th>written anew</th>",
        "<th>times</th></tr>",
        *(
            f"<tr><td>{escape(each.name)}</td>"
            + "".join(
                f'<td class="number">{"" if value is None else value}</td>'
                for value in each.shown()
            )
            + "</tr>"
            for each in soaked.tables
        ),
        "</table>",
    ]
    for kind in dict.fromkeys(each.kind for each in soaked.series):
        same = [each for each in soaked.series if each.kind == kind]
        shades = [(each, SHADES[number % len(SHADES)]) for number, each in enumerate(same)]
        lines = [(life, colour) for each, colour in shades for life in each.lives]
        key = "".join(
            f'<span><i style="background:{colour}"></i>{escape(each.name)}</span>'
            for each, colour in shades
        )
        unit = f", {same[0].unit}" if same[0].unit else ""
        parts.append(f"<h2>{escape(kind)}{escape(unit)}</h2>{_chart(recorder, lines)}")
        parts.append(f'<div class="key">{key}</div>')
    return "".join(parts)


def _rate(recorder: Recorder) -> str:
    points = [
        (after.at, (after.assigned - before.assigned) / max(after.at - before.at, 0.001))
        for before, after in zip(recorder.samples, recorder.samples[1:], strict=False)
    ]
    return _chart(recorder, [(points, "#2a6f97")])


def _claimable(recorder: Recorder) -> str:
    known = [(s.at, float(s.claimable)) for s in recorder.samples if s.claimable is not None]
    return _chart(recorder, [(known, "#2a9d8f")])


def _waits(recorder: Recorder) -> str:
    span = _span(recorder) / BUCKETS
    buckets: dict[int, list[float]] = {}
    for wait in recorder.waits:
        buckets.setdefault(int(wait.at / span), []).append(wait.seconds * 1000)

    def line(of: Callable[[list[float]], float]) -> list[Point]:
        return [((number + 0.5) * span, of(each)) for number, each in sorted(buckets.items())]

    return _chart(
        recorder, [(line(max), "#a9d6e5"), (line(statistics.median), "#013a63")], log=True
    )


def _states(recorder: Recorder) -> str:
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
        areas.append(f'<polygon points="{_joined(places)}" fill="{colour}"/>')
        base = top
    key = "".join(
        f'<span><i style="background:{colour}"></i>{state}</span>'
        for state, colour in COLOURS.items()
    )
    frame = _frame(recorder, [(0, "0"), (agents, str(agents))], agents)
    return f'{_svg("".join(areas) + frame)}<div class="key">{key}</div>'


def _chart(
    recorder: Recorder, lines: Sequence[tuple[list[Point], str]], *, log: bool = False
) -> str:
    scaled = [([(x, _log(y) if log else y) for x, y in points], colour) for points, colour in lines]
    most = max([y for points, _ in scaled for _, y in points], default=1.0)
    most = math.ceil(most) if log else max(most * 1.05, 1.0)
    marks = (
        [(float(power), f"{10**power:,}") for power in range(int(most) + 1)]
        if log
        else [(most * part / 4, f"{most * part / 4:,.0f}") for part in range(5)]
    )
    drawn = "".join(
        f'<polyline points="{_joined([_place(recorder, point, most) for point in points])}"'
        f' fill="none" stroke="{colour}" stroke-width="1.5"/>'
        for points, colour in scaled
    )
    return _svg(_frame(recorder, marks, most) + drawn)


def _frame(recorder: Recorder, marks: Sequence[tuple[float, str]], most: float) -> str:
    """Return the SVG frame of a chart: lines for the values `marks`, the time axis, and the faults.

    `most` is the highest value of the chart.
    """
    parts = []
    for value, label in marks:
        _, y = _place(recorder, (0, value), most)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for part in range(5):
        x, _ = _place(recorder, (_span(recorder) * part / 4, 0), 1)
        anchor = "end" if part == 4 else "middle"  # noqa: PLR2004 - the last
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
            f"{_span(recorder) * part / 4:.0f} s</text>"
        )
    for fault in recorder.faults:
        x, _ = _place(recorder, (fault.at, 0), 1)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT - BOTTOM}" stroke="#d62828"'
            f' stroke-dasharray="3 3"><title>{escape(fault.what)}</title></line>'
        )
    return "".join(parts)


def _place(recorder: Recorder, point: Point, most: float) -> Point:
    x, y = point
    high = HEIGHT - BOTTOM - 8
    return (
        LEFT + (WIDTH - LEFT) * min(x / _span(recorder), 1.0),
        8 + high * (1 - min(max(y, 0.0) / max(most, 0.001), 1.0)),
    )


def _span(recorder: Recorder) -> float:
    return max(
        [sample.at for sample in recorder.samples[-1:]] + [wait.at for wait in recorder.waits[-1:]],
        default=1.0,
    )


def _log(value: float) -> float:
    return math.log10(max(value, 1.0))


def _joined(places: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _svg(content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img">{content}</svg>'
