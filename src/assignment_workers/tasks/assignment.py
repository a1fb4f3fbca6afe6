"""Tasks of the assignment queue: whatever changes who may be handed out, in order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment import agents, convert, discover, finish
from assignment_workers.assignment.answers import (
    Code,
    CommandAnswer,
    Done,
    FinishAnswer,
    Refused,
    RequestAnswer,
    StateAnswer,
    Unavailable,
)
from assignment_workers.assignment.bars import do_not_contact, lift
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.claim import claim
from assignment_workers.assignment.doctor import repair
from assignment_workers.assignment.drain import drain
from assignment_workers.assignment.expire import expire
from assignment_workers.assignment.pause import pause, resume
from assignment_workers.assignment.publish import publish
from assignment_workers.assignment.reassign import reassign, take_back
from assignment_workers.assignment.request import Request
from assignment_workers.assignment.turn import Turn
from assignment_workers.assignment.unclaimed import release_unclaimed
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.schema.tables import AgentStates, BarKind, Sequencer
from assignment_workers.sequencer.line import Line
from assignment_workers.sequencer.timekeeping import tell_time
from assignment_workers.settings import Settings
from assignment_workers.tasks.door import RETRY_SECONDS, App, DoorTask, door, one_line

AgentId = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
UserId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
GenerationId = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
Version = Annotated[int, Field(strict=True, ge=1)]
RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Word = Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]
Why = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
Rest = Annotated[int, Field(strict=True, ge=1, le=10 * 365 * 86_400)]
Notes = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")]

MANY = 1_000
"""Requests that one message may carry."""


class AskBody(BaseModel):
    """One request as a message says it."""

    model_config = ConfigDict(extra="forbid")

    agent_id: AgentId
    request_id: RequestId
    queue: Word | None = None
    deadline: AwareDatetime | None = None
    sent_at: AwareDatetime | None = None

    def asked(self) -> Request:
        """The request that is meant."""
        return Request(
            agent_id=self.agent_id,
            request_id=self.request_id,
            queue=self.queue,
            deadline=self.deadline,
            sent_at=self.sent_at,
        )


def request(
    task: DoorTask,
    agent_id: AgentId,
    queue: Word | None = None,
    request_id: RequestId | None = None,
    deadline: AwareDatetime | None = None,
    sent_at: AwareDatetime | None = None,
) -> RequestAnswer:
    """Hand the agent the best user they may have; without a request id the task's own is it."""
    asked = Request(agent_id, request_id or str(task.request.id), queue, deadline, sent_at)
    return answer(task.line, [asked], task.of.settings)[0]


def request_many(
    task: DoorTask, requests: Annotated[list[Any], Field(max_length=MANY)]
) -> list[Any]:
    """Answer many requests in one transaction, in their order; a malformed one is refused alone."""
    read: list[Request | Refused] = []
    for each in requests:
        try:
            read.append(_ASK.validate_python(each).asked())
        except ValidationError as error:
            read.append(Refused(code=Code.MALFORMED, reason=one_line(error)))
    asked = [each for each in read if isinstance(each, Request)]
    answers = iter(answer(task.line, asked, task.of.settings))
    return [next(answers) if isinstance(each, Request) else each for each in read]


_ASK = TypeAdapter(AskBody)


def answer(line: Line, requests: Sequence[Request], settings: Settings) -> list[RequestAnswer]:
    """Each request's answer, in their order, in as few turns as it takes.

    Turn after turn where so many ineligible entries had to be taken out that one transaction would
    have been long; an answer found in an earlier turn is committed and stands.
    """
    answers: list[RequestAnswer | None] = [None] * len(requests)
    while unanswered := [place for place, given in enumerate(answers) if given is None]:
        asked = [requests[place] for place in unanswered]
        deadlines = [each.deadline for each in asked]
        until = max((each for each in deadlines if each), default=None) if all(deadlines) else None

        def turn(turn: Turn, asked: list[Request] = asked) -> list[RequestAnswer | None]:
            return claim(turn, asked, policies=policies_of(settings), settings=settings)

        try:
            given = line.run(turn, until=until)
        except DatabaseUnavailable as error:
            down = Unavailable(retry_after=RETRY_SECONDS, reason=str(error))
            return [each or down for each in answers]
        for place, each in zip(unanswered, given, strict=True):
            answers[place] = each
    return [each for each in answers if each is not None]


