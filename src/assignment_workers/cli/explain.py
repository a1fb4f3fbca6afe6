"""Explain the state of a user, or the users whom each rule of a dialer queue holds back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.reports.explain import DUE, EXPLAINED_AT_MOST, instant
from assignment_workers.assignment.reports.explain import explain as explain_user
from assignment_workers.assignment.reports.explain import funnel as explain_queue
from assignment_workers.assignment.reports.explanation import (
    Explanation,
    Funnel,
    PromiseFound,
    QueueVerdict,
)
from assignment_workers.assignment.settings_versions import current
from assignment_workers.cli.servers import (
    COMMAND_AT_MOST,
    database_and_crm,
    need_queue,
    settings,
    user_id,
)
from assignment_workers.cli.show import AsJson, as_json, as_table
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import Source

WHOLE_AT_MOST = timedelta(minutes=30)


def add_to(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command()(explain)


def explain(
    user: Annotated[str | None, typer.Argument(help="The CRM's id of the user.")] = None,
    queue: Annotated[str | None, typer.Option(help="The dialer queue.")] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help=f"All of the pool, beyond its first {EXPLAINED_AT_MOST:,}."),
    ] = False,
    json: AsJson = False,
) -> int:
    """Say why a user is offered or not, or whom a rule holds back.

    With USER, one user is judged by all rules at the present time. With --queue, the users of
    that dialer queue are judged. The command prints each reason for which users are held back,
    such as a broken rule, and the number of these users. A user with several such reasons counts
    once, for the first of them. Without --whole, only the 200,000 users of the queue with the
    best scores are judged. With --whole, all users of the queue are judged. For ten million
    users, this takes minutes.
    """
    if (user is None) == (queue is None):
        raise UsageError("explain takes a user, or --queue and a dialer queue: one of the two")
    if whole and queue is None:
        raise UsageError("--whole is for --queue: a user is always judged whole")
    if queue is not None:
        need_queue(queue)
    given = settings()
    named = None if user is None else user_id(user)
    found: Explanation | Funnel | None
    patience = WHOLE_AT_MOST if whole else COMMAND_AT_MOST
    with database_and_crm(patience=patience) as (connection, crm):
        in_force = current(connection, loaded(), given)
        policies = policies_of(loaded(), in_force)
        now = instant(connection)
        if named is not None:
            number = user_ids.number_of(loaded(), connection, named)
            found = user_ids.shown(
                loaded(),
                connection,
                explain_user(
                    connection,
                    loaded(),
                    crm,
                    number,
                    policies=policies,
                    settings=in_force,
                    now=now,
                ),
            )
        else:
            found = explain_queue(
                connection,
                policies[queue or ""],
                settings=in_force,
                now=now,
                at_most=None if whole else EXPLAINED_AT_MOST,
            )
    if found is None:
        raise UsageError(f"no user {user}: neither the CRM nor a score row nor a hold names them")
    if json:
        as_json(found)
    elif isinstance(found, Funnel):
        _show_funnel(found)
    else:
        _show_user(found)
    return 0


def _show_user(found: Explanation) -> None:
    offered = [each.source.value for each in found.due if each.why == DUE]
    offered += [each.queue for each in found.queues if each.why == "claimable"]
    typer.echo(
        f"User {found.user_id} at {_time(found.at)}: "
        + (f"may be handed out from {', '.join(offered)}" if offered else "is not offered")
    )
    if found.hold:
        hold = found.hold
        typer.echo(
            f"Held by agent {hold.agent_id} since {_time(hold.claimed_at)}, "
            f"until {_time(hold.lease_expires_at)} at the latest unless renewed ({hold.id})"
        )
    if found.facts:
        facts = found.facts
        typer.echo(
            f"Score {facts.score}, attempts {facts.attempts}, "
            f"last outcome {facts.last_outcome or 'none'}, pool {facts.queue or 'none'}"
        )
    for each in found.not_for:
        typer.echo(f"Not offered to agent {each.agent_id} before {_time(each.until)}: skipped")
    for barred in found.suppressions:
        of = f" in {barred.queue}" if barred.queue else ""
        until = f", until {_time(barred.expires_at)}" if barred.expires_at else ""
        typer.echo(
            f"Suppressed ({barred.kind.replace('_', ' ')}){of} by {barred.by} since"
            f" {_time(barred.since)}{until}: {barred.reason}"
        )
    for due in found.due:
        _show_due(due)
    for verdict in found.queues:
        _show_verdict(verdict)
    as_table(
        "Latest events",
        ["at", "event", "agent", "queue", "details"],
        [
            (
                _time(each.at),
                each.kind,
                each.agent_id,
                each.queue,
                ", ".join(f"{name} {value}" for name, value in each.details.items()),
            )
            for each in found.events
        ],
    )


def _show_due(found: PromiseFound) -> None:
    name = found.source.value.replace("_", " ").capitalize()
    when = "of" if found.source is Source.MISSED_CALL else "for"
    typer.echo(
        f"{name} {when} {_time(found.due_at)}: {found.why}: {found.means}"
        + (f", until {_time(found.free_at)}" if found.free_at else "")
        + (f"; kept for agent {found.kept_for} at first" if found.kept_for else "")
    )


def _show_verdict(verdict: QueueVerdict) -> None:
    place = verdict.place
    typer.echo(
        f"\n{verdict.queue}: {verdict.why}: {verdict.means}"
        + (f", until {_time(verdict.free_at)}" if verdict.free_at else "")
    )
    if place:
        typer.echo(
            f"Place in generation {place.generation}: rank {place.rank}, {place.ahead} claimable "
            f"ahead, {place.state}"
            + (f" ({place.reason})" if place.reason else "")
            + (f" until {_time(place.available_from)}" if place.available_from else "")
        )
    typer.echo(f"In force: {verdict.in_force}")
    as_table(
        f"Rules of {verdict.queue}",
        ["reason", "holds back", "meaning", "until"],
        [
            (
                each.rule,
                "no" if each.holds else "YES",
                each.means,
                _time(each.until),
            )
            for each in verdict.rules
        ],
    )


def _show_funnel(found: Funnel) -> None:
    pool = f"{found.pool} users of the pool" if found.complete else f"the first {found.pool} users"
    as_table(
        f"{found.queue} at {_time(found.at)}: {pool}",
        ["held back by", "users", "left", "the first is free at", "which means"],
        [
            (each.why, each.users, each.left, _time(each.next_free_at), each.means)
            for each in found.steps
        ],
    )
    state = ", but the dialer queue is paused" if found.paused else ""
    typer.echo(f"Claimable: {found.claimable}{state}")
    if found.pool == 0:
        typer.echo("Nobody belongs to it; the job queue.discover places new users every 5 minutes")
    typer.echo(f"In force: {found.in_force}")
    if found.generation is None:
        typer.echo("Nothing is published: the dialer queue was never built")
    else:
        typer.echo(f"Generation {found.generation}, published {_time(found.published_at)}")


def _time(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M:%SZ}"
