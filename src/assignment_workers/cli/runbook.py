"""The runbooks on the terminal, without a browser, a gateway or a database."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Annotated

import typer

from assignment_workers.errors import UsageError
from assignment_workers.health.runbooks import COMMAND, runbooks


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(runbook)


def runbook(
    name: Annotated[
        str | None, typer.Argument(help="The runbook, as `status` names it; none: list all.")
    ] = None,
) -> int:
    """Print what to do about a component that is in trouble."""
    found = runbooks()
    if name is None:
        for each in found.values():
            typer.echo(f"{each.name:<42} {each.title}")
        return 0
    if name not in found:
        raise UsageError(f"there is no runbook {name!r}; `{COMMAND}` lists them")
    typer.echo(f"{found[name].title}\n")
    for line in found[name].plain.splitlines():
        typer.echo(_wrapped(line))
    return 0


def _wrapped(line: str) -> str:
    """Return the line, broken between words to the width of the terminal, if there is one."""
    if not sys.stdout.isatty():
        return line
    return textwrap.fill(
        line,
        shutil.get_terminal_size().columns,
        subsequent_indent="   " if line[:1].isdigit() else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
