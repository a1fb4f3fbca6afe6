"""Templates that turn facts into HTML, and the formats of values."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from assignment_workers.assignment.reports.breakdown import BARS
from assignment_workers.assignment.reports.service_levels import unseen
from assignment_workers.gateway.dashboard import charts

HERE = Path(__file__).parent
UNKNOWN = "unknown"


def environment(name: str | None = None) -> Environment:
    """Return the Jinja environment for the pages. Every value in a template is escaped.

    `name`: the name of this installation, such as `production`, for the title bar.
    """
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "axis_of": lambda since, until, parts=BARS: charts.Axis(since, until, parts),
        "counts_chart": charts.counts_chart,
        "times_chart": charts.times_chart,
        "chart_width": charts.WIDTH,
        "chart_height": charts.HEIGHT,
        "chart_left": charts.LEFT,
        "environment_name": name,
    }
    made.filters |= {
        "number": number,
        "capped": capped,
        "ms": milliseconds,
        "since": since,
        "until": until,
        "at": at,
        "duration": duration,
        "share": share,
        "megabytes": megabytes,
        "words": words,
        "told": told,
        "unseen": unseen,
        "code": code,
    }
    return made


def number(value: float | None) -> str:
    """Format a number without decimals, with its digits in groups of three."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def capped(value: int | None, most: int) -> str:
    """Format a count for which the counting stopped at `most`.

    If the count reached `most`, the text is, for example, "1,000 or more". A lower count is only a
    number, such as "999". None is formatted as "unknown".
    """
    return f"{number(value)} or more" if value is not None and value >= most else number(value)


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds."""
    return UNKNOWN if seconds is None else f"{seconds * 1000:,.1f} ms"


def share(part: float | None) -> str:
    """Format `part`, a share from 0 to 1, as percent."""
    return UNKNOWN if part is None else f"{part:.2%}"


def megabytes(count: int | None) -> str:
    """Format bytes as megabytes."""
    return UNKNOWN if count is None else f"{count / 1_000_000:,.0f} MB"


def duration(seconds: float | None) -> str:
    """Format seconds in at most two units, such as "3 h 5 min"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes:.0f} min {seconds % 60:.0f} s"
    if days < 1:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{days:,.0f} d {hours % 24:.0f} h"


def at(moment: datetime | None) -> Markup | str:
    """Return HTML with a time, for a script that shows it in the viewer's time zone.

    Without the script, the time is shown in UTC, with the date if it is not today.
    """
    return _time(moment, "")


def since(moment: datetime | None) -> Markup | str:
    """Return HTML with a time, for a script that shows how long ago it was.

    Without the script, the time itself is shown.
    """
    return _time(moment, "since")


def until(moment: datetime | None) -> Markup | str:
    """Return HTML with a time, for a script that counts down to it.

    Without the script, the time itself is shown.
    """
    return _time(moment, "until")


def words(name: object) -> str:
    """Format a name from the code, such as `put_off_until`, as words for people."""
    return str(name).replace("_", " ").replace("ASSIGNMENT RACE CONDITION", "race")


def told(facts: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the details of an event as pairs of name and text, sorted by name."""
    return [(words(name), str(value)) for name, value in sorted(facts.items()) if value is not None]


def code(said: str) -> Markup:
    """Return `said` as HTML in which text between backticks is marked up as code."""
    parts = [escape(each) for each in said.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(each) if place % 2 else each
        for place, each in enumerate(parts)
    )


def _time(moment: datetime | None, how: str) -> Markup | str:
    if moment is None:
        return UNKNOWN
    utc = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    shown = (
        f"{utc:%H:%M:%SZ}" if utc.date() == datetime.now(UTC).date() else f"{utc:%Y-%m-%d %H:%MZ}"
    )
    written = utc.isoformat().replace("+00:00", "Z")
    return _TIMES[how].format(written, shown)


_TIMES = {
    "": Markup('<time datetime="{}" data-at>{}</time>'),
    "since": Markup('<time datetime="{}" data-since>{}</time>'),
    "until": Markup('<time datetime="{}" data-until>{}</time>'),
}
