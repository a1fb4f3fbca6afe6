"""Tasks of the assignment queue: every change to the set of claimable users, in order."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from typing import Annotated
from uuid import UUID

import structlog
from kombu.exceptions import OperationalError
from pydantic import AwareDatetime, Field
from redis.exceptions import ResponseError
from sqlalchemy import select, update

from assignment_workers.assignment import settings_changes, suppression_lists
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
from assignment_workers.assignment.claims.reassign import reassign, take_back
from assignment_workers.assignment.generations.drain import drain
from assignment_workers.assignment.generations.pause import pause, resume
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.moves import VERBS
from assignment_workers.assignment.operational_settings import (
    CHANGED_AT_MOST,
    SettingChange,
    changes_rules,
)
from assignment_workers.assignment.pools import convert, discover
from assignment_workers.assignment.reports.doctor import repair
from assignment_workers.assignment.suppressions import (
    SuppressionOptions,
    do_not_contact,
    lift,
    subject,
)
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.client.commands import MAINTENANCE
from assignment_workers.errors import no_queue
from assignment_workers.schema.tables import AgentStatus, LaneTerm, SequencerSign, SuppressionKind
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
from assignment_workers.tasks.moves import finish_many, operation_of, release_if_unclaimed
from assignment_workers.tasks.requests import request, request_many
from assignment_workers.tasks.task_handler import App, TaskRun, task_handler

log = structlog.get_logger()


def expire_lapsed(run: TaskRun) -> CommandAnswer:
    """End each offer that was not accepted in time, and each assignment whose lease has ended.

    When a heartbeat arrives, it is stored and extends no lease. This task extends the lease later.
    If the agent of an accepted assignment has sent a heartbeat since the acceptance, a new lease is
    counted from the agent's last heartbeat. If the new lease has not ended, it is stored and the
    assignment continues; otherwise the assignment ends. A heartbeat does not extend an offer.
    """

    def operation(transaction: FencedTransaction) -> Done:
        lapsed = expire(transaction, settings=run.settings_in(transaction))
        return Done(counts={"expired": len(lapsed.ended), "kept": len(lapsed.kept)})

    return run.once(operation)


def state_of_agent(
    run: TaskRun,
    agent_id: AgentId,
    state: AgentStatus,
    by: Word | None = None,
    why: Why | None = None,
) -> StateAnswer:
    """Set the agent's status: available, on_call, wrap_up, break or offline."""
    return run.once(
        lambda transaction: agent_status.state(
            transaction, agent_id, state, by=by, why=why, sent_by=run.sender()
        ),
        subject=f"state of agent {agent_id}",
    )


def end_sessions(
    run: TaskRun,
    agent_ids: Annotated[list[AgentId], Field(max_length=agent_status.ENDED_AT_ONCE)],
    silent_at: AwareDatetime,
) -> CommandAnswer:
    """End the sessions of the agents `agent_ids` by setting them offline.

    `silent_at`: the time at which a maintenance job found that these agents had shown no sign of
    life for hours. An agent who has shown one since, such as a heartbeat or a request, keeps the
    session. So does an agent who has an assignment now.
    """
    return run.once(
        lambda transaction: agent_status.end_sessions(transaction, agent_ids, silent_at=silent_at)
    )


def publish_generation(run: TaskRun, generation_id: GenerationId) -> CommandAnswer:
    """Publish a built generation: claims now take its dialer queue's users from this generation."""
    return run.once(lambda transaction: publish(transaction, generation_id))


def take_back_hold(run: TaskRun, assignment_id: UUID, by: Word, why: Why) -> FinishAnswer:
    """End an agent's assignment at an operator's request."""
    return run.once(lambda transaction: take_back(transaction, assignment_id, by=by, why=why))


def reassign_hold(
    run: TaskRun, assignment_id: UUID, agent_id: AgentId, by: Word, why: Why
) -> RequestAnswer:
    """Assign the user of an assignment to another agent at an operator's request."""

    def operation(transaction: FencedTransaction) -> RequestAnswer:
        settings = run.settings_in(transaction)
        return reassign(
            transaction,
            assignment_id,
            agent_id,
            by=by,
            why=why,
            policies=policies_of(run.of.dialer, settings),
            settings=settings,
        )

    return run.once(operation)


def pause_queue(
    run: TaskRun, queue: Word, by: Word | None = None, why: Why | None = None
) -> CommandAnswer:
    """Stop handing out users from a dialer queue. `by` and `why`: the operator and the reason."""
    return run.once(
        lambda transaction: pause(transaction, queue, by=by, why=why), subject=f"pause of {queue}"
    )


