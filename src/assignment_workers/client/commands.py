"""What can be asked of the sequencer and the maintenance workers, as messages say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

ASSIGNMENT = "assignment"
MAINTENANCE = "maintenance"
HEARTBEATS = "heartbeats"
OFF_THE_LINE = frozenset({MAINTENANCE, HEARTBEATS})
"""Celery queues that have no order, and no lane."""


@dataclass(frozen=True)
class CommandCall:
    """One thing asked. Said twice on the assignment queue, it has one effect and one answer."""

    task: str
    arguments: dict[str, Any]
    args: Sequence[Any] = ()
    celery_queue: str = ASSIGNMENT
    many: str | None = field(default=None, kw_only=True)
    """The task that takes a list of what is said, under `requests`; None: there is none."""
    timeout: timedelta | None = field(default=None, kw_only=True)
    """How long the asker waits, which is said as `sent_at` and `deadline`; None: is not said."""
    position: int | None = field(default=None, kw_only=True)
    """Where the database saw it before it was sent; None: it is new to it when it comes."""

    def at(self, position: int) -> CommandCall:
        """Return the command as the database saw it at this position of its order."""
        return replace(self, position=position)

    def said_by(self, ends: datetime) -> dict[str, Any]:
        """What the message says for an asker who waits until `ends`, by the database's clock."""
        if self.timeout is None:
            return self.arguments
        times = {"sent_at": ends - self.timeout, "deadline": ends}
        return self.arguments | {name: time.isoformat() for name, time in times.items()}


def request(
    agent_id: int, queue: str | None, request_id: str, *, timeout: timedelta
) -> CommandCall:
    """The next user for an agent; nobody is assigned after `timeout`."""
    arguments = {"agent_id": agent_id, "queue": queue, "request_id": request_id}
    return CommandCall(
        "assignment.request", arguments, many="assignment.request_many", timeout=timeout
    )


def complete(
    assignment_id: UUID | str,
    agent_id: int,
    outcome: str,
    *,
    version: int | None,
    notes: str | None,
    callback_at: datetime | None,
) -> CommandCall:
    """The call was made and `outcome` came of it."""
    arguments = _owner(assignment_id, agent_id, version) | {
        "outcome": outcome,
        "notes": notes,
        "callback_at": callback_at.isoformat() if callback_at else None,
    }
    return _finish("complete", arguments)


def skip(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> CommandCall:
    """Not this user now."""
    return _finish("skip", _owner(assignment_id, agent_id, version))


def defer(
    assignment_id: UUID | str,
    agent_id: int,
    *,
    version: int | None,
    until: datetime | None,
    seconds: int | None,
    why: str | None,
) -> CommandCall:
    """Later, for everyone: not before a time, or for so many seconds."""
    arguments = _owner(assignment_id, agent_id, version) | {
        "until": until.isoformat() if until else None,
        "seconds": seconds,
        "why": why,
    }
    return _finish("defer", arguments)


def close(
    assignment_id: UUID | str, agent_id: int, why: str, *, version: int | None
) -> CommandCall:
    """Out of this dialer queue for good."""
    return _finish("close", _owner(assignment_id, agent_id, version) | {"why": why})


def accept(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> CommandCall:
    """The offer is taken up."""
    return _finish("accept", _owner(assignment_id, agent_id, version))


def state(agent_id: int, becomes: str, *, by: str | None, why: str | None) -> CommandCall:
    """The agent is about this from now on."""
    arguments = {"agent_id": agent_id, "state": becomes, "by": by, "why": why}
    return CommandCall("agent.state", arguments)


def heartbeat(agent_id: int, *, timeout: timedelta) -> CommandCall:
    """The agent is there, now."""
    return CommandCall(
        "agent.heartbeats",
        {"agent_id": agent_id},
        celery_queue=HEARTBEATS,
        many="agent.heartbeats",
        timeout=timeout,
    )


def release(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> CommandCall:
    """Give the user back untouched."""
    return _finish("release", _owner(assignment_id, agent_id, version))


def release_unclaimed(
    assignment_id: UUID | str, agent_id: int, *, version: int, lease_expires_at: datetime
) -> CommandCall:
    """Give the user back if nobody was told of the hold."""
    arguments = _owner(assignment_id, agent_id, version)
    return CommandCall(
        "assignment.release_unclaimed",
        arguments | {"lease_expires_at": lease_expires_at.isoformat()},
    )


def renew(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> CommandCall:
    """Still at it: the lease runs anew."""
    return _finish("renew", _owner(assignment_id, agent_id, version))


def pause(queue: str, by: str | None, why: str | None = None) -> CommandCall:
    """Hand out nobody from this dialer queue."""
    return CommandCall("queue.pause", {"queue": queue, "by": by, "why": why})


def resume(queue: str, by: str | None, why: str | None = None) -> CommandCall:
    """Hand out from this dialer queue again."""
    return CommandCall("queue.resume", {"queue": queue, "by": by, "why": why})


def take_back(assignment_id: UUID | str, by: str, why: str) -> CommandCall:
    """An operator ends a hold: the user is claimable at once."""
    return CommandCall(
        "assignment.take_back", {"assignment_id": str(assignment_id), "by": by, "why": why}
    )


def reassign(assignment_id: UUID | str, agent_id: int, by: str, why: str) -> CommandCall:
    """An operator gives the user of a hold to another agent."""
    arguments = {"assignment_id": str(assignment_id), "agent_id": agent_id, "by": by, "why": why}
    return CommandCall("assignment.reassign", arguments)


def drain(queue: str, by: str) -> CommandCall:
    """Take some of who is not held out of this dialer queue."""
    return CommandCall("queue.drain", {"queue": queue, "by": by})


def do_not_contact(
    user_id: int | None,
    phone: str | None,
    reason: str,
    by: str,
    *,
    queue: str | None = None,
    expires_at: datetime | None = None,
    source: str | None = None,
    raw: bool = False,
) -> CommandCall:
    """Offer a user, or every user with a phone number, to nobody, in one dialer queue or in all."""
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
    """Make a loaded list of numbers stand."""
    return CommandCall("user.flip_suppression_list", {"list_id": list_id, "why": why, "by": by})


def drop_list(name: str, why: str, by: str) -> CommandCall:
    """Let a named list of numbers count no more."""
    return CommandCall("user.drop_suppression_list", {"name": name, "why": why, "by": by})


def lift(
    kind: str,
    user_id: int | None,
    phone: str | None,
    why: str,
    by: str,
    *,
    queue: str | None = None,
) -> CommandCall:
    """Let a user be offered again: `do_not_contact`, `quarantine`, or `closed` of one queue."""
    arguments = {"kind": kind, "user_id": user_id, "phone": phone, "why": why, "by": by}
    return CommandCall(
        "user.lift_suppression", arguments if queue is None else arguments | {"queue": queue}
    )


def repair() -> CommandCall:
    """Bring the entries of the published generations in line with the holds."""
    return CommandCall("queue.repair", {})


def regenerate(queue: str | None) -> CommandCall:
    """Build a new generation of a dialer queue, or of each."""
    arguments = {"queue": queue, "trigger": "hand"}
    return CommandCall("queue.regenerate", arguments, celery_queue=MAINTENANCE)


def _finish(move: str, arguments: dict[str, Any]) -> CommandCall:
    return CommandCall(
        f"assignment.{move}", {"move": move, **arguments}, many="assignment.finish_many"
    )


def _owner(assignment_id: UUID | str, agent_id: int, version: int | None) -> dict[str, Any]:
    return {"assignment_id": str(assignment_id), "agent_id": agent_id, "version": version}
