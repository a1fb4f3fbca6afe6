"""Draws docs/architecture.md from the import contracts of pyproject.toml.

.venv/bin/python tools/architecture.py            writes it
.venv/bin/python tools/architecture.py --print    prints it
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "src" / "assignment_workers"

HEAD = """\
# Architecture

Drawn by `make architecture` from the import contracts in `pyproject.toml`; `make layers` holds the
code to them. A layer imports the layers below it, never one above.
"""


def main() -> int:
    """Write or print the page."""
    if "--print" in sys.argv[1:]:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return HEAD + "".join(
        section for contract in contracts for section in sections(contract) if section
    )


def sections(contract: dict[str, Any]) -> Iterator[str]:
    """The picture and the table of one contract of layers; nothing for another contract."""
    if contract["type"] != "layers":
        return
    (container,) = contract["containers"]
    folder = PACKAGE.joinpath(*container.split(".")[1:])
    layers = [
        [name for name in names(layer) if file_of(folder / name).is_file()]
        for layer in contract["layers"]
    ]
    yield f"\n## {contract['name']}\n\n```mermaid\nflowchart TB\n"
    for number, layer in enumerate(layers):
        yield f'    subgraph layer{number}[" "]\n        direction LR\n'
        yield "".join(f'        n{number}_{name.strip("_")}["{name}"]\n' for name in layer)
        yield "    end\n"
    yield "".join(f"    layer{number} --> layer{number + 1}\n" for number in range(len(layers) - 1))
    yield "```\n\n| | holds |\n|---|---|\n"
    for name in (name for layer in layers for name in layer):
        shown = f"{name}/" if (folder / name).is_dir() else f"{name}.py"
        path = folder.relative_to(PACKAGE) / shown
        yield f"| `{path}{'/' if shown.endswith('/') else ''}` | {summary(folder / name)} |\n"


def names(layer: str) -> list[str]:
    """The modules of a layer as a contract writes it: `(a) : (b)`, `a | b`."""
    return re.findall(r"\w+", layer)


def file_of(module: Path) -> Path:
    """The file of a module or a package."""
    return module / "__init__.py" if module.is_dir() else module.with_suffix(".py")


def summary(module: Path) -> str:
    """The first line of a module's or a package's docstring, without its full stop."""
    said = ast.get_docstring(ast.parse(file_of(module).read_text(encoding="utf-8"))) or ""
    return said.split("\n")[0].removesuffix(".").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
