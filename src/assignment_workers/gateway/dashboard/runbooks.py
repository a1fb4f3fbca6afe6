"""The page of runbooks, to which alerts and the banner lead."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from fastapi import APIRouter, Request, Response
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from assignment_workers.gateway.dashboard.page_rendering import as_page, html, looker_of
from assignment_workers.health.runbooks import anchor, markdown
from assignment_workers.health.runbooks import runbooks as all_runbooks

ROUTES = APIRouter(include_in_schema=False)


@ROUTES.get("/runbooks")
@as_page
async def runbooks(request: Request) -> Response:
    """Show all runbooks on one page. The address `/runbooks#ANCHOR` leads to one of them."""
    caller = await looker_of(request)
    facts = {"title": "Runbooks", "caller": caller, "text": rendered()}
    return html(request, "runbooks.html", facts)


@cache
def rendered() -> Markup:
    """Return the runbooks as HTML.

    Only a link to a runbook on this page stays a link. In place of any other link, its link text
    stands as plain text.
    """
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(markdown())
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", anchor(content.content))
    for token in tokens:
        token.children = _without_documents(token.children)
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704 - our own text


def _without_documents(tokens: list[Token] | None) -> list[Token] | None:
    """Return parsed Markdown in which links that lead to no runbook are replaced by their text."""
    if tokens is None:
        return None
    found: list[Token] = []
    leads_away = False
    for token in tokens:
        if token.type == "link_open":
            page, _, name = str(token.attrs.get("href", "")).partition("#")
            leads_away = bool(page) or name not in all_runbooks()
        if not (leads_away and token.type in {"link_open", "link_close"}):
            found.append(token)
    return found
