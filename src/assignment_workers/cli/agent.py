"""The commands of an agent: `request`, and one for each verb, such as `complete` or `release`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from inspect import Parameter
from typing import Annotated, Any
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
from assignment_workers.assignment.lifecycle.moves import VERBS
from assignment_workers.assignment.lifecycle.verb import AnyVerb, Argument
from assignment_workers.cli.servers import client, located
from assignment_workers.cli.show import AsJson, as_json, complain
from assignment_workers.errors import UsageError

AgentOption = Annotated[int, typer.Option("--agent", min=1, help="The agent who holds it.")]
AssignmentArgument = Annotated[str, typer.Argument(help="The assignment's id.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="The assignment's version, as it was given.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module to the command line `app`."""
    app.command()(request)
    for verb in VERBS.values():
        app.command()(command_of(verb))


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


def command_of(verb: AnyVerb) -> Callable[..., int]:
    """Return the function that Typer runs as the command for `verb`, such as `complete`."""

    def command(
        assignment: AssignmentArgument,
        agent: AgentOption,
        version: VersionOption = None,
        json: AsJson = False,
        **own: Any,  # noqa: ANN401 - as it is declared
    ) -> int:
        for each in verb.own:
            if each.kind is datetime and own[each.name] is not None:
                own[each.name] = as_instant(own[each.name], _option(each))
        called = verb.call(_id(assignment), agent, version=version, **own)
        with client() as asking:
            return tell(asking.perform(called), json)

    fixed = list(inspect.signature(command, eval_str=True).parameters.values())
    parameters = [*fixed[:2], *map(_parameter, verb.own), *fixed[2:4]]
    # By keyword, because a required option may stand behind one that has a default.
    by_keyword = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    command.__name__ = verb.name
    command.__doc__ = verb.description
    command.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in by_keyword}
    return command


def _parameter(argument: Argument) -> Parameter:
    kind: Any = int if argument.kind is int else str
    option = typer.Option(
        _option(argument), min=1 if kind is int else None, help=argument.description
    )
    return Parameter(
        argument.name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if argument.required else argument.default,
        annotation=Annotated[kind if argument.required else kind | None, option],
    )


def _option(argument: Argument) -> str:
    return f"--{argument.name.replace('_', '-')}"


def line(answer: object) -> str:
    """Return one line of text for people that describes an answer of the Python client."""
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
    """Print an answer, as JSON or as a line for people; return the exit code of the command.

    The exit code is 0 if a user was assigned, or if the command was carried out. It is 2 if the
    answer is `Refused`. It is 1 for every other answer, such as `Empty` or `Unavailable`.
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


INSTANT = "2026-11-23T15:00:00Z"
"""An example of a time in UTC, which the error messages about a wrong time show."""


def as_instant(text: str, option: str, *, or_of_day: str | None = None) -> datetime:
    """Parse the time given for `option`; return it in UTC.

    Raises `UsageError` if the text is not a time, or if the time has no zone. The error message
    shows an example of a time. `or_of_day`: an example of a time of day, for an option that accepts
    a time of day too. If the text is not a time, the error message shows this example as well.
    None: the option accepts no time of day.
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        forms = [or_of_day, INSTANT] if or_of_day else [INSTANT]
        raise UsageError(f"{option} {text!r}: not a time such as {' or '.join(forms)}") from None
    if when.tzinfo is None:
        raise UsageError(f"{option} {text!r}: has no zone; write {INSTANT}")
    return when.astimezone(UTC)
