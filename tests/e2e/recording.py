"""A terminal's recording as an SVG that plays by itself: real commands, what they said, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LINE, LEFT, TOP = 920, 20, 16, 44
COLUMNS = 106
"""How many characters a line has at the most."""
HOLD_SECONDS = 5.0
"""How long the last picture stays before it begins again."""


@dataclass(frozen=True)
class Line:
    """A line of the terminal, and when it came: seconds from the beginning."""

    at: float
    text: str
    kind: str = "said"
    """`typed`, `said` or `note`."""


def svg(lines: Sequence[Line], title: str) -> str:
    """The recording; each line appears at its time, and it begins again at the end."""
    lasts = max(each.at for each in lines) + HOLD_SECONDS
    height = TOP + LINE * len(lines) + 12
    steps, rows = [], []
    for number, each in enumerate(lines):
        share = 100 * each.at / lasts
        steps.append(
            f"@keyframes l{number} {{ 0%, {max(share - 0.01, 0):.2f}% {{ opacity: 0 }}"
            f" {share:.2f}%, 100% {{ opacity: 1 }} }}"
            f" #l{number} {{ animation: l{number} {lasts:.1f}s step-end infinite }}"
        )
        rows.append(
            f'<text id="l{number}" class="{each.kind}" x="{LEFT}" y="{TOP + LINE * number + 14}">'
            f"{escape(each.text)}</text>"
        )
    newline = "\n"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">
<title>{escape(title)}</title>
<style>
text {{ font: 13.5px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre }}
.typed {{ fill: #7ee0c3; font-weight: bold }}
.said {{ fill: #e6e6e6 }}
.note {{ fill: #9aa7b0 }}
{newline.join(steps)}
@media (prefers-reduced-motion: reduce) {{ text {{ animation: none !important }} }}
</style>
<rect width="{WIDTH}" height="{height}" rx="8" fill="#14212b"/>
<circle cx="20" cy="20" r="6" fill="#e06c5a"/><circle cx="40" cy="20" r="6" fill="#e0b25a"/>
<circle cx="60" cy="20" r="6" fill="#5ac78a"/>
{newline.join(rows)}
</svg>
"""
