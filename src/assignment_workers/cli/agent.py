"""The commands of an agent: request, accept, complete, skip, defer, close, release, renew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer

from assignment_workers.assignment.answers import (
    Assigned,
    Empty,
    Finished,
    Paused,
    Refused,
    Stated,
    TooLate,
    Unavailable,
)
from assignment_workers.cli.servers import client, located
from assignment_workers.cli.show import AsJson, as_json, complain
from assignment_workers.errors import UsageError

AgentOption = Annotated[int, typer.Option("--agent", min=1, help="The agent who holds it.")]
AssignmentArgument = Annotated[str, typer.Argument(help="The assignment's id.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="The assignment's version, as it was given.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (request, accept, complete, skip, defer, close, release, renew):
        app.command()(command)


def request(
    agent: Annotated[int, typer.Argument(min=1, help="The agent who asks.")],
    queue: Annotated[str | None, typer.Option(help="Only from this dialer queue.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Ask again with the same id: the answer is the same.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=300, help="Seconds to wait.")] = 10.0,
    json: AsJson = False,
) -> int:
    """Ask for the next user for AGENT.

    The exit code is 1 when no user is assigned.
    """
    with client() as asking:
        answer = asking.request_next(
            agent, queue=queue, request_id=request_id, timeout=timedelta(seconds=timeout)
        )
    return tell(answer, json)


def complete(
    assignment: AssignmentArgument,
    agent: AgentOption,
    outcome: Annotated[str, typer.Option(help="What came of the call.")],
    version: VersionOption = None,
    notes: Annotated[str | None, typer.Option(help="What the agent wrote.")] = None,
    callback_at: Annotated[
        str | None, typer.Option(help="When to call again: ISO 8601 with a zone.")
    ] = None,
    json: AsJson = False,
) -> int:
    """End ASSIGNMENT with the outcome of its call."""
    when = _instant(callback_at, "--callback-at") if callback_at else None
    with client() as asking:
        answer = asking.complete(
            _id(assignment), agent, outcome, version=version, notes=notes, callback_at=when
        )
    return tell(answer, json)


def skip(
    assignment: AssignmentArgument,
    agent: AgentOption,
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """End ASSIGNMENT; the user is offered later, to others first."""
    with client() as asking:
        return tell(asking.skip(_id(assignment), agent, version=version), json)


def accept(
    assignment: AssignmentArgument,
    agent: AgentOption,
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """Accept the offer ASSIGNMENT: its lease starts anew."""
    with client() as asking:
        return tell(asking.accept(_id(assignment), agent, version=version), json)


def defer(
    assignment: AssignmentArgument,
    agent: AgentOption,
    until: Annotated[
        str | None, typer.Option(help="Not before this time: ISO 8601 with a zone.")
    ] = None,
    seconds: Annotated[int | None, typer.Option(min=1, help="Or not for so long.")] = None,
    why: Annotated[str | None, typer.Option(help="Why, for the records.")] = None,
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """End ASSIGNMENT; nobody is offered the user before a time."""
    if (until is None) == (seconds is None):
        raise UsageError("defer takes --until or --seconds: one of the two")
    when = _instant(until, "--until") if until else None
    with client() as asking:
        answer = asking.defer(
            _id(assignment), agent, until=when, seconds=seconds, why=why, version=version
        )
    return tell(answer, json)


def close(
    assignment: AssignmentArgument,
    agent: AgentOption,
    why: Annotated[str, typer.Option(help="Why, for the records.")],
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """End ASSIGNMENT; its dialer queue offers the user no more.

    `closed lift` reverses this.
    """
    with client() as asking:
        return tell(asking.close_user(_id(assignment), agent, why, version=version), json)


def release(
    assignment: AssignmentArgument,
    agent: AgentOption,
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """Give the user of ASSIGNMENT back untouched."""
    with client() as asking:
        return tell(asking.release(_id(assignment), agent, version=version), json)


def renew(
    assignment: AssignmentArgument,
    agent: AgentOption,
    version: VersionOption = None,
    json: AsJson = False,
) -> int:
    """Renew the lease of ASSIGNMENT."""
    with client() as asking:
        return tell(asking.renew(_id(assignment), agent, version=version), json)


def line(answer: object) -> str:
    """Render the answer of a client's call as one line for people."""
    match answer:
        case Assigned(assignment=held, replayed=replayed):
            again = " (the one already held)" if replayed else ""
            return (
                f"assigned{again}: agent {held.agent_id} has user {held.user_id} from {held.queue}"
                f" ({held.reason}, rank {held.rank}), assignment {held.id} version {held.version},"
                f" lease until {held.lease_expires_at:%H:%M:%SZ}"
            )
        case Empty(why=why, retry_after=seconds):
            reasons = ", ".join(f"{queue}: {reason}" for queue, reason in why.items())
            return f"empty: {reasons}; ask again in {seconds:.0f} s"
        case Paused(queue=queue):
            return f"paused: {queue or 'every dialer queue that the agent may take from'}"
        case Unavailable(reason=reason, retry_after=seconds):
            return f"unavailable: {located(reason)}; ask again in {seconds:.0f} s"
        case TooLate():
            return "too late: the deadline had passed, nobody was assigned"
        case Refused(reason=reason, code=code):
            return f"refused ({code}): {reason}"
        case Stated(agent_id=number, state=state, since=since, replayed=replayed):
            again = " (they were already)" if replayed else ""
            return f"agent {number} is {state}{again} since {since:%H:%M:%SZ}"
        case Finished(outcome=outcome, assignment=held, replayed=replayed):
            again = " (it was already)" if replayed else ""
            return f"{outcome}{again}: user {held.user_id}, assignment {held.id}"
        case _:
            return str(answer)


def tell(answer: object, json: bool) -> int:
    """Print an answer, as JSON or as a line for people.

    Returns the exit code of the command: 0 success, 1 no success, 2 refused.
    """
    good = isinstance(answer, Assigned | Finished | Stated)
    if json:
        as_json(answer)
    elif good:
        typer.echo(line(answer))
    else:
        complain(line(answer))
    return 0 if good else 2 if isinstance(answer, Refused) else 1


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(
            f"{text!r} is not an assignment's id; one looks like {UUID(int=0)}"
        ) from None


def _instant(text: str, option: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: not a time such as 2026-11-23T15:00:00Z") from None
    if when.tzinfo is None:
        raise UsageError(f"{option} {text!r}: has no zone; write 2026-11-23T15:00:00Z")
    return when.astimezone(UTC)
