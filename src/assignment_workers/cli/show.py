"""What commands print: tables for people, JSON for programs, complaints on standard error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def complain(line: str) -> None:
    """One line on standard error."""
    typer.echo(f"assignment-workers: {line}", err=True)


def as_json(value: object) -> None:
    """The value as JSON on standard output."""
    typer.echo(json.dumps(to_jsonable_python(value), indent=2))


def as_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under a title. As wide as the terminal, or as its content where there is none."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(markup=False, highlight=False, width=160)
    console.print(table)
    console.print()
