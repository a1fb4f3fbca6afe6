"""Hooks of the site's build (`mkdocs.yml`): generated pages, pages from elsewhere, links, patterns.

A page is read in two places: in the repository, by its path there, and on the site. So links in the
sources are those of the repository. Here each link to a file of the repository becomes one to its
page, or to a copy of the file where it has none; a link to nothing is left, and the build fails.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from assignment_workers import versions
from tools import reference

ROOT = Path(__file__).resolve().parents[1]
COPIES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "clients/js/README.md": "reference/javascript.md",
    "examples/celery-node/README.md": "examples/celery-node.md",
    "examples/charity/README.md": "examples/charity.md",
    "examples/clinic/README.md": "examples/clinic.md",
    "examples/dialer/README.md": "examples/dialer.md",
    "examples/old-reader/README.md": "examples/old-reader.md",
}
"""Pages whose source stands elsewhere in the repository."""
ORIGINS = {page: source for source, page in COPIES.items()}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?(?:\s+\"[^\"]*\")?\))")
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//[^\s>]+"
    r"|<link[^>]+rel=[\"']?(?:stylesheet|preload|icon)[^>]+href=[\"']?(?:https?:)?//[^\s>]+"
)
CHART = re.compile(r"^```mermaid\nflowchart TB\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAYER = re.compile(r"^ *subgraph layer\d+.*?^ *end$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that a pattern of the navigation finds in its place; name the version."""
    docs = Path(config.docs_dir)
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    config.nav = _expanded(config.nav, pages)
    config.copyright = f"The documentation of {versions.PACKAGE} {versions.own()}"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the code, and those from elsewhere."""
    for uri, content in reference.pages().items():
        files.append(File.generated(config, uri, content=content))
    for source, uri in COPIES.items():
        if source != "clients/js/README.md":
            files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository into links on the site; draw the layers."""
    markdown = CHART.sub(_drawn, markdown)
    uri = page.file.src_uri
    origin = ORIGINS.get(uri, f"docs/{uri}")

    def replaced(found: re.Match[str]) -> str:
        target = found[2]
        if ":" in target or target.startswith("/"):
            return found[0]
        there = _page_of(posixpath.normpath(posixpath.join(posixpath.dirname(origin), target)))
        if there is None:
            return found[0]
        if there.startswith("files/") and files.get_file_from_path(there) is None:
            content = (ROOT / there.removeprefix("files/")).read_bytes()
            files.append(File.generated(config, there, content=content))
        relative = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"{found[1]}{relative}{found[3]}"

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(replaced, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(replaced, markdown[end:])])


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Fail for a generated page that the navigation lacks: MkDocs looks at files of docs alone."""
    del config
    placed = {page.file.src_uri for page in nav.pages}
    lacking = {file.src_uri for file in files.documentation_pages()} - placed
    if lacking:
        raise PluginError(f"not in the navigation of mkdocs.yml: {', '.join(sorted(lacking))}")
    return nav


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Fail for a page that loads anything from another server."""
    del config
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output


def _drawn(chart: re.Match[str]) -> str:
    """The layers of a chart, the highest first: what draws charts in a page is not here."""
    layers = [re.findall(r'\["(\w+)"\]', layer) for layer in LAYER.findall(chart[1])]
    rows = ("".join(f"<code>{name}</code>" for name in layer) for layer in layers)
    return "\n".join(['<ol class="layers">', *(f"<li>{row}</li>" for row in rows), "</ol>"])


def _page_of(path: str) -> str | None:
    """The place on the site of a file or folder of the repository; None: there is no such file."""
    if path.startswith("../"):
        return None
    for each in (path, f"{path}/README.md"):
        if each in COPIES:
            return COPIES[each]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return f"files/{path}" if (ROOT / path).is_file() else None


def _expanded(nav: object, pages: list[str]) -> object:
    if isinstance(nav, dict):
        return {title: _expanded(each, pages) for title, each in nav.items()}
    if not isinstance(nav, list):
        return nav
    made: list[object] = []
    for each in nav:
        if isinstance(each, str) and set("*[") & set(each):
            made += fnmatch.filter(pages, each)
        else:
            made.append(_expanded(each, pages))
    return made
