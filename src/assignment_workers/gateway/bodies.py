"""The bodies of calls and of answers; the OpenAPI document is made from them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from assignment_workers.assignment.answers import (
    Assigned,
    Done,
    Empty,
    Finished,
    Paused,
    TooLate,
)
from assignment_workers.assignment.lifecycle.moves import Why
from assignment_workers.assignment.lifecycle.verb import AgentId, AnyVerb, Version
from assignment_workers.assignment.operational_settings import CHANGED_AT_MOST, SettingChange
from assignment_workers.assignment.operator_actions import WHY_AT_MOST
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.health.model import HealthState
from assignment_workers.identity import UserId
from assignment_workers.policy.queues import reason_for
from assignment_workers.schema.tables import AgentStatus

TIMEOUT_MS = 10_000
TIMEOUT_MS_MOST = 30_000
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)

A_QUEUE = "A_DIALER_QUEUE"
"""Placeholder in examples. The OpenAPI document replaces it by the name of a dialer queue."""

RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
Word = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RequestBody(_Body):
    """An agent's request for the next user."""

    agent_id: AgentId
    queue: Word | None = Field(None, description="Only from this dialer queue.", examples=[A_QUEUE])
    request_id: RequestId | None = Field(
        None, description="The same id gets the same answer. If absent, the gateway makes one."
    )
    timeout_ms: Annotated[int, Field(ge=100, le=TIMEOUT_MS_MOST, strict=True)] = Field(
        TIMEOUT_MS, description="Milliseconds to wait. After that no user is assigned."
    )


class OwnerBody(_Body):
    """The agent who holds the assignment, and the assignment's `version` from the last answer.

    Without a `version`, any version is accepted.
    """

    agent_id: AgentId
    version: Version | None = None


def body_of(verb: AnyVerb) -> type[OwnerBody]:
    """Return the model of the body of `POST /v1/assignments/{assignment}/VERB`.

    `verb` is an act on an assignment, such as `complete`.
    """
    if not verb.own:
        return OwnerBody
    fields: dict[str, Any] = {
        each.name: (each.annotation, ... if each.required else each.default) for each in verb.own
    }
    title = f"{verb.name.title()}Body"
    return create_model(title, __base__=OwnerBody, __doc__=verb.about, **fields)


class StateBody(_Body):
    """The body of a call that changes an agent's state."""

    state: AgentStatus = Field(examples=["available"])
    why: Why | None = Field(None, examples=["lunch"])


class HeartbeatBody(_Body):
    """The body of a heartbeat: the agent's current assignment.

    The first heartbeat that names an offer accepts the offer.
    """

    assignment_id: UUID | None = None


class ActBody(_Body):
    """The reason that an operator adds to an action."""

    why: (
        Annotated[str, Field(min_length=1, max_length=WHY_AT_MOST, pattern=r"^[^\x00]*$")] | None
    ) = Field(None, description="The recorded reason.", examples=["the CRM is being mended"])


class SettingsBody(_Body):
    """Changes of operational settings, which are stored together as one new version."""

    changes: Annotated[list[SettingChange], Field(min_length=1, max_length=CHANGED_AT_MOST)] = (
        Field(examples=[[{"name": "level_minimum", "value": "20"}]])
    )
    why: Why = Field(examples=["as before"])


class ReportQuery(_Body):
    """The period of a report."""

    since: AwareDatetime | None = Field(
        None, ge=EARLIEST, description="The beginning, with a time zone; absent: a day ago."
    )


class VersionsQuery(_Body):
    """The maximum number of versions of the operational settings to return."""

    most: Annotated[int, Field(ge=1, le=1_000, description="The greatest number of versions.")] = 50


class EventsQuery(_Body):
    """The query parameters of the event stream, which select its events."""

    agent_id: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Only the events of this agent."
    )


class _Identified(BaseModel):
    request_id: str


class AssignedAnswer(_Identified, Assigned):
    """A user is assigned to the agent of the request."""


class EmptyAnswer(_Identified, Empty):
    """No user is assigned, because no user was claimable for this request."""


class PausedAnswer(_Identified, Paused):
    """No user is assigned, because every dialer queue that the request may take from is paused."""


class TooLateAnswer(_Identified, TooLate):
    """No user is assigned, because the deadline of the request had passed."""


RequestAnswer = Annotated[
    AssignedAnswer | EmptyAnswer | PausedAnswer | TooLateAnswer, Field(discriminator="outcome")
]


class Sent(BaseModel):
    """The answer to a call that sends a Celery message and does not wait for its result.

    Such a call rebuilds a dialer queue, or sends the message of a dead letter again. `task_id` is
    the id of the sent message.
    """

    task_id: str


