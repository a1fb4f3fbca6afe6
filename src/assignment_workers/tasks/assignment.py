"""Tasks of the assignment queue: whatever changes who may be handed out, in order."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, Field
from sqlalchemy import select, update

from assignment_workers.assignment import agents, convert, discover, suppression_lists
from assignment_workers.assignment.answers import (
    Code,
    CommandAnswer,
    Done,
    FinishAnswer,
    Refused,
    RequestAnswer,
    StateAnswer,
)
from assignment_workers.assignment.calling import numbers_of, policies_of
from assignment_workers.assignment.doctor import repair
from assignment_workers.assignment.drain import drain
from assignment_workers.assignment.expire import expire
from assignment_workers.assignment.pause import pause, resume
from assignment_workers.assignment.publish import publish
from assignment_workers.assignment.reassign import reassign, take_back
from assignment_workers.assignment.suppressions import Entry, do_not_contact, lift, subject
from assignment_workers.assignment.turn import Turn
from assignment_workers.schema.tables import AgentStates, Sequencer, SequencerSign, SuppressionKind
from assignment_workers.sequencer.timekeeping import tell_time
from assignment_workers.tasks.arguments import (
    AgentId,
    GenerationId,
    ListId,
    Notes,
    UserId,
    Why,
    Word,
)
from assignment_workers.tasks.door import App, DoorTask, door
from assignment_workers.tasks.moves import (
    accept,
    close,
    complete,
    defer,
    finish_many,
    release,
    release_if_unclaimed,
    renew,
    skip,
)
from assignment_workers.tasks.requests import request, request_many


def expire_lapsed(task: DoorTask) -> CommandAnswer:
    """End every hold whose lease has lapsed."""

    def operation(turn: Turn) -> Done:
        lapsed = expire(turn, settings=task.of.settings)
        return Done(counts={"expired": len(lapsed.ended), "kept": len(lapsed.kept)})

    return task.once(operation)


def state_of_agent(
    task: DoorTask,
    agent_id: AgentId,
    state: AgentStates,
    by: Word | None = None,
    why: Why | None = None,
) -> StateAnswer:
    """The agent is about this from now on: available, on_call, wrap_up, break or offline."""
    return task.once(
        lambda turn: agents.state(turn, agent_id, state, by=by, why=why),
        subject=f"state of agent {agent_id}",
    )


def end_sessions(
    task: DoorTask,
    agent_ids: Annotated[list[AgentId], Field(max_length=agents.ENDED_AT_ONCE)],
    silent_at: AwareDatetime,
) -> CommandAnswer:
    """End the sessions of those of these agents who are silent still."""
    return task.once(lambda turn: agents.end_sessions(turn, agent_ids, silent_at=silent_at))


def publish_generation(task: DoorTask, generation_id: GenerationId) -> CommandAnswer:
    """Make a built generation the one its dialer queue hands out from."""
    return task.once(lambda turn: publish(turn, generation_id))


def take_back_hold(task: DoorTask, assignment_id: UUID, by: Word, why: Why) -> FinishAnswer:
    """End a hold for its agent, as an operator asks."""
    return task.once(lambda turn: take_back(turn, assignment_id, by=by, why=why))


def reassign_hold(
    task: DoorTask, assignment_id: UUID, agent_id: AgentId, by: Word, why: Why
) -> RequestAnswer:
    """Give the user of a hold to another agent, as an operator asks."""
    return task.once(
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
    return task.once(lambda turn: pause(turn, queue, by=by, why=why), subject=f"pause of {queue}")


def resume_queue(
    task: DoorTask, queue: Word, by: Word | None = None, why: Why | None = None
) -> CommandAnswer:
    """Hand out users from a dialer queue again."""
    return task.once(lambda turn: resume(turn, queue, by=by, why=why), subject=f"pause of {queue}")


def drain_queue(task: DoorTask, queue: Word, by: Word) -> CommandAnswer:
    """Take some of who is not held out of a dialer queue, until the next build."""
    return task.once(lambda turn: drain(turn, queue, by=by), subject=f"draining of {queue}")


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
    return task.once(
        lambda turn: convert.remove_converted(turn, policy, user_ids, policies=policies)
    )


def place_users(
    task: DoorTask, user_ids: Annotated[list[UserId], Field(max_length=discover.AT_A_TIME)]
) -> CommandAnswer:
    """Put those users who are out of place into the pool where they belong."""
    policies = policies_of(task.of.settings)
    return task.once(lambda turn: discover.place(turn, user_ids, policies))


def suppress(
    task: DoorTask,
    reason: Notes,
    by: Word,
    user_id: UserId | None = None,
    phone: Word | None = None,
    queue: Word | None = None,
    expires_at: AwareDatetime | None = None,
    source: Word | None = None,
    raw: bool = False,  # noqa: FBT001, FBT002 - named in the message
) -> CommandAnswer:
    """Offer a user, or every user with a phone number, to nobody."""
    entry = Entry(queue, expires_at, source, raw)
    reader = numbers_of(task.of.settings).reader
    return task.once(
        lambda turn: do_not_contact(
            turn, user=user_id, phone=phone, reason=reason, by=by, entry=entry, reader=reader
        ),
        subject=subject(
            SuppressionKind.DO_NOT_CONTACT, reader, user=user_id, phone=phone, queue=queue
        ),
    )


def flip_list(task: DoorTask, list_id: ListId, by: Word, why: Why) -> CommandAnswer:
    """Make a loaded list of numbers stand, and retire what it replaces."""
    return task.once(lambda turn: suppression_lists.flip(turn, list_id, by=by, why=why))


def drop_list(task: DoorTask, name: Word, by: Word, why: Why) -> CommandAnswer:
    """Let a named list of numbers count no more."""
    return task.once(lambda turn: suppression_lists.drop(turn, name, by=by, why=why))


def lift_suppression(
    task: DoorTask,
    kind: SuppressionKind,
    by: Word,
    why: Notes,
    user_id: UserId | None = None,
    phone: Word | None = None,
    queue: Word | None = None,
) -> CommandAnswer:
    """Let a user be offered again who was set aside, was not to be contacted, or was closed."""
    reader = numbers_of(task.of.settings).reader
    return task.once(
        lambda turn: lift(
            turn, kind, user=user_id, phone=phone, queue=queue, by=by, why=why, reader=reader
        ),
        subject=subject(kind, reader, user=user_id, phone=phone, queue=queue),
    )


def repair_entries(task: DoorTask) -> CommandAnswer:
    """Bring the entries in line with the holds, as `doctor --repair` asks."""
    return task.once(repair)


def probe(task: DoorTask, sent_at: AwareDatetime | None = None) -> CommandAnswer:
    """Travel the line: its turn is a sign of life, and how long it took is a figure of `status`.

    Its time is told to clients, who set their deadlines by it.
    """
    read: list[tuple[datetime, float]] = []

    def turn(turn: Turn) -> Done:
        read.append((turn.now, monotonic()))
        return _probe(turn, sent_at)

    done = task.line.run(turn)  # it only measures, and comes every other second
    task.of.sequencer.probe_came()
    tell_time(task.of.results, *read[-1])
    return done


def _probe(turn: Turn, sent_at: datetime | None) -> Done:
    seconds = (datetime.now(UTC) - sent_at).total_seconds() if sent_at else None
    turn.connection.execute(
        update(SequencerSign)
        .where(SequencerSign.lane.in_(select(Sequencer.lane).where(Sequencer.term == turn.term)))
        .values(last_turn_at=turn.now, last_probe_at=turn.now, last_probe_seconds=seconds)
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
    door(app, "user.suppress", suppress)
    door(app, "user.lift_suppression", lift_suppression)
    door(app, "user.flip_suppression_list", flip_list)
    door(app, "user.drop_suppression_list", drop_list)
    # Their names in 0.1.0, until 0.3.0.
    door(app, "user.bar", suppress)
    door(app, "user.lift_bar", lift_suppression)
