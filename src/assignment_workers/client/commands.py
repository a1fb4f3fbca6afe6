"""The requests and commands to the sequencer and the maintenance workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from assignment_workers.assignment.lifecycle.verb import VerbCall
from assignment_workers.identity import UserId

ASSIGNMENT = "assignment"
MAINTENANCE = "maintenance"
HEARTBEATS = "heartbeats"
BY = "by"
"""The name of the argument that names the operator who sends a command."""
OFF_THE_LINE = frozenset({MAINTENANCE, HEARTBEATS})
"""The Celery queues that are not assignment queues. Their messages have no order and no lane."""


@dataclass(frozen=True)
class CommandCall:
    """A request or command to send. Sent twice to an assignment queue, it is carried out once."""

    task: str
    arguments: dict[str, Any]
    args: Sequence[Any] = ()
    celery_queue: str = ASSIGNMENT
    many: str | None = field(default=None, kw_only=True)
    """The name of a Celery task that takes several commands of this kind in one message.

    The commands are in the task's argument `requests`. None: no such task exists.
    """
    timeout: timedelta | None = field(default=None, kw_only=True)
    """The time that the caller waits for the answer.

    The arguments `sent_at` and `deadline` are computed from this time. None: neither is sent.
    """
    position: int | None = field(default=None, kw_only=True)
    """The command's number in the order of all operators' commands; None: it has no number.

    The database assigns the number.
    """
    sender: str | None = field(default=None, kw_only=True)
    """The name of the API token that sends the command for the agent, such as `token 0a12`.

    None: the agent's own token, or no token.
    """

    def at(self, position: int) -> CommandCall:
        """Return a copy of the command with this number in the order of all operators' commands."""
        return replace(self, position=position)

    def sent_by(self, sender: str) -> CommandCall:
        """Return a copy of the command that names `sender` as its sender.

        `sender`: the name of the API token that sends the command on behalf of the agent, such as
        `token 0a12`. A command that names an operator in its argument `by` is returned unchanged.
        """
        return self if self.arguments.get(BY) else replace(self, sender=sender)

    def said_by(self, ends: datetime) -> dict[str, Any]:
        """Return the arguments of the task message, for a caller who waits until `ends`.

        `ends` is a time of the database's clock. If the command has a `timeout`, the arguments
        include the `deadline`, which is `ends`, and `sent_at`, which is `timeout` before `ends`.
        """
        if self.timeout is None:
            return self.arguments
        times = {"sent_at": ends - self.timeout, "deadline": ends}
        return self.arguments | {name: time.isoformat() for name, time in times.items()}


def request(
    agent_id: int, queue: str | None, request_id: str, *, timeout: timedelta
) -> CommandCall:
    """Build a request for an agent's next user.

    `queue`: the dialer queue to take the user from; None: any that the agent may work on.
    `timeout`: the time that the caller waits for the answer, from the moment at which the caller
    hands the request to the client. Once this time has passed, the request assigns no user.
    """
    arguments = {"agent_id": agent_id, "queue": queue, "request_id": request_id}
    return CommandCall(
        "assignment.request", arguments, many="assignment.request_many", timeout=timeout
    )


def act(call: VerbCall) -> CommandCall:
    """Build the command for a verb, such as to complete an assignment or to skip a user."""
    return CommandCall(
        f"assignment.{call.verb}",
        {"move": call.verb, **call.arguments},
        many="assignment.finish_many",
    )


def state(agent_id: int, becomes: str, *, by: str | None, why: str | None) -> CommandCall:
    """Build the command that sets the agent's state."""
    arguments = {"agent_id": agent_id, "state": becomes, "by": by, "why": why}
    return CommandCall("agent.state", arguments)


def heartbeat(agent_id: int, *, timeout: timedelta) -> CommandCall:
    """Build the command that records that the agent is present now."""
    return CommandCall(
        "agent.heartbeats",
        {"agent_id": agent_id},
        celery_queue=HEARTBEATS,
        many="agent.heartbeats",
        timeout=timeout,
    )


def release_unclaimed(
    assignment_id: UUID | str, agent_id: int, *, version: int, lease_expires_at: datetime
) -> CommandCall:
    """Build the command that releases an assignment of which its agent was not informed.

    The agent requested a user, and the answer with the assignment was lost. `version` and
    `lease_expires_at`: the version of the assignment and the end of its lease, as they are in the
    lost answer.

    The command has no effect if the assignment has ended, or was changed or renewed since the
    claim. A change or renewal shows in another version or another end of the lease. The command
    also has no effect if the agent has repeated the request or made another one since the claim.
    """
    arguments = {
        "assignment_id": str(assignment_id),
        "agent_id": agent_id,
        "version": version,
        "lease_expires_at": lease_expires_at.isoformat(),
    }
    return CommandCall("assignment.release_unclaimed", arguments)


def pause(queue: str, by: str | None, why: str | None = None) -> CommandCall:
    """Build the command that pauses this dialer queue."""
    return CommandCall("queue.pause", {"queue": queue, "by": by, "why": why})