def resume_queue(
    run: TaskRun, queue: Word, by: Word | None = None, why: Why | None = None
) -> CommandAnswer:
    """End the pause of a dialer queue, so that users are handed out from it again.

    `by` and `why`: the operator and the reason. A dialer queue that is not paused stays as it is.
    """
    return run.once(
        lambda transaction: resume(transaction, queue, by=by, why=why), subject=f"pause of {queue}"
    )


def drain_queue(run: TaskRun, queue: Word, by: Word) -> CommandAnswer:
    """Remove users whom no agent holds from a dialer queue: one step of a drain.

    One command removes a limited number of users, and its answer has that number. An operator's
    program repeats the command until no user remains. A later build of the dialer queue adds
    eligible users again.
    """
    return run.once(
        lambda transaction: drain(transaction, queue, by=by), subject=f"draining of {queue}"
    )


def remove_converted(
    run: TaskRun,
    queue: Word,
    user_ids: Annotated[list[UserId], Field(max_length=convert.AT_A_TIME)],
) -> CommandAnswer:
    """Remove from the dialer queue `queue` those of `user_ids` who have reached its goal.

    A goal is for example that the user has signed. Users whom an agent holds are not changed.
    """
    queues = run.of.dialer.policies
    if queue not in queues:
        return Refused(
            code=Code.UNKNOWN_QUEUE,
            reason=no_queue(queue, queues),
        )

    def operation(transaction: FencedTransaction) -> CommandAnswer:
        policies = policies_of(transaction.dialer, run.settings_in(transaction))
        return convert.remove_converted(transaction, policies[queue], user_ids, policies=policies)

    return run.once(operation)


def place_users(
    run: TaskRun, user_ids: Annotated[list[UserId], Field(max_length=discover.AT_A_TIME)]
) -> CommandAnswer:
    """Move each user of `user_ids` to the dialer queue where the CRM's facts now place the user.

    Users who are there already, and users whom an agent holds, are not moved.
    """
    return run.once(
        lambda transaction: discover.assign_to_queue(
            transaction, user_ids, policies_of(transaction.dialer, run.settings_in(transaction))
        )
    )


def change_settings(
    run: TaskRun,
    changes: Annotated[list[SettingChange], Field(min_length=1, max_length=CHANGED_AT_MOST)],
    by: Word,
    why: Why,
) -> CommandAnswer:
    """Store these changes of operational settings as one new version, in force from its commit on.

    If a changed setting decides who may be called, the dialer queues are then built again.
    """
    answer = run.once(
        lambda transaction: settings_changes.change(
            transaction, changes, by=by, why=why, given=run.of.settings
        ),
        subject="settings",
    )
    if isinstance(answer, Done) and changes_rules([each.name for each in changes]):
        _rebuild(run)
    return answer


def _rebuild(run: TaskRun) -> None:
    """Request a build of every dialer queue.

    A request that cannot be sent is only logged: the next hourly build has the same effect.
    """
    asked = {"trigger": "settings"}
    try:
        run.of.send_task(
            "queue.regenerate", kwargs=asked, queue=MAINTENANCE, ignore_result=True, retry=False
        )
    except (OperationalError, ResponseError) as error:
        log.warning("rebuild_not_requested", reason=str(error))


def suppress(
    run: TaskRun,
    reason: Notes,
    by: Word,
    user_id: UserId | None = None,
    phone: Word | None = None,
    queue: Word | None = None,
    expires_at: AwareDatetime | None = None,
    source: Word | None = None,
    raw: bool = False,  # noqa: FBT001, FBT002 - named in the message
) -> CommandAnswer:
    """Suppress a user, or every user with the number `phone`: agents do not get such a user.

    `queue`: the only dialer queue to which the suppression applies; None: it applies to every one.
    `expires_at`: the end of the suppression; None: it has no end. `source`: its origin, such as a
    public register. `raw`: True to accept a `phone` that cannot be read as a phone number.
    """
    entry = SuppressionOptions(queue, expires_at, source, raw)
    reader = numbers_of(run.of.settings).reader
    return run.once(
        lambda transaction: do_not_contact(
            transaction, user=user_id, phone=phone, reason=reason, by=by, entry=entry, reader=reader
        ),
        subject=subject(
            SuppressionKind.DO_NOT_CONTACT, reader, user=user_id, phone=phone, queue=queue
        ),
    )


