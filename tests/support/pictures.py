"""The pictures of the documentation, and the files that decide what each of them shows."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tests.support.root import ROOT

IMAGES = ROOT / "docs" / "images"
TAKEN = IMAGES / "taken.json"
"""By picture: a digest of each file that decides what it shows, as it was when it was taken."""
_PACKAGE = "src/assignment_workers"
_DASHBOARD = (
    f"{_PACKAGE}/gateway/dashboard/templates/base.html",
    f"{_PACKAGE}/gateway/dashboard/templates/parts/*",
    f"{_PACKAGE}/gateway/dashboard/assets/*.css",
    f"{_PACKAGE}/gateway/dashboard/assets/*.js",
)
_FLOWER = (f"{_PACKAGE}/tasks/flower.py", f"{_PACKAGE}/tasks/censored.py")
SHOWS = {
    "dashboard.png": (f"{_PACKAGE}/gateway/dashboard/templates/overview.html", *_DASHBOARD),
    "dashboard-queue.png": (f"{_PACKAGE}/gateway/dashboard/templates/page.html", *_DASHBOARD),
    "dashboard-engine.png": (f"{_PACKAGE}/gateway/dashboard/templates/page.html", *_DASHBOARD),
    "dashboard-wall.png": (f"{_PACKAGE}/gateway/dashboard/templates/wall.html", *_DASHBOARD),
    "flower-workers.png": _FLOWER,
    "flower-tasks.png": _FLOWER,
    "flower-task.png": _FLOWER,
    "recording.svg": ("tests/e2e/recording.py", "tests/e2e/screenshots.py"),
}


def digests(picture: str) -> dict[str, str]:
    """By file that decides what the picture shows: a digest of it as it is now."""
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(_deciding(path)).hexdigest()[:16]
        for path in _files(picture)
    }


def remember() -> None:
    """Note that every picture has just been taken."""
    known = {picture: digests(picture) for picture in sorted(SHOWS)}
    TAKEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def older_than(picture: str) -> list[str]:
    """Name the files that have changed since the picture was taken."""
    taken = json.loads(TAKEN.read_text(encoding="utf-8")).get(picture, {})
    now = digests(picture)
    return sorted(file for file in {*taken, *now} if taken.get(file) != now.get(file))


def _files(picture: str) -> Iterator[Path]:
    for pattern in SHOWS[picture]:
        found = sorted(ROOT.glob(pattern))
        assert found, f"{pattern}: there is no such file"
        yield from (each for each in found if each.is_file())


def _deciding(path: Path) -> bytes:
    """Return what of the file decides what is seen: of a program, all but its docstrings."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [each for each in body if not _is_text(each)]
    return repr(_plain(tree)).encode()


def _plain(node: object) -> object:
    """Return a syntax tree without its empty fields, which differ from one Python to the next."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, _plain(value)) for name, value in ast.iter_fields(node)]
    return type(node).__name__, [(name, value) for name, value in fields if value not in (None, [])]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
