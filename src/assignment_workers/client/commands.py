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
class Command:
    """One thing asked. Said twice on the assignment queue, it has one effect and one answer."""

    task: str
    said: dict[str, Any]
    args: Sequence[Any] = ()
    celery_queue: str = ASSIGNMENT
    many: str | None = field(default=None, kw_only=True)
    """The task that takes a list of what is said, under `requests`; None: there is none."""
    timeout: timedelta | None = field(default=None, kw_only=True)
    """How long the asker waits, which is said as `sent_at` and `deadline`; None: is not said."""
    position: int | None = field(default=None, kw_only=True)
    """Where the database saw it before it was sent; None: it is new to it when it comes."""

    def at(self, position: int) -> Command:
        """Return the command as the database saw it at this position of its order."""
        return replace(self, position=position)

    def said_by(self, ends: datetime) -> dict[str, Any]:
        """What the message says for an asker who waits until `ends`, by the database's clock."""
        if self.timeout is None:
            return self.said
        times = {"sent_at": ends - self.timeout, "deadline": ends}
        return self.said | {name: time.isoformat() for name, time in times.items()}


def request(agent_id: int, queue: str | None, request_id: str, *, timeout: timedelta) -> Command:
    """The next user for an agent; nobody is assigned after `timeout`."""
    said = {"agent_id": agent_id, "queue": queue, "request_id": request_id}
    return Command("assignment.request", said, many="assignment.request_many", timeout=timeout)


def complete(
    assignment_id: UUID | str,
    agent_id: int,
    outcome: str,
    *,
    version: int | None,
    notes: str | None,
    callback_at: datetime | None,
) -> Command:
    """The call was made and `outcome` came of it."""
    said = _owner(assignment_id, agent_id, version) | {
        "outcome": outcome,
        "notes": notes,
        "callback_at": callback_at.isoformat() if callback_at else None,
    }
    return _finish("complete", said)


def skip(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> Command:
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
) -> Command:
    """Later, for everyone: not before a time, or for so many seconds."""
    said = _owner(assignment_id, agent_id, version) | {
        "until": until.isoformat() if until else None,
        "seconds": seconds,
        "why": why,
    }
    return _finish("defer", said)


def close(assignment_id: UUID | str, agent_id: int, why: str, *, version: int | None) -> Command:
    """Out of this dialer queue for good."""
    return _finish("close", _owner(assignment_id, agent_id, version) | {"why": why})


def accept(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> Command:
    """The offer is taken up."""
    return _finish("accept", _owner(assignment_id, agent_id, version))


def state(agent_id: int, becomes: str, *, by: str | None, why: str | None) -> Command:
    """The agent is about this from now on."""
    said = {"agent_id": agent_id, "state": becomes, "by": by, "why": why}
    return Command("agent.state", said)


def heartbeat(agent_id: int, *, timeout: timedelta) -> Command:
    """The agent is there, now."""
    return Command(
        "agent.heartbeats",
        {"agent_id": agent_id},
        celery_queue=HEARTBEATS,
        many="agent.heartbeats",
        timeout=timeout,
    )


def release(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> Command:
    """Give the user back untouched."""
    return _finish("release", _owner(assignment_id, agent_id, version))


def release_unclaimed(
    assignment_id: UUID | str, agent_id: int, *, version: int, lease_expires_at: datetime
) -> Command:
    """Give the user back if nobody was told of the hold."""
    said = _owner(assignment_id, agent_id, version)
    return Command(
        "assignment.release_unclaimed", said | {"lease_expires_at": lease_expires_at.isoformat()}
    )


def renew(assignment_id: UUID | str, agent_id: int, *, version: int | None) -> Command:
    """Still at it: the lease runs anew."""
    return _finish("renew", _owner(assignment_id, agent_id, version))


def pause(queue: str, by: str | None, why: str | None = None) -> Command:
    """Hand out nobody from this dialer queue."""
    return Command("queue.pause", {"queue": queue, "by": by, "why": why})


def resume(queue: str, by: str | None, why: str | None = None) -> Command:
    """Hand out from this dialer queue again."""
    return Command("queue.resume", {"queue": queue, "by": by, "why": why})


def take_back(assignment_id: UUID | str, by: str, why: str) -> Command:
    """An operator ends a hold: the user is claimable at once."""
    return Command(
        "assignment.take_back", {"assignment_id": str(assignment_id), "by": by, "why": why}
    )


def reassign(assignment_id: UUID | str, agent_id: int, by: str, why: str) -> Command:
    """An operator gives the user of a hold to another agent."""
    said = {"assignment_id": str(assignment_id), "agent_id": agent_id, "by": by, "why": why}
    return Command("assignment.reassign", said)


def drain(queue: str, by: str) -> Command:
    """Take some of who is not held out of this dialer queue."""
    return Command("queue.drain", {"queue": queue, "by": by})


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
) -> Command:
    """Offer a user, or every user with a phone number, to nobody, in one dialer queue or in all."""
    said = {"user_id": user_id, "phone": phone, "reason": reason, "by": by}
    more = {
        "queue": queue,
        "expires_at": expires_at.isoformat() if expires_at else None,
        "source": source,
        "raw": raw or None,
    }
    return Command("user.suppress", said | {k: v for k, v in more.items() if v is not None})


def flip_list(list_id: int, why: str, by: str) -> Command:
    """Make a loaded list of numbers stand."""
    return Command("user.flip_suppression_list", {"list_id": list_id, "why": why, "by": by})


def drop_list(name: str, why: str, by: str) -> Command:
    """Let a named list of numbers count no more."""
    return Command("user.drop_suppression_list", {"name": name, "why": why, "by": by})


def lift(
    kind: str,
    user_id: int | None,
    phone: str | None,
    why: str,
    by: str,
    *,
    queue: str | None = None,
) -> Command:
    """Let a user be offered again: `do_not_contact`, `quarantine`, or `closed` of one queue."""
    said = {"kind": kind, "user_id": user_id, "phone": phone, "why": why, "by": by}
    return Command("user.lift_suppression", said if queue is None else said | {"queue": queue})


def repair() -> Command:
    """Bring the entries of the published generations in line with the holds."""
    return Command("queue.repair", {})


def regenerate(queue: str | None) -> Command:
    """Build a new generation of a dialer queue, or of each."""
    said = {"queue": queue, "trigger": "hand"}
    return Command("queue.regenerate", said, celery_queue=MAINTENANCE)


def _finish(move: str, said: dict[str, Any]) -> Command:
    return Command(f"assignment.{move}", {"move": move, **said}, many="assignment.finish_many")


def _owner(assignment_id: UUID | str, agent_id: int, version: int | None) -> dict[str, Any]:
    return {"assignment_id": str(assignment_id), "agent_id": agent_id, "version": version}
