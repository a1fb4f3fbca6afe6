"""The output of commands: tables for people, JSON for programs, complaints on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def complain(line: str) -> None:
    """Print a line on standard error, with the name of the program before it."""
    typer.echo(f"assignment-workers: {line}", err=True)


def as_json(value: object) -> None:
    """Print the value as JSON on standard output."""
    typer.echo(json.dumps(to_jsonable_python(value), indent=2))


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table with a title. A cell that is None is empty."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else Text(str(cell)) for cell in row))
    return table


def as_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with a title, as wide as the terminal, or 160 characters without a terminal."""
    print_table(table_of(title, columns, rows))


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal, or 160 characters without a terminal."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(markup=False, highlight=False, width=160)
    console.print(table)
    console.print()


@contextmanager
def waiting(seconds: float, *, note: str = "") -> Iterator[None]:
    """Show the elapsed time beside the expected `seconds`, on standard error, while the block runs.

    Nothing is shown if `seconds` is below `SHOWN_FROM_SECONDS`. `note` is added to the expected
    time. Without a terminal, only one line is printed. Lines that the block prints on a terminal
    appear above the display.
    """
    if seconds < SHOWN_FROM_SECONDS:
        yield
        return
    expected = f"about {seconds:,.0f} s expected{note}"
    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        complain(expected)
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()
    ) as progress:
        progress.add_task(expected, total=None)
        yield


SHOWN_FROM_SECONDS = 5.0
