"""The verbs: the commands of an agent about an assignment, such as completing it.

The verbs complete, skip, defer, close and release end the assignment. The verb accept accepts an
assignment that is an offer. The verb renew renews the lease of the assignment.

Each verb is declared once, by a function of this module. The function returns a move: an object
with the values that `finish` needs to carry out the verb. To add a verb, declare it, add it to
`AgentVerbs`, and, if it needs a new move, extend `finish`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, TypeAlias
from uuid import UUID

from pydantic import AwareDatetime, Field

from assignment_workers.assignment.answers import Ended
from assignment_workers.assignment.lifecycle.verb import (
    TIMEOUT,
    AgentId,
    AnyVerb,
    Limits,
    Version,
    verb,
    verbs_of,
)
from assignment_workers.schema.states import AssignmentState, EndedHow


@dataclass(frozen=True)
class Owner:
    """The assignment that an agent's command is about, and the agent.

    `version`: the assignment's version as the agent knows it; None: the version is not checked.
    `sent_by`: the name of the API token with which a caller other than the agent sent the command,
    such as `token 0a12`. The name is recorded with the events. None: the command was sent with the
    agent's own token, or with none.
    """

    assignment_id: UUID
    agent_id: int
    version: int | None = None
    sent_by: str | None = None


@dataclass(frozen=True)
class Complete:
    """An agent's command (a move): complete the call with an outcome.

    The assignment ends. The outcome determines the user's score and the time of the next call. A
    promised callback is stored, and the user leaves the published generations (guarantee 10 in
    docs/how-it-works.md). If the call was made for a callback, the callback is marked as kept or
    cancelled, as the outcome says; if nobody answered, the callback is tried again after `retry`, a
    limited number of times. Refused, with nothing changed: an unknown outcome, and a callback time
    or notes that do not fit the outcome.
    """

    owner: Owner
    outcome: str
    notes: str | None = None
    callback_at: datetime | None = None
    retry: timedelta = timedelta(minutes=15)

    becomes = AssignmentState.COMPLETED
    how = None
    word: ClassVar[Ended] = "completed"


@dataclass(frozen=True)
class Skip:
    """An agent's command (a move): skip the user.

    The user is then offered to no agent for the time `everyone`. The agent who skips is not offered
    the user for the time of the setting `skip_agent`, which is longer by default.
    """

    owner: Owner
    everyone: timedelta

    becomes = AssignmentState.SKIPPED
    how = None
    word: ClassVar[Ended] = "skipped"


@dataclass(frozen=True)
class Defer:
    """An agent's command (a move): defer the user.

    No agent is offered the user before `until`, or for `rest` from now. Exactly one of `until` and
    `rest` is set. Afterwards the user may be offered to any agent, including this one. Refused: a
    time that has passed, and a time that is more than `most` from now.
    """

    owner: Owner
    most: timedelta
    until: datetime | None = None
    rest: timedelta | None = None
    why: str | None = None

    becomes = AssignmentState.SKIPPED
    how = EndedHow.DEFERRED
    word: ClassVar[Ended] = "deferred"


@dataclass(frozen=True)
class Close:
    """An agent's command (a move): close the assignment's dialer queue for the user.

    The user stays out of this dialer queue until an operator lifts the suppression. The user's
    pending callbacks are cancelled. The closure is stored as a suppression of the kind `closed`;
    builds, claims and explanations apply the suppression, because every dialer queue has a rule for
    such suppressions.
    """

    owner: Owner
    why: str

    becomes = AssignmentState.SKIPPED
    how = EndedHow.CLOSED
    word: ClassVar[Ended] = "closed"


@dataclass(frozen=True)
class Release:
    """A command (a move): release the user without a call.

    Any agent can then claim the user at once, at the same rank.
    """

    owner: Owner
    by: str | None = None
    """Person or program that releases the user in place of the agent; None: the agent."""
    why: str | None = None

    becomes = AssignmentState.RELEASED
    how = None
    word: ClassVar[Ended] = "released"


@dataclass(frozen=True)
class Accept:
    """An agent's command (a move): accept the offer.

    The lease's new end is the time `lease` from now, or its present end if that is later. The
    version stays the same. Repeating the move changes nothing.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "accepted"


