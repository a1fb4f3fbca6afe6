"""The command `assignment-workers`: run a subcommand; print an error as one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from assignment_workers import versions
from assignment_workers.assignment.lifecycle.moves import VERBS
from assignment_workers.cli.show import complain
from assignment_workers.errors import AssignmentWorkersError, plain

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

SECTIONS = {
    "Run it": {
        "up": ("stack", "Start everything in the foreground; Ctrl-C stops it, data kept."),
        "env": ("stack", "Print the running stack's addresses for `eval`."),
        "process": ("stack", "Run one process of a stack, in the foreground."),
        "schema": ("schema", "The database's schema."),
        "dialer": ("dialer", "The dialer queues, rules and outcomes."),
        "token": ("token", "API tokens of the gateway's callers."),
        "openapi": ("stack", "Print the gateway's OpenAPI document."),
    },
    "Find out": {
        "status": ("operator", "Show whether agents are served, and the state of everything."),
        "doctor": ("operator", "Check every guarantee that the database can show."),
        "runbook": ("runbook", "Print what to do about a component that is in trouble."),
        "explain": ("explain", "Say why a user is offered or not, or whom a rule holds back."),
        "report": ("report", "Report assignments, time to assign, success rate and lost rows."),
        "agents": ("agents", "What agents are about, and their sessions."),
    },
    "Operate": {
        "regenerate": ("operator", "Build new generations of dialer queues now."),
        "pause": ("operator", "Hand out nobody from QUEUE until it is resumed."),
        "resume": ("operator", "Hand out users from QUEUE again."),
        "drain": (
            "operator",
            "Remove from QUEUE all users whom no agent holds; the next build adds users again.",
        ),
        "settings": ("settings", "Operational settings: what is in force, and changing it."),
        "do-not-contact": ("suppressions", "Who asked not to be called, by user or phone."),
        "quarantine": ("suppressions", "Users set aside for unclear reasons."),
        "closed": ("suppressions", "Users out of a dialer queue: an agent closed it."),
        "person": ("person", "What is stored about a person, and its erasure."),
        "audit": ("audit", "Events with chained digests: export and check."),
        "dead-letters": ("dead_letters", "Messages that could not be handled."),
    },
    "Act as an agent": {
        "request": ("agent", "Ask for the next user for AGENT."),
        **{name: ("agent", verb.description) for name, verb in VERBS.items()},
    },
    "Try it": {
        "replay-incident": (
            "incident",
            "Replay the incident: the old dialer, remedies for it, and our algorithm.",
        ),
        "demo": ("call_centre", "Simulate a call centre, and check every guarantee."),
        "soak": ("call_centre", "Simulate a call centre for hours, with faults."),
    },
}
"""Maps each section of the help to its commands, and each command to its module and line of help.

A command's module is imported only when the command is used.
"""
COMMANDS = {name: each for section in SECTIONS.values() for name, each in section.items()}


class Commands(MutableMapping[str, "Command"]):
    """A mapping of all commands by name.

    A command's module is imported when the command is looked up.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Command] = {}

    def __getitem__(self, name: str) -> Command:
        if name not in self._loaded:
            module = import_module(f"assignment_workers.cli.{COMMANDS[name][0]}")
            holder = typer.Typer(rich_markup_mode=None)
            holder.callback()(lambda: None)
            module.add_to(holder)
            self._loaded |= get_group(holder).commands
        return self._loaded[name]

    def __setitem__(self, name: str, command: Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS


class LazyGroup(TyperGroup):
    """The group of all commands, which prints its help without importing the commands' modules.

    To import all these modules would take two seconds.
    """

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - as TyperGroup has them
        super().__init__(**attributes)
        self.commands = Commands()

    def list_commands(self, ctx: Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()])


app = typer.Typer(
    help="Hands call-centre agents the next user to call: each user to one agent.",
    cls=LazyGroup,
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
    """Declare the options that stand before the name of a command."""


def _with_choices(error: typer.TyperException) -> str:
    """Return the message of a usage error; for an unknown command, list the commands."""
    said = plain(error.format_message())
    context = getattr(error, "ctx", None)
    names = getattr(context and context.command, "commands", None)
    if names and said.startswith("No such command"):
        return f"{said} There are: {', '.join(sorted(names))}."
    return said


def main() -> None:
    """Run the command of the command line, and exit with its exit code."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        said = _with_choices(error)
        if "\n" in said:  # no command was given: this is the help text
            typer.echo(said)
        else:
            complain(said)
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except AssignmentWorkersError as error:
        complain(str(error))
        code = error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("assignment_workers"):
            raise
        complain(
            f"{error.name} is not installed; this command comes with the extra `embedded`: "
            f"install the package with it, as in {versions.wheel()}[embedded]"
        )
        code = 2
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except Exception as error:
        from assignment_workers.schema.retry import is_passing, reason  # slow, and seldom needed

        if not is_passing(error):
            raise
        complain(reason(error))
        code = 1
    sys.exit(code or 0)
