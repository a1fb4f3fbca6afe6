"""The runbooks: instructions to examine and repair each component that can be in trouble.

The runbooks are the last part of the document for operators. The installed package contains this
document, so that the links to the runbooks work without the repository. Such links are in the
output of `assignment-workers status`, in the alerts, and in the banner. The banner is the message
at the top of each page of the dashboard while something is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
PAGES = (PACKAGE / "_operators.md", PACKAGE.parents[1] / "docs" / "operators.md")
"""The paths of the document that contains the runbooks: in an installed package, in the repository.
"""
BEGINS = "## Runbooks\n"
HEADING = "### "
COMMAND = "assignment-workers runbook"

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Runbook:
    """Instructions for a component in trouble.

    `title` is the heading of the runbook in the operators' document. `text` is the Markdown below
    this heading.
    """

    title: str
    text: str

    @property
    def name(self) -> str:
        """The name in commands, and the anchor on the page `/runbooks`, such as `celery-queues`."""
        return anchor(self.title)

    @property
    def plain(self) -> str:
        """The text for a terminal. A link to another runbook becomes the command that prints it."""

        def shown(link: re.Match[str]) -> str:
            title, target = link.groups()
            found = runbooks().get(target.removeprefix("#"))
            return f"{title} (`{COMMAND} {found.name}`)" if found else title

        return _LINK.sub(shown, self.text)


@cache
def runbooks() -> dict[str, Runbook]:
    """Return all runbooks by name, in the order in which the runbooks page has them."""
    _, *parts = f"\n{markdown()}".split(f"\n{HEADING}")
    found = [Runbook(title, text.strip()) for title, _, text in (p.partition("\n") for p in parts)]
    return {each.name: each for each in found}


@cache
def markdown() -> str:
    """Return the text after the heading `Runbooks` of the operators' document.

    The text has an introduction, and then all runbooks with their headings.
    """
    text = next(page for page in PAGES if page.exists()).read_text(encoding="utf-8")
    return text.partition(BEGINS)[2]


def anchor(title: str) -> str:
    """Return the anchor of a heading, as the documentation site forms it."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
