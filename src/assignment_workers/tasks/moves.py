"""Tasks by which agents accept, renew and end their assignments."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment.answers import (
    Code,
    CommandAnswer,
    FinishAnswer,
    Refused,
    Unavailable,
)
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import (
    Accept,
    Close,
    Complete,
    Defer,
    Move,
    Owner,
    Release,
    Renew,
    Skip,
)
from assignment_workers.assignment.lifecycle.unclaimed import release_unclaimed
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.settings import Settings
from assignment_workers.tasks.arguments import (
    MANY,
    AgentId,
    Notes,
    Rest,
    Version,
    Why,
    Word,
)
from assignment_workers.tasks.task_handler import RETRY_SECONDS, HandledTask, one_line

log = structlog.get_logger()


class FinishBody(BaseModel):
    """One move of a batch message: the end, acceptance or renewal of an assignment."""

    model_config = ConfigDict(extra="forbid")

    move: Literal["complete", "skip", "defer", "close", "release", "accept", "renew"]
    assignment_id: UUID
    agent_id: AgentId
    version: Version | None = None
    outcome: Word | None = None
    notes: Notes | None = None
    callback_at: AwareDatetime | None = None
    until: AwareDatetime | None = None
    seconds: Rest | None = None
    why: Why | None = None

    def meant(self, settings: Settings) -> Move:
        """Return the requested move. Raises `ValueError` if it lacks a value that it needs."""
        owner = Owner(self.assignment_id, self.agent_id, self.version)
        match self.move:
            case "complete":
                return Complete(
                    owner,
                    self.outcome or "",
                    self.notes,
                    self.callback_at,
                    settings.callback_retry,
                )
            case "skip":
                return Skip(owner, settings.skip_everyone)
            case "defer":
                rest = None if self.seconds is None else timedelta(seconds=self.seconds)
                return Defer(owner, settings.defer_maximum, self.until, rest, self.why)
            case "close":
                if self.why is None:
                    raise ValueError("why: closing needs a reason")
                return Close(owner, self.why)
            case "release":
                return Release(owner)
            case "accept":
                return Accept(owner, settings.lease)
            case "renew":
                return Renew(owner, settings.lease)


_FINISH = TypeAdapter(FinishBody)


def finish_many(
    task: HandledTask, requests: Annotated[list[Any], Field(max_length=MANY)]
) -> list[Any]:
    """Make many moves (completions, skips and the like) in one transaction, in order; answer each.

    If the transaction fails for a reason that no retry mends, each move is made in a transaction of
    its own, and only the failing move is stored as a dead letter.
    """
    read: list[Move | Refused] = []
    for each in requests:
        try:
            read.append(_FINISH.validate_python(each).meant(task.of.settings))
        except ValidationError as error:
            read.append(Refused(code=Code.MALFORMED, reason=one_line(error)))
        except ValueError as error:
            read.append(Refused(code=Code.MALFORMED, reason=str(error)))
    moves = [each for each in read if not isinstance(each, Refused)]
    outcomes = task.of.outcomes
    try:
        # A process that ended may have stored the answer of one move under the name of its part.
        found: Any = task.once(
            lambda transaction: finish(
                transaction, moves, outcomes=outcomes, settings=task.settings_in(transaction)
            )
        )
        answers = iter(found if isinstance(found, list) else [found] * len(moves))
    except DBAPIError:
        return [
            _alone(task, said, each, part)
            for part, (said, each) in enumerate(zip(requests, read, strict=True))
        ]
    return [each if isinstance(each, Refused) else next(answers) for each in read]


def _alone(task: HandledTask, said: object, move: Move | Refused, part: int) -> FinishAnswer:
    if isinstance(move, Refused):
        return move
    try:
        return _made(task, move, part)
    except DatabaseUnavailable as error:
        log.warning("unavailable", reason=str(error))
        return Unavailable(retry_after=RETRY_SECONDS, reason=error.general)
    except DBAPIError as error:
        task.store_dead_letter(([said],), {}, f"{type(error).__name__}: {error}")
        reason = "internal error; the message was stored as a dead letter"
        return Unavailable(retry_after=RETRY_SECONDS, reason=reason)


def _made(task: HandledTask, move: Move, part: int | None = None) -> FinishAnswer:
    """Make one move in a transaction of its own and return its answer.

    `part`: the number of the move in its batch message; None for a message of one move.
    """
    outcomes = task.of.outcomes
    found: Any = task.once(
        lambda transaction: finish(
            transaction, [move], outcomes=outcomes, settings=task.settings_in(transaction)
        )[0],
        part=part,
    )
    answer: FinishAnswer = found[0] if isinstance(found, list) else found
    return answer


def complete(
    task: HandledTask,
    assignment_id: UUID,
    agent_id: AgentId,
    outcome: Word,
    version: Version | None = None,
    notes: Notes | None = None,
    callback_at: AwareDatetime | None = None,
) -> FinishAnswer:
    """End the agent's assignment with the outcome of the call."""
    owner = Owner(assignment_id, agent_id, version)
    retry = task.of.settings.callback_retry
    return _made(task, Complete(owner, outcome, notes, callback_at, retry))


def skip(
    task: HandledTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """End the agent's assignment, because the agent does not want to call this user now."""
    owner = Owner(assignment_id, agent_id, version)
    return _made(task, Skip(owner, task.of.settings.skip_everyone))


def defer(
    task: HandledTask,
    assignment_id: UUID,
    agent_id: AgentId,
    version: Version | None = None,
    until: AwareDatetime | None = None,
    seconds: Rest | None = None,
    why: Why | None = None,
) -> FinishAnswer:
    """End the agent's assignment; offer the user to nobody before `until`, or for `seconds`."""
    owner = Owner(assignment_id, agent_id, version)
    rest = None if seconds is None else timedelta(seconds=seconds)
    return _made(task, Defer(owner, task.of.settings.defer_maximum, until, rest, why))


def close(
    task: HandledTask,
    assignment_id: UUID,
    agent_id: AgentId,
    why: Why,
    version: Version | None = None,
) -> FinishAnswer:
    """End the agent's assignment and close its dialer queue for the user.

    An operator can lift the closure.
    """
    owner = Owner(assignment_id, agent_id, version)
    return _made(task, Close(owner, why))


def accept(
    task: HandledTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """Accept the offer: the agent works on it from now on."""
    owner = Owner(assignment_id, agent_id, version)
    return _made(task, Accept(owner, task.of.settings.lease))


def release(
    task: HandledTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """End the agent's assignment: the user is claimable again at once, at the same position."""
    owner = Owner(assignment_id, agent_id, version)
    return _made(task, Release(owner))


def renew(
    task: HandledTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """Renew the lease of the agent's assignment, because the agent is still working on it."""
    owner = Owner(assignment_id, agent_id, version)
    return _made(task, Renew(owner, task.of.settings.lease))


def release_if_unclaimed(
    task: HandledTask,
    assignment_id: UUID,
    agent_id: AgentId,
    version: Version,
    lease_expires_at: AwareDatetime,
) -> CommandAnswer:
    """Release an assignment whose caller got no answer, unless its agent has asked again.

    An assignment that was renewed or finished since stays as it is.
    """
    owner = Owner(assignment_id, agent_id, version)
    return task.once(
        lambda transaction: release_unclaimed(transaction, owner, lease_expires_at=lease_expires_at)
    )