class LiveDetails(BaseModel):
    """The details of an event beyond its ids; its kind decides which are present."""

    rank: int | None = None
    lease_expires_at: AwareDatetime | None = None
    until: AwareDatetime | None = Field(None, description="Before then nobody is offered the user.")
    state: str | None = Field(None, description="The agent's state.")
    outcome: str | None = Field(None, description="How the call ended.")
    actions: list[str] | None = Field(None, description="What others are to do about the call.")
    reason: str | None = Field(None, description="The reason, such as the rule against a user.")
    scheduled_for: AwareDatetime | None = None
    moved_to: str | None = None
    size: int | None = None
    trigger: str | None = None
    kind: str | None = Field(None, description="The kind of a race: a conflict of two writers.")
    done: str | None = Field(None, description="What was done about a race.")


class LiveEvent(BaseModel):
    """The `data` of a server-sent event; a field without a value is left out.

    Kind `reset`: the stream cannot continue after the last event that the client got, for example
    because the events that the client missed were deleted. The client must then read the current
    state again.
    """

    id: int
    kind: EventKind | Literal["reset"]
    at: AwareDatetime | None = None
    term: int | None = None
    queue: str | None = None
    user_id: UserId | None = None
    agent_id: int | None = None
    assignment_id: UUID | None = None
    request_id: str | None = None
    generation_id: int | None = None
    details: LiveDetails | None = None


class Index(BaseModel):
    """The name and version of the gateway, and the paths of its interface."""

    name: str
    version: str
    interface: str = "/openapi.json"
    live: str = "/v1/events"
    health: str = "/readyz"


class State(BaseModel):
    """The answer that shows that the gateway's process is alive."""

    status: str


class Readiness(BaseModel):
    """The readiness of the gateway, and the state of the whole system.

    The gateway may be ready while other parts of the system are in trouble.
    """

    status: Literal["ready"]
    state: HealthState
    """The state of the whole system."""
    wrong: list[str] = Field(description="The components that are not good, the worst first.")
    crm: Literal["answers", "unavailable"]


__all__ = [
    "ActBody",
    "AgentId",
    "Done",
    "Finished",
    "Index",
    "LiveEvent",
    "OwnerBody",
    "RequestAnswer",
    "RequestBody",
    "Sent",
    "State",
    "body_of",
]

_HELD = {
    "id": "01932c07-1f00-7000-8000-000000000000",
    "user_id": 2064,
    "agent_id": 26,
    "queue": A_QUEUE,
    "source": "queue",
    "reason": reason_for(0),
    "rank": 1,
    "claimed_at": "2026-11-23T15:00:00Z",
    "lease_expires_at": "2026-11-23T15:02:00Z",
    "version": 1,
    "state": "active",
    "accepted_at": None,
}
_WORK = _HELD | {"accepted_at": "2026-11-23T15:00:30Z", "lease_expires_at": "2026-11-23T15:05:30Z"}
_ID = {"request_id": "01932c07-1eff-7000-8000-000000000000"}
REQUEST_EXAMPLES: dict[str, Any] = {
    "assigned": {"value": {"outcome": "assigned", "assignment": _HELD, "replayed": False} | _ID},
    "empty": {
        "value": {
            "outcome": "empty",
            "queue": A_QUEUE,
            "retry_after": 30.0,
            "why": {A_QUEUE: "none_in_pool"},
        }
        | _ID
    },
    "paused": {"value": {"outcome": "paused", "queue": A_QUEUE} | _ID},
    "too_late": {"value": {"outcome": "too_late", "database_time": "2026-11-23T15:00:11Z"} | _ID},
}
FINISHED_EXAMPLES: dict[str, Any] = {
    outcome: {
        "value": {
            "outcome": outcome,
            "assignment": _WORK | ({"state": state, "version": 2} if state else {}),
            "replayed": False,
        }
    }
    for outcome, state in {
        "completed": "completed",
        "skipped": "skipped",
        "deferred": "skipped",
        "closed": "skipped",
        "released": "released",
        "accepted": None,
        "renewed": None,
    }.items()
}
STATED_EXAMPLES: dict[str, Any] = {
    "break": {
        "value": {
            "outcome": "stated",
            "agent_id": 26,
            "state": "break",
            "since": "2026-11-23T15:00:00Z",
            "released": None,
            "replayed": False,
        }
    }
}
NOTED_EXAMPLES: dict[str, Any] = {
    "at work": {
        "value": {
            "outcome": "noted",
            "agent_id": 26,
            "state": "on_call",
            "assignment_id": _WORK["id"],
            "lease_expires_at": "2026-11-23T15:06:00Z",
        }
    }
}
EXAMPLES = (REQUEST_EXAMPLES, FINISHED_EXAMPLES, STATED_EXAMPLES, NOTED_EXAMPLES)
STREAM_EXAMPLE = (
    "retry: 2000\n\n: alive\nid: 4711\n\n"
    "id: 4712\nevent: assigned\n"
    'data: {"id":4712,"at":"2026-11-23T15:00:00Z","kind":"assigned","term":3,'
    f'"queue":"{A_QUEUE}","user_id":2064,"agent_id":26,'
    '"assignment_id":"01932c07-1f00-7000-8000-000000000000",'
    '"request_id":"01932c07-1eff-7000-8000-000000000000","generation_id":7,'
    '"details":{"rank":1,"lease_expires_at":"2026-11-23T15:02:00Z"}}\n\n'
)
