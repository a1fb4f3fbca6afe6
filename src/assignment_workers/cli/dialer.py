"""The commands `dialer`: check, show or write `dialerconfig.py`, and generate types from it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from assignment_workers.assignment.agents.allowed import unserved
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.claims.probes import RulePlan, plans
from assignment_workers.assignment.crm import fact_views, mirror_tables
from assignment_workers.assignment.crm.external_crm import configured, declared_facts
from assignment_workers.assignment.operational_settings import before_versions, unknown_queues
from assignment_workers.assignment.reports.explain import instant
from assignment_workers.assignment.settings_versions import current, unknown_values
from assignment_workers.cli.servers import database, settings
from assignment_workers.cli.show import AsJson, as_json, as_table, complain
from assignment_workers.dialer import described
from assignment_workers.dialer.check import problems
from assignment_workers.dialer.loading import NAME, VARIABLE, path_of, read
from assignment_workers.dialer.template import TEMPLATE
from assignment_workers.errors import (
    CrmUnavailable,
    DatabaseUnavailable,
    SchemaMismatch,
    UsageError,
)
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.runtime.stack import running_stack
from assignment_workers.settings import Settings

group = typer.Typer(help="The dialer queues, rules and outcomes.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.add_typer(group, name="dialer")


@group.callback()
def dialer() -> None:
    """Group the commands of the dialer's definition.

    The function itself does nothing; Typer calls it before the subcommand.
    """


@group.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="None: the configured file.")] = None,
) -> int:
    """Check the definition of the dialer, without starting anything.

    Each mistake is printed as one line with file, dialer queue and rule; then the exit code is 2.
    If DATABASE_URL is set or a stack runs here, the database is read too. A warning then names each
    rule for which a claim would read a whole table, and each dialer queue that no agent may take
    from. The settings, of the environment or stored by operators, may name something that the file
    does not have, such as an outcome. This is a mistake if it would keep processes from starting,
    and a warning otherwise. A table or a column that an external CRM lacks is a mistake.
    """
    if file is not None:
        os.environ[VARIABLE] = str(file)
    path = path_of(Settings.from_environment(os.environ))
    found = list(problems(read(path)))
    asked, warnings = ([], []) if found else _of_the_installation(path)
    found += [f"queue {each.queue}: rule {each.rule}: {each.error}" for each in asked if each.error]
    for problem in found:
        complain(f"{path}: {problem}")
    if found:
        return 2
    warnings += [
        f"{path}: queue {each.queue}: rule {each.rule}: no index serves it: each claim reads the"
        f" whole of {', '.join(each.scanned)}"
        for each in asked
        if each.scanned
    ]
    for warning in warnings:
        complain(f"warning: {warning}")
    made = loaded()
    rules = len({rule.name for policy in made.policies.values() for rule in policy.rules})
    typer.echo(
        f"{path}: good: dialer queues {len(made.queues)}, rules {rules},"
        f" outcomes {len(made.outcomes)}"
    )
    return 0


def _of_the_installation(path: Path) -> tuple[list[RulePlan], list[str]]:
    """Try the dialer's rules on this installation; return their query plans, and warnings.

    The plans are PostgreSQL's. They are for the rules with the values of the settings in force,
    such as calling hours. There are no plans if no database is available. A warning names, for
    example, a setting for an unknown dialer queue, or a queue that no agent may take from. `path`:
    the dialer's file, for messages. Raises `UsageError` if a setting of the environment does not
    fit the dialer's file, for example if it names an unknown outcome. Celery processes do not start
    with such a setting. Raises `UsageError`, too, if an external CRM lacks a table or a column.
    """
    given = settings()
    try:
        loaded().overridden(given.outcome_changes)
    except ValueError as error:
        raise UsageError(f"{Settings.model_fields['outcomes'].alias}: {error}") from None
    warnings = [*unknown_queues(loaded(), given), *_of_external_crm(path, given)]
    if not _has_database(given):
        return [], warnings
    try:
        with database(views=False) as connection:
            policies = policies_of(loaded(), current(connection, loaded(), given))
            warnings += unknown_values(connection, loaded())
            idle = unserved(connection, policies)
            if given.crm_database_url is None:
                fact_views.stand_in(connection, loaded(), given)
            else:
                mirror_tables.stand_in(connection, declared_facts(loaded(), given))
            found = list(plans(connection, policies, instant(connection)))
    except (DatabaseUnavailable, SchemaMismatch) as error:
        return [], [*warnings, f"the rules were not tried: {error}"]
    if given.crm_database_url is not None:  # a claim reads the facts as parameters
        found = [replace(each, scanned=()) for each in found]
    return found, warnings + [
        f"no active agent may take from dialer queue {queue}: see agents.allowed_queues"
        for queue in idle
    ]


def _of_external_crm(path: Path, given: Settings) -> list[str]:
    """Return a warning if an external CRM is configured and does not answer.

    Raises `UsageError` for a table or a column that the external CRM does not have.
    """
    crm = configured(loaded(), given)
    if crm is None:
        return []
    try:
        crm.check()
    except SchemaMismatch as error:
        raise UsageError(f"{path}: {error}") from error
    except CrmUnavailable as error:
        return [f"the CRM's tables were not looked at: {error}"]
    finally:
        crm.close()
    return []


def _has_database(given: Settings) -> bool:
    return given.database_url is not None or running_stack(given) is not None


def _in_force(given: Settings) -> Settings:
    """Return the settings in force: those of the environment, with the operational settings.

    `given`: the settings of the environment. If the database has a stored version of the
    operational settings, the values of the newest version are in force. The values of operational
    settings in `given` and in the dialer's file then do not count.

    If the database has no version, two sources count. A value that the dialer's file has for a
    dialer queue is in force for this queue. All other values are those of `given`. The same two
    sources count without a database, or if the database is unavailable.
    """
    if _has_database(given):
        try:
            with database() as connection:
                return current(connection, loaded(), given)
        except DatabaseUnavailable as error:
            complain(f"warning: these are the settings of this environment: {error}")
    return before_versions(loaded(), given)


@group.command()
def show(json: AsJson = False) -> int:
    """Show the dialer queues with their rules, the outcomes of calls, and the actions.

    The rules are shown with the values of the settings, such as calling hours. With a database,
    these are the settings in force. Without a database, or if it is unavailable, these are the
    settings of the environment and of the dialer's file.
    """
    given = settings()
    found = described.describe(loaded(), policies_of(loaded(), _in_force(given)))
    if json:
        as_json(found)
        return 0
    typer.echo(f"{path_of(given)}\n")
    for queue in found.queues:
        as_table(
            f"{queue.name}: {queue.title}",
            ("rule", "kind", "a user who breaks it"),
            [(rule.name, rule.kind, rule.means) for rule in queue.rules],
        )
    as_table(
        "Outcomes",
        ("outcome", "title", "callback", "notes", "for good", "meaning"),
        [
            (
                each.name,
                each.title,
                "needed" if each.needs_callback else "taken" if each.takes_callback else "none",
                "needed" if each.needs_notes else "taken",
                "yes" if each.terminal else "no",
                each.meaning,
            )
            for each in found.outcomes
        ],
    )
    as_table("Actions", ("action", "meaning"), [(each.name, each.means) for each in found.actions])
    return 0


@group.command()
def new(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path(NAME),
) -> int:
    """Write a commented definition of a dialer to begin with.

    An existing file is left as it is.
    """
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(TEMPLATE)
    except OSError as error:
        raise UsageError(f"{str(file)!r}: {error.strerror}") from None
    typer.echo(f"written: {file}; `assignment-workers dialer check {file}` checks it")
    return 0


@group.command()
def types(
    language: Annotated[
        described.Language, typer.Argument(help="The language of the types.")
    ] = "typescript",
) -> int:
    """Print TypeScript or Python types for the names of dialer queues, outcomes and actions.

    The types accept only the names in the dialer's definition. A program that calls this system,
    such as the frontend of the agents, can use them; its compiler or type checker then reports a
    misspelt name.
    """
    settings()
    typer.echo(described.types(loaded(), language), nl=False)
    return 0
