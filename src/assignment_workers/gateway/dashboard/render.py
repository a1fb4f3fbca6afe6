"""Facts made into HTML: templates, and the few ways in which values are written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent
UNKNOWN = "unknown"


def environment() -> Environment:
    """The templates; everything that they show is escaped."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "capped": capped,
        "ms": milliseconds,
        "since": since,
        "until": until,
        "at": at,
        "duration": duration,
        "share": share,
        "words": words,
        "told": told,
        "minute": lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%H:%MZ}",
    }
    return made


def number(value: float | None) -> str:
    """Digits in groups of three."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def capped(value: int | None, most: int) -> str:
    """The same of a count that stops at `most`."""
    return f"{number(value)} or more" if value is not None and value >= most else number(value)


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    return UNKNOWN if seconds is None else f"{seconds * 1000:,.1f} ms"


def share(part: float | None) -> str:
    """A share of one, as percent."""
    return UNKNOWN if part is None else f"{part:.2%}"


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units."""
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
    """A time of day, UTC; with its date where it is not today's."""
    return _time(moment, "")


def since(moment: datetime | None) -> Markup | str:
    """How long ago; a script counts it on, without one it is the time."""
    return _time(moment, "since")


def until(moment: datetime | None) -> Markup | str:
    """How long from now; a script counts it down."""
    return _time(moment, "until")


def words(name: object) -> str:
    """A name of ours, fit to be read."""
    return str(name).replace("_", " ").replace("ASSIGNMENT RACE CONDITION", "race")


def told(facts: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The details of an event, in the order of their names."""
    return [(words(name), str(value)) for name, value in sorted(facts.items()) if value is not None]


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
    "": Markup('<time datetime="{}">{}</time>'),
    "since": Markup('<time datetime="{}" data-since>{}</time>'),
    "until": Markup('<time datetime="{}" data-until>{}</time>'),
}
