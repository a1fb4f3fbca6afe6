"""Tasks by which agents accept, renew and end assignments: one for each verb, one for batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter
from typing import Annotated, Any
from uuid import UUID

import structlog
from pydantic import AwareDatetime, Field, ValidationError
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment.answers import (
    Code,
    CommandAnswer,
    FinishAnswer,
    Refused,
    Unavailable,
)
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import VERBS, Move, Owner
from assignment_workers.assignment.lifecycle.unclaimed import release_unclaimed
from assignment_workers.assignment.lifecycle.verb import AnyVerb
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.settings import Settings
from assignment_workers.tasks.arguments import MANY, AgentId, Version
from assignment_workers.tasks.task_handler import RETRY_SECONDS, TaskRun, one_line

log = structlog.get_logger()

_RUN = Parameter("run", Parameter.POSITIONAL_OR_KEYWORD, annotation=TaskRun)


def operation_of(verb: AnyVerb) -> Callable[..., FinishAnswer]:
    """Return the function that the Celery task of this verb runs.

    A verb is an action of an agent on an assignment, such as `complete`; its task is then
    `assignment.complete`. The function takes the verb's arguments and makes the change.
    """

    def operation(run: TaskRun, *args: Any, **kwargs: Any) -> FinishAnswer:
        arguments = dict(zip(verb.names, args, strict=False)) | kwargs
        return _made(run, _sent(verb.move(run.of.settings, arguments), run.sender()))

    signature = verb.operation_signature(_RUN)
    operation.__name__ = verb.name
    operation.__doc__ = verb.description
    operation.__signature__ = signature  # type: ignore[attr-defined]
    operation.__annotations__ = {
        name: each.annotation for name, each in signature.parameters.items()
    }
    return operation


def finish_many(run: TaskRun, requests: Annotated[list[Any], Field(max_length=MANY)]) -> list[Any]:
    """Make many moves (completions, skips and the like) in one transaction, in order.

    Returns the answer of each. If the transaction fails for a reason that no retry can change, each
    move is made in a transaction of its own, and only the failing move is stored as a dead letter.
    """
    settings = run.of.settings
    read = [_read(each, settings, run.sender(place)) for place, each in enumerate(requests)]
    moves = [each for each in read if not isinstance(each, Refused)]
    outcomes = run.of.outcomes
    try:
        # A process that ended may have stored the answer of one move under the name of its part.
        found: Any = run.once(
            lambda transaction: finish(
                transaction, moves, outcomes=outcomes, settings=run.settings_in(transaction)
            )
        )
        answers = iter(found if isinstance(found, list) else [found] * len(moves))
    except DBAPIError:
        return [
            _alone(run, said, each, part)
            for part, (said, each) in enumerate(zip(requests, read, strict=True))
        ]
    return [each if isinstance(each, Refused) else next(answers) for each in read]


def _read(said: object, settings: Settings, sender: str | None) -> Move | Refused:
    """Return `said`, one move (such as a completion) of a batch message, as an object.

    If it is invalid, return the answer `refused`. `sender`: the name of the API token with which a
    caller other than the agent sent this move, if any.
    """
    if not isinstance(said, dict):
        return Refused(code=Code.MALFORMED, reason="a move is an object with `move` and arguments")
    name = said.get("move")
    verb = VERBS.get(name) if isinstance(name, str) else None
    if verb is None:
        reason = f"move: one of {', '.join(VERBS)} (given: {name!r:.80})"
        return Refused(code=Code.MALFORMED, reason=reason)
    # Versions up to 0.2.0 accepted each verb's arguments with each verb, and ignored them.
    arguments = {key: each for key, each in said.items() if key in verb.names or key not in _NAMES}
    del arguments["move"]
    try:
        read = verb.model.model_validate(arguments)
    except ValidationError as error:
        return Refused(code=Code.MALFORMED, reason=one_line(error))
    move: Move = verb.move(settings, {each: getattr(read, each) for each in verb.names})
    return _sent(move, sender)


def _sent(move: Move, sender: str | None) -> Move:
    """Return a copy of the move, an agent's command, with `sender` in its field `owner.sent_by`.

    `sender`: the name of the API token with which a caller other than the agent sent the move.
    None: the move was sent with the agent's own token, or with none; it is returned unchanged.
    """
    return move if sender is None else replace(move, owner=replace(move.owner, sent_by=sender))


_NAMES = frozenset(name for verb in VERBS.values() for name in verb.names)


def _alone(run: TaskRun, said: object, move: Move | Refused, part: int) -> FinishAnswer:
    if isinstance(move, Refused):
        return move
    try:
        return _made(run, move, part)
    except DatabaseUnavailable as error:
        log.warning("unavailable", reason=str(error))
        return Unavailable(retry_after=RETRY_SECONDS, reason=error.general)
    except DBAPIError as error:
        run.task.store_dead_letter(([said],), {}, f"{type(error).__name__}: {error}")
        reason = "internal error; the message was stored as a dead letter"
        return Unavailable(retry_after=RETRY_SECONDS, reason=reason)


def _made(run: TaskRun, move: Move, part: int | None = None) -> FinishAnswer:
    """Make one move, such as a completion, in one transaction and return its answer.

    `part`: the index of the move in its batch message; None for a message of one move.
    """
    outcomes = run.of.outcomes
    found: Any = run.once(
        lambda transaction: finish(
            transaction, [move], outcomes=outcomes, settings=run.settings_in(transaction)
        )[0],
        part=part,
    )
    answer: FinishAnswer = found[0] if isinstance(found, list) else found
    return answer


def release_if_unclaimed(
    run: TaskRun,
    assignment_id: UUID,
    agent_id: AgentId,
    version: Version,
    lease_expires_at: AwareDatetime,
) -> CommandAnswer:
    """Release an assignment, because the answer with it has perhaps not reached its agent.

    The gateway sends this command if the caller had disconnected when the answer to the agent's
    request came. `version` and `lease_expires_at`: the assignment's version and the end of its
    lease in that answer.

    The assignment stays as it is in two cases. First, its version or the end of its lease in the
    database differs from that answer: it has ended, or it was accepted or renewed. Second, the
    agent has repeated the request or made another request since the assignment was made.
    """
    owner = Owner(assignment_id, agent_id, version)
    return run.once(
        lambda transaction: release_unclaimed(transaction, owner, lease_expires_at=lease_expires_at)
    )
