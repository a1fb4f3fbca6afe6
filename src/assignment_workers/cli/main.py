"""All commands under one name, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from assignment_workers import versions
from assignment_workers.cli import (
    agent,
    agents,
    call_centre,
    dead_letters,
    explain,
    incident,
    operator,
    person,
    report,
    schema,
    stack,
    suppressions,
    token,
)
from assignment_workers.cli.show import complain
from assignment_workers.errors import AssignmentWorkersError, plain

app = typer.Typer(
    help="Hands call-centre agents the next user to call: each user to one agent.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{versions.PACKAGE} {versions.own()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Hands call-centre agents the next user to call: each user to one agent."""


for module in (stack, agent, operator, explain, report, incident, call_centre):
    module.add_to(app)
app.add_typer(schema.app, name="schema")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(token.app, name="token")
app.add_typer(person.app, name="person")
app.add_typer(suppressions.contact, name="do-not-contact")
app.add_typer(suppressions.quarantine, name="quarantine")
app.add_typer(suppressions.closed, name="closed")
app.add_typer(agents.app, name="agents")


def _with_choices(error: typer.TyperException) -> str:
    """What was wrong, and for an unknown command which there are."""
    said = plain(error.format_message())
    context = getattr(error, "ctx", None)
    names = getattr(context and context.command, "commands", None)
    if names and said.startswith("No such command"):
        return f"{said} There are: {', '.join(sorted(names))}."
    return said


def main() -> None:
    """Run the command that was given and exit with its code."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        said = _with_choices(error)
        if "\n" in said:  # no command was given: this is the help
            typer.echo(said)
        else:
            complain(said)
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except AssignmentWorkersError as error:
        complain(str(error))
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code or 0)