class FinishBody(BaseModel):
    """One complete, skip, release or renew as a message of many says it."""

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

    def meant(self, settings: Settings) -> finish.Move:
        """The move that is meant. Raises `ValueError` for one that lacks what it needs."""
        owner = finish.Owner(self.assignment_id, self.agent_id, self.version)
        match self.move:
            case "complete":
                return finish.Complete(
                    owner,
                    self.outcome or "",
                    self.notes,
                    self.callback_at,
                    settings.callback_retry,
                )
            case "skip":
                return finish.Skip(owner, settings.skip_everyone)
            case "defer":
                rest = None if self.seconds is None else timedelta(seconds=self.seconds)
                return finish.Defer(owner, settings.defer_maximum, self.until, rest, self.why)
            case "close":
                if self.why is None:
                    raise ValueError("why: closing needs a reason")
                return finish.Close(owner, self.why)
            case "release":
                return finish.Release(owner)
            case "accept":
                return finish.Accept(owner, settings.lease)
            case "renew":
                return finish.Renew(owner, settings.lease)


_FINISH = TypeAdapter(FinishBody)


def finish_many(
    task: DoorTask, requests: Annotated[list[Any], Field(max_length=MANY)]
) -> list[Any]:
    """End or renew many holds in one transaction, in their order; each is answered by itself.

    One that fails for a reason that no retry mends takes none of the others with it: then each has
    a transaction of its own, and the failure of the one is kept as a dead letter.
    """
    read: list[finish.Move | Refused] = []
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
        answers = iter(task.line.run(lambda turn: finish.finish(turn, moves, outcomes=outcomes)))
    except DBAPIError:
        return [_alone(task, said, each) for said, each in zip(requests, read, strict=True)]
    return [each if isinstance(each, Refused) else next(answers) for each in read]


def _alone(task: DoorTask, said: object, move: finish.Move | Refused) -> FinishAnswer:
    if isinstance(move, Refused):
        return move
    outcomes = task.of.outcomes
    try:
        return task.line.run(lambda turn: finish.finish(turn, [move], outcomes=outcomes)[0])
    except DatabaseUnavailable as error:
        return Unavailable(retry_after=RETRY_SECONDS, reason=str(error))
    except DBAPIError as error:
        task.bury(([said],), {}, f"{type(error).__name__}: {error}")
        return Unavailable(retry_after=RETRY_SECONDS, reason="it failed, and is kept to be seen to")


def complete(
    task: DoorTask,
    assignment_id: UUID,
    agent_id: AgentId,
    outcome: Word,
    version: Version | None = None,
    notes: Notes | None = None,
    callback_at: AwareDatetime | None = None,
) -> FinishAnswer:
    """End the agent's hold with the outcome of the call."""
    owner = finish.Owner(assignment_id, agent_id, version)
    retry, outcomes = task.of.settings.callback_retry, task.of.outcomes
    move = finish.Complete(owner, outcome, notes, callback_at, retry)
    return task.line.run(lambda turn: finish.finish(turn, [move], outcomes=outcomes)[0])