def flip_list(run: TaskRun, list_id: ListId, by: Word, why: Why) -> CommandAnswer:
    """Put a loaded list of suppressed numbers in force, and retire any lists that it replaces."""
    return run.once(
        lambda transaction: suppression_lists.flip(transaction, list_id, by=by, why=why)
    )


def drop_list(run: TaskRun, name: Word, by: Word, why: Why) -> CommandAnswer:
    """Retire the named list of suppressed numbers: its numbers may be called again."""
    return run.once(lambda transaction: suppression_lists.drop(transaction, name, by=by, why=why))


def lift_suppression(
    run: TaskRun,
    kind: SuppressionKind,
    by: Word,
    why: Notes,
    user_id: UserId | None = None,
    phone: Word | None = None,
    queue: Word | None = None,
) -> CommandAnswer:
    """Lift a suppression (ban on calls) of a user or of a phone number.

    `kind`: quarantine, do_not_contact or closed.
    """
    reader = numbers_of(run.of.settings).reader
    return run.once(
        lambda transaction: lift(
            transaction, kind, user=user_id, phone=phone, queue=queue, by=by, why=why, reader=reader
        ),
        subject=subject(kind, reader, user=user_id, phone=phone, queue=queue),
    )


def repair_entries(run: TaskRun) -> CommandAnswer:
    """Correct the entries of dialer queues that contradict the assignments (`doctor --repair`).

    An entry is a user's row in a generation. Entries of users whom an agent holds are marked as
    held; other entries that are marked as held become ready. No assignment changes.
    """
    return run.once(repair)


def probe(run: TaskRun, sent_at: AwareDatetime | None = None) -> CommandAnswer:
    """Record that the leading sequencer is alive, and how long this message was in the queue.

    The command `status` shows both. The probe also publishes the difference between the database's
    clock and the Redis clock, from which clients compute the deadlines of their requests.
    """
    read: list[tuple[datetime, float]] = []

    def transaction(transaction: FencedTransaction) -> Done:
        read.append((transaction.now, monotonic()))
        return _probe(transaction, sent_at)

    done = run.runner.run(transaction)  # only a measurement, every other second: not `once`
    run.of.sequencer.probe_came()
    tell_time(run.of.results, *read[-1])
    return done


def _probe(transaction: FencedTransaction, sent_at: datetime | None) -> Done:
    seconds = (datetime.now(UTC) - sent_at).total_seconds() if sent_at else None
    transaction.connection.execute(
        update(SequencerSign)
        .where(
            SequencerSign.lane.in_(select(LaneTerm.lane).where(LaneTerm.term == transaction.term))
        )
        .values(
            last_turn_at=transaction.now, last_probe_at=transaction.now, last_probe_seconds=seconds
        )
    )
    return Done()


def register(app: App) -> None:
    """Add the tasks of the assignment queue to `app`."""
    task_handler(app, "assignment.request", request)
    task_handler(app, "assignment.request_many", request_many)
    task_handler(app, "assignment.finish_many", finish_many)
    for verb in VERBS.values():
        task_handler(app, f"assignment.{verb.name}", operation_of(verb))
    task_handler(app, "assignment.release_unclaimed", release_if_unclaimed)
    task_handler(app, "assignment.take_back", take_back_hold)
    task_handler(app, "assignment.reassign", reassign_hold)
    task_handler(app, "assignment.expire", expire_lapsed, routine=True)
    # Sent every few seconds: Flower would list little else.
    task_handler(app, "assignment.probe", probe, in_flower=False)
    task_handler(app, "agent.state", state_of_agent)
    task_handler(app, "agent.end_sessions", end_sessions)
    task_handler(app, "generation.publish", publish_generation)
    task_handler(app, "queue.pause", pause_queue)
    task_handler(app, "queue.resume", resume_queue)
    task_handler(app, "queue.drain", drain_queue)
    task_handler(app, "queue.remove_converted", remove_converted)
    task_handler(app, "queue.repair", repair_entries)
    task_handler(app, "assignment.change_settings", change_settings)
    task_handler(app, "user.place", place_users)
    task_handler(app, "user.suppress", suppress)
    task_handler(app, "user.lift_suppression", lift_suppression)
    task_handler(app, "user.flip_suppression_list", flip_list)
    task_handler(app, "user.drop_suppression_list", drop_list)
    # Their names in 0.1.0, until 0.3.0.
    task_handler(app, "user.bar", suppress)
    task_handler(app, "user.lift_bar", lift_suppression)