@dataclass(frozen=True)
class Renew:
    """An agent's command (a move): renew the lease, and accept the assignment if it is an offer.

    The lease's new end is the time `lease` from now, or its present end if that is later. The
    version stays the same. The reason: an agent may send another command, with the present version,
    before the answer to the renewal arrives. That command must not be refused because of the
    renewal.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE
    how = None
    word: ClassVar[Ended] = "renewed"


Move = Complete | Skip | Defer | Close | Release | Accept | Renew

AssignmentRef: TypeAlias = UUID | str
AN_OUTCOME = "AN_OUTCOME_OF_A_CALL"
"""Placeholder in an example; the OpenAPI document replaces it by the name of an outcome."""
OutcomeName = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")]
Notes = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")]
Rest = Annotated[int, Field(ge=1, le=10 * 365 * 86_400, strict=True)]
Why = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


def _owner(assignment_id: AssignmentRef, agent_id: int, version: int | None) -> Owner:
    named = assignment_id if isinstance(assignment_id, UUID) else UUID(assignment_id)
    return Owner(named, agent_id, version)


@verb()
def accept(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    *,
    version: Version | None = None,
    timeout: timedelta = TIMEOUT,
) -> Accept:
    """Accept the offer: it becomes accepted work, and its lease starts again.

    If the agent has accepted the offer already, nothing changes. If the assignment has ended, the
    command is refused.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    return Accept(_owner(assignment_id, agent_id, version), limits.lease)


@verb("The outcome of the call.")
def complete(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    outcome: Annotated[
        OutcomeName, Field(description="Name of an outcome.", examples=[AN_OUTCOME])
    ],
    *,
    version: Version | None = None,
    notes: Annotated[Notes | None, Field(description="Text that the agent wrote.")] = None,
    callback_at: Annotated[
        AwareDatetime | None, Field(description="Time of a promised callback, with a zone.")
    ] = None,
    timeout: timedelta = TIMEOUT,
) -> Complete:
    """Complete the call with `outcome`. A repeated completion gets the same answer.

    `callback_at`: the time of a promised callback.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    owner = _owner(assignment_id, agent_id, version)
    return Complete(owner, outcome, notes, callback_at, limits.callback_retry)


@verb()
def skip(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    *,
    version: Version | None = None,
    timeout: timedelta = TIMEOUT,
) -> Skip:
    """Skip this user: by default, for 15 minutes for all agents, and for an hour for this one.

    During that time, these agents are not offered the user. The operator's settings may have other
    times.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    return Skip(_owner(assignment_id, agent_id, version), limits.skip_everyone)


@verb("The time until which nobody is offered the user: a time, or seconds from now.")
def defer(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    *,
    version: Version | None = None,
    until: Annotated[
        AwareDatetime | None,
        Field(description="A time with a zone.", examples=["2026-11-23T18:00:00Z"]),
    ] = None,
    seconds: Annotated[Rest | None, Field(description="Seconds from now.")] = None,
    why: Annotated[
        Why | None, Field(description="For the records.", examples=["on holiday"])
    ] = None,
    timeout: timedelta = TIMEOUT,
) -> Defer:
    """Defer this user: offer the user to nobody before `until`, or for `seconds`.

    Exactly one of `until` and `seconds` must be set.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    rest = None if seconds is None else timedelta(seconds=seconds)
    owner = _owner(assignment_id, agent_id, version)
    return Defer(owner, limits.defer_maximum, until, rest, why)


@verb("The reason for which the user is closed in the dialer queue.")
def close(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    why: Annotated[Why, Field(description="For the records.", examples=["deceased"])],
    *,
    version: Version | None = None,
    timeout: timedelta = TIMEOUT,
) -> Close:
    """Close the assignment's dialer queue for the user, until an operator lifts the closure.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    return Close(_owner(assignment_id, agent_id, version), why)


@verb()
def release(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    *,
    version: Version | None = None,
    timeout: timedelta = TIMEOUT,
) -> Release:
    """Release the user without a call; the user can be offered again.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    return Release(_owner(assignment_id, agent_id, version))


@verb()
def renew(
    limits: Limits,
    assignment_id: AssignmentRef,
    agent_id: AgentId,
    *,
    version: Version | None = None,
    timeout: timedelta = TIMEOUT,
) -> Renew:
    """Renew the lease: it starts again from now.

    If the assignment is still an offer, the renewal also accepts the offer. If the assignment has
    ended, the command is refused.

    `version`: the assignment's version in the newest answer about the assignment. None: the version
    is not checked. The command is refused if the assignment has another version now. The version
    changes only when the assignment ends; an accept or a renewal leaves it as it is. After the end,
    every further command is refused, with one exception: the command that ended the assignment
    (complete, skip, defer, close or release) may be sent again with the same values. It gets the
    first answer again.
    """
    return Renew(_owner(assignment_id, agent_id, version), limits.lease)


class AgentVerbs:
    """Base class of clients, with one method for each action of an agent on an assignment.

    Each method passes the action to the client's method `perform`, which sends the action.
    """

    complete = complete
    skip = skip
    defer = defer
    close_user = close
    """The action `close` (close a dialer queue for a user).

    The method has another name, because the client's method `close` closes the client.
    """
    accept = accept
    release = release
    renew = renew


VERBS: dict[str, AnyVerb] = {each.name: each for each in verbs_of(AgentVerbs)}
"""All verbs (actions of an agent, such as accept) by their names in tasks, routes and commands."""