def skip(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """End the agent's hold: not this user now."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(lambda turn: finish.skip(turn, owner, settings=task.of.settings))


def defer(
    task: DoorTask,
    assignment_id: UUID,
    agent_id: AgentId,
    version: Version | None = None,
    until: AwareDatetime | None = None,
    seconds: Rest | None = None,
    why: Why | None = None,
) -> FinishAnswer:
    """End the agent's hold: the user is offered to nobody before a time, or for so many seconds."""
    owner = finish.Owner(assignment_id, agent_id, version)
    rest = None if seconds is None else timedelta(seconds=seconds)
    return task.line.run(
        lambda turn: finish.defer(
            turn, owner, settings=task.of.settings, until=until, rest=rest, why=why
        )
    )


def close(
    task: DoorTask,
    assignment_id: UUID,
    agent_id: AgentId,
    why: Why,
    version: Version | None = None,
) -> FinishAnswer:
    """End the agent's hold: its dialer queue is closed for the user, until an operator lifts it."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(lambda turn: finish.close(turn, owner, why))


def accept(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """The agent takes the offer up: it is work from now on."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(lambda turn: finish.accept(turn, owner, settings=task.of.settings))


def release(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """End the agent's hold: the user is claimable at once, where they were."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(lambda turn: finish.release(turn, owner))


def release_if_unclaimed(
    task: DoorTask,
    assignment_id: UUID,
    agent_id: AgentId,
    version: Version,
    lease_expires_at: AwareDatetime,
) -> CommandAnswer:
    """End a hold that nobody was told of, unless its agent has shown up meanwhile."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(
        lambda turn: release_unclaimed(turn, owner, lease_expires_at=lease_expires_at)
    )


def renew(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, version: Version | None = None
) -> FinishAnswer:
    """The agent is still at it: the lease runs anew."""
    owner = finish.Owner(assignment_id, agent_id, version)
    return task.line.run(lambda turn: finish.renew(turn, owner, settings=task.of.settings))


def expire_lapsed(task: DoorTask) -> CommandAnswer:
    """End every hold whose lease has lapsed."""
    lapsed = task.line.run(lambda turn: expire(turn, settings=task.of.settings))
    return Done(counts={"expired": len(lapsed.ended), "kept": len(lapsed.kept)})


def state_of_agent(
    task: DoorTask,
    agent_id: AgentId,
    state: AgentStates,
    by: Word | None = None,
    why: Why | None = None,
) -> StateAnswer:
    """The agent is about this from now on: available, on_call, wrap_up, break or offline."""
    return task.line.run(lambda turn: agents.state(turn, agent_id, state, by=by, why=why))


def end_sessions(
    task: DoorTask,
    agent_ids: Annotated[list[AgentId], Field(max_length=agents.ENDED_AT_ONCE)],
    silent_at: AwareDatetime,
) -> CommandAnswer:
    """End the sessions of those of these agents who are silent still."""
    return task.line.run(lambda turn: agents.end_sessions(turn, agent_ids, silent_at=silent_at))


def publish_generation(task: DoorTask, generation_id: GenerationId) -> CommandAnswer:
    """Make a built generation the one its dialer queue hands out from."""
    return task.line.run(lambda turn: publish(turn, generation_id))


def take_back_hold(task: DoorTask, assignment_id: UUID, by: Word, why: Why) -> FinishAnswer:
    """End a hold for its agent, as an operator asks."""
    return task.line.run(lambda turn: take_back(turn, assignment_id, by=by, why=why))


def reassign_hold(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, by: Word, why: Why
) -> RequestAnswer:
    """Give the user of a hold to another agent, as an operator asks."""
    return task.line.run(
        lambda turn: reassign(
            turn,
            assignment_id,
            agent_id,
            by=by,
            why=why,
            policies=policies_of(task.of.settings),
            settings=task.of.settings,
        )
    )


def pause_queue(
    task: DoorTask, queue: Word, by: Word | None = None, why: Why | None = None
) -> CommandAnswer:
    """Hand out nobody from a dialer queue."""
    return task.line.run(lambda turn: pause(turn, queue, by=by, why=why))


def resume_queue(
    task: DoorTask, queue: Word, by: Word | None = None, why: Why | None = None
) -> CommandAnswer:
    """Hand out users from a dialer queue again."""
    return task.line.run(lambda turn: resume(turn, queue, by=by, why=why))


def drain_queue(task: DoorTask, queue: Word, by: Word) -> CommandAnswer:
    """Take some of who is not held out of a dialer queue, until the next build."""
    return task.line.run(lambda turn: drain(turn, queue, by=by))


def remove_converted(
    task: DoorTask,
    queue: Word,
    user_ids: Annotated[list[UserId], Field(max_length=convert.AT_A_TIME)],
) -> CommandAnswer:
    """Take those users who have converted out of a dialer queue."""
    policies = policies_of(task.of.settings)
    policy = policies.get(queue)
    if policy is None:
        return Refused(
            code=Code.UNKNOWN_QUEUE,
            reason=f"no dialer queue {queue!r}; there are {', '.join(policies)}",
        )
    return task.line.run(
        lambda turn: convert.remove_converted(turn, policy, user_ids, policies=policies)
    )


def place_users(
    task: DoorTask, user_ids: Annotated[list[UserId], Field(max_length=discover.AT_A_TIME)]
) -> CommandAnswer:
    """Put those users who are out of place into the pool where they belong."""
    policies = policies_of(task.of.settings)
    return task.line.run(lambda turn: discover.place(turn, user_ids, policies))


def bar(
    task: DoorTask,
    reason: Notes,
    by: Word,
    user_id: UserId | None = None,
    phone: Word | None = None,
) -> CommandAnswer:
    """Offer a user, or whoever has a phone number, to nobody."""
    return task.line.run(
        lambda turn: do_not_contact(turn, user=user_id, phone=phone, reason=reason, by=by)
    )


def lift_bar(
    task: DoorTask,
    kind: BarKind,
    by: Word,
    why: Notes,
    user_id: UserId | None = None,
    phone: Word | None = None,
    queue: Word | None = None,
) -> CommandAnswer:
    """Let a user be offered again who was set aside, was not to be contacted, or was closed."""
    return task.line.run(
        lambda turn: lift(turn, kind, user=user_id, phone=phone, queue=queue, by=by, why=why)
    )


def repair_entries(task: DoorTask) -> CommandAnswer:
    """Bring the entries in line with the holds, as `doctor --repair` asks."""
    return task.line.run(repair)


def probe(task: DoorTask, sent_at: AwareDatetime | None = None) -> CommandAnswer:
    """Travel the line: its turn is a sign of life, and how long it took is a figure of `status`.

    Its time is told to clients, who set their deadlines by it.
    """
    read: list[tuple[datetime, float]] = []

    def turn(turn: Turn) -> Done:
        read.append((turn.now, monotonic()))
        return _probe(turn, sent_at)

    done = task.line.run(turn)
    tell_time(task.of.results, *read[-1])
    return done


def _probe(turn: Turn, sent_at: datetime | None) -> Done:
    seconds = (datetime.now(UTC) - sent_at).total_seconds() if sent_at else None
    turn.connection.execute(
        update(Sequencer)
        .where(Sequencer.term == turn.term)
        .values(probed_at=turn.now, probe_seconds=seconds)
    )
    return Done()


def register(app: App) -> None:
    """Add the tasks of the assignment queue to `app`."""
    door(app, "assignment.request", request)
    door(app, "assignment.request_many", request_many)
    door(app, "assignment.finish_many", finish_many)
    door(app, "assignment.complete", complete)
    door(app, "assignment.skip", skip)
    door(app, "assignment.defer", defer)
    door(app, "assignment.close", close)
    door(app, "assignment.accept", accept)
    door(app, "assignment.release", release)
    door(app, "assignment.release_unclaimed", release_if_unclaimed)
    door(app, "assignment.renew", renew)
    door(app, "assignment.take_back", take_back_hold)
    door(app, "assignment.reassign", reassign_hold)
    door(app, "assignment.expire", expire_lapsed)
    # One comes every few seconds: Flower would list little else.
    door(app, "assignment.probe", probe, in_flower=False)
    door(app, "agent.state", state_of_agent)
    door(app, "agent.end_sessions", end_sessions)
    door(app, "generation.publish", publish_generation)
    door(app, "queue.pause", pause_queue)
    door(app, "queue.resume", resume_queue)
    door(app, "queue.drain", drain_queue)
    door(app, "queue.remove_converted", remove_converted)
    door(app, "queue.repair", repair_entries)
    door(app, "user.place", place_users)
    door(app, "user.bar", bar)
    door(app, "user.lift_bar", lift_bar)
