"""The page of runbooks, to which alerts and the banner lead: the last part of docs/operators.md."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from assignment_workers.gateway.dashboard.page_rendering import as_page, html, looker_of

PACKAGE = Path(__file__).parents[2]
PAGES = (PACKAGE / "_operators.md", PACKAGE.parents[1] / "docs" / "operators.md")
"""The document in an installed package, and in the repository."""
BEGINS = "## Runbooks\n"

ROUTES = APIRouter(include_in_schema=False)


@ROUTES.get("/runbooks")
@as_page
async def runbooks(request: Request) -> Response:
    """Show the runbooks; the address of one ends with `#` and its anchor."""
    caller = await looker_of(request)
    facts = {"title": "Runbooks", "caller": caller, "text": rendered()}
    return html(request, "runbooks.html", facts)


@cache
def rendered() -> Markup:
    """Return the runbooks as HTML, without links to other documents, which are not here."""
    text = next(page for page in PAGES if page.exists()).read_text(encoding="utf-8")
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(text.partition(BEGINS)[2])
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", anchor(content.content))
    for token in tokens:
        token.children = _without_documents(token.children)
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 - our own text


def anchor(title: str) -> str:
    """Return the anchor of a heading, as the documentation site makes it."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _without_documents(tokens: list[Token] | None) -> list[Token] | None:
    """Replace each link that leads off the page by its text."""
    if tokens is None:
        return None
    found: list[Token] = []
    leads_away = False
    for token in tokens:
        if token.type == "link_open":
            leads_away = not str(token.attrs.get("href", "")).startswith("#")
        if not (leads_away and token.type in {"link_open", "link_close"}):
            found.append(token)
    return found