def resume(queue: str, by: str | None, why: str | None = None) -> CommandCall:
    """Build the command that resumes this dialer queue."""
    return CommandCall("queue.resume", {"queue": queue, "by": by, "why": why})


def take_back(assignment_id: UUID | str, by: str, why: str) -> CommandCall:
    """Build an operator's command that ends an assignment; the user is claimable at once."""
    return CommandCall(
        "assignment.take_back", {"assignment_id": str(assignment_id), "by": by, "why": why}
    )


def reassign(assignment_id: UUID | str, agent_id: int, by: str, why: str) -> CommandCall:
    """Build an operator's command that gives the user of an assignment to another agent."""
    arguments = {"assignment_id": str(assignment_id), "agent_id": agent_id, "by": by, "why": why}
    return CommandCall("assignment.reassign", arguments)


def drain(queue: str, by: str) -> CommandCall:
    """Build the command that removes, from this dialer queue, users whom no agent holds.

    One command removes a limited number of users; active assignments are not changed.
    """
    return CommandCall("queue.drain", {"queue": queue, "by": by})


def do_not_contact(
    user_id: UserId | None,
    phone: str | None,
    reason: str,
    by: str,
    *,
    queue: str | None = None,
    expires_at: datetime | None = None,
    source: str | None = None,
    raw: bool = False,
) -> CommandCall:
    """Build the command that forbids calls to a user or a phone number.

    `queue`: the one dialer queue in which calls are forbidden; None if they are forbidden in all.
    `source`: where the wish not to be called came from, such as a public register. `raw`: True to
    accept a `phone` that cannot be read as a phone number; the `phone` is then stored as text.
    """
    arguments = {"user_id": user_id, "phone": phone, "reason": reason, "by": by}
    more = {
        "queue": queue,
        "expires_at": expires_at.isoformat() if expires_at else None,
        "source": source,
        "raw": raw or None,
    }
    return CommandCall(
        "user.suppress", arguments | {k: v for k, v in more.items() if v is not None}
    )


def flip_list(list_id: int, why: str, by: str) -> CommandCall:
    """Build the command that puts in force a stored list of numbers that are not to be called."""
    return CommandCall("user.flip_suppression_list", {"list_id": list_id, "why": why, "by": by})


def drop_list(name: str, why: str, by: str) -> CommandCall:
    """Build the command that retires the suppression lists with this name.

    A suppression list has phone numbers that are not to be called. A retired list has no effect.
    """
    return CommandCall("user.drop_suppression_list", {"name": name, "why": why, "by": by})


def lift(
    kind: str,
    user_id: UserId | None,
    phone: str | None,
    why: str,
    by: str,
    *,
    queue: str | None = None,
) -> CommandCall:
    """Build the command that lifts a suppression: `do_not_contact`, `quarantine` or `closed`.

    `queue`: the dialer queue to which the suppression is limited; None if it is in force in all.
    """
    arguments = {"kind": kind, "user_id": user_id, "phone": phone, "why": why, "by": by}
    return CommandCall(
        "user.lift_suppression", arguments if queue is None else arguments | {"queue": queue}
    )


def change_settings(changes: Sequence[Mapping[str, Any]], by: str, why: str) -> CommandCall:
    """Build the command that stores changes of operational settings, together as one new version.

    Each change has the setting's `name`, a `queue`, a `team` and the new `value`. If `queue` and
    `team` are None, the new value is for all. If `value` is None, the stored value is removed. A
    dialer queue or team without a value of its own uses the value for all; if there is none, the
    default is used.
    """
    said = {"changes": [dict(each) for each in changes], "by": by, "why": why}
    return CommandCall("assignment.change_settings", said)


def passing(celery_queue: str) -> CommandCall:
    """Build a command whose answer proves that a sequencer works on this assignment queue.

    The messages of an assignment queue are handled in order. So the answer also proves that all
    messages which were sent to `celery_queue` earlier than this command have been handled. The
    command is `assignment.expire`, which ends assignments whose lease has ended. It does no harm to
    send the command at any time: Beat sends the same command at intervals too.
    """
    return CommandCall("assignment.expire", {}, celery_queue=celery_queue)


def repair() -> CommandCall:
    """Build the command that corrects dialer queues that contradict the assignments.

    The command marks as held exactly those users of the queues whom an agent holds.
    """
    return CommandCall("queue.repair", {})


def regenerate(queue: str | None) -> CommandCall:
    """Build the command that requests a rebuild of one dialer queue; of all, if `queue` is None."""
    arguments = {"queue": queue, "trigger": "hand"}
    return CommandCall("queue.regenerate", arguments, celery_queue=MAINTENANCE)


def count_answers(hours: Sequence[dict[str, Any]]) -> CommandCall:
    """Build the message that stores a client's counts of the answers to requests.

    The service levels are computed from these counts. `hours`: `CountedHour` objects as JSON. Each
    has an hour, a kind of answer, such as `assigned` or `unavailable`, and the number of answers of
    this kind in each minute of the hour.
    """
    return CommandCall("history.count_answers", {"hours": list(hours)}, celery_queue=MAINTENANCE)
