"""Show the operational settings in force and their earlier changes, and change one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from assignment_workers.assignment import settings_versions
from assignment_workers.assignment.answers import Done, Refused
from assignment_workers.assignment.operational_settings import (
    NONE,
    OPERATIONAL,
    SettingChange,
    misfit,
)
from assignment_workers.assignment.settings_versions import shown
from assignment_workers.cli.agent import line
from assignment_workers.cli.operator_actions import Why, operator_name, recorded
from assignment_workers.cli.servers import client, database
from assignment_workers.cli.servers import settings as of_environment
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.client import commands
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded

group = typer.Typer(
    help="Operational settings: what is in force, and changing it.",
    no_args_is_help=True,
)

VERSIONS = 50

NameArgument = Annotated[str, typer.Argument(help="The setting.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="settings")


@group.command("list")
def list_all(json: AsJson = False) -> int:
    """Print every operational setting with its values in force."""
    return _print(None, json=json)


@group.command()
def show(name: NameArgument, json: AsJson = False) -> int:
    """Print one operational setting: its values in force, its default and what is accepted.

    A setting has one value for all. It may have further values for single dialer queues or teams.
    """
    if name not in OPERATIONAL:
        raise UsageError(misfit(SettingChange(name=name), loaded().policies) or "")
    return _print(name, json=json)


def _print(name: str | None, *, json: bool) -> int:
    given = of_environment()
    with database() as connection:
        found = shown(connection, loaded(), given, name)
    if json:
        as_json(found)
        return 0
    as_table(
        f"Operational settings, version {found.version or 'none: those of this environment'}",
        ["setting", "for", "value", "default", "accepted"],
        [
            (
                each.name if number == 0 else None,
                _subject(value.queue, value.team),
                value.value,
                (each.default or NONE) if number == 0 else None,
                each.accepted if number == 0 else None,
            )
            for each in found.settings
            for number, value in enumerate(each.values)
        ],
    )
    return 0


def _subject(queue: str | None, team: str | None) -> str:
    return queue or (f"team {team}" if team else "all")


@group.command("set")
def set_value(
    name: NameArgument,
    why: Why,
    value: Annotated[
        str | None,
        typer.Argument(help=f"The value; {NONE} switches it off.", show_default=False),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="For this dialer queue alone.")] = None,
    team: Annotated[str | None, typer.Option(help="For this team of agents alone.")] = None,
    unset: Annotated[
        bool, typer.Option("--unset", help="Drop the value: that for all, or the default, counts.")
    ] = False,
) -> int:
    """Change one operational setting: for all, for one dialer queue, or for one team of agents.

    Each sequencer uses the new value from its next transaction on, so all later claims use it. Any
    other process uses it when it reads the settings next, for example in its next job. No process
    has to be started again.
    """
    if (value is None) is not unset:
        raise UsageError("set takes a value, or --unset: one of the two")
    of_environment()  # loads the dialer, whose queues have settings of their own
    change = SettingChange(name=name, queue=queue, team=team, value=value)
    if wrong := misfit(change, loaded().policies):
        raise UsageError(wrong)
    with recorded("settings", name, why) as told, client() as asking:
        command = commands.change_settings([change.model_dump()], operator_name(), why)
        answer = told(asking.command(command.at(told.position)))
    if isinstance(answer, Done):
        again = " (it was already so)" if answer.replayed else ""
        said = "has no value of its own" if unset else f"is {value}"
        subject = _subject(queue, team)
        version = answer.counts.get("version")
        typer.echo(f"{name} for {subject} {said}, by version {version}{again}")
        return 0
    complain(line(answer))
    return 2 if isinstance(answer, Refused) else 1


@group.command()
def history(
    most: Annotated[int, typer.Option("--most", min=1, max=1_000, help="Versions.")] = VERSIONS,
    json: AsJson = False,
) -> int:
    """List the newest changes of operational settings: by whom, when, why, and the values.

    Changes that were made together are one version of the settings. The option --most is the
    maximum number of versions. For each changed setting, the old and the new value are printed.
    """
    with database() as connection:
        found = settings_versions.history(connection, most=most)
    if json:
        as_json(found)
        return 0
    as_table(
        "Versions of the operational settings",
        ["version", "at", "who", "setting", "for", "from", "to", "why"],
        [row for each in found for row in _rows(each)],
    )
    return 0


def _rows(version: settings_versions.StoredVersion) -> list[tuple[Any, ...]]:
    head = (version.version, f"{version.at:%Y-%m-%d %H:%M:%SZ}", version.who)
    return [
        (
            *head,
            each.name,
            _subject(each.queue, each.team),
            each.before or "unset",
            each.after or "unset",
            version.why,
        )
        for each in version.changes
    ] or [(*head, "no value", None, None, None, version.why)]
