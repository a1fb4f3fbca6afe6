"""What callers send, and what they get: the OpenAPI document is made from these."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from assignment_workers.assignment.answers import (
    Assigned,
    Done,
    Empty,
    Finished,
    Paused,
    TooLate,
)

TIMEOUT_MS = 10_000
TIMEOUT_MS_MOST = 30_000

AgentId = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True, examples=[26])]
RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[!-~]+$")]
Word = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")]
Version = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RequestBody(_Body):
    """An agent's ask for the next user."""

    agent_id: AgentId
    queue: Word | None = Field(
        None, description="Only from this dialer queue.", examples=["unsigned_users"]
    )
    request_id: RequestId | None = Field(
        None, description="The same id gets the same answer; made where it is absent."
    )
    timeout_ms: Annotated[int, Field(ge=100, le=TIMEOUT_MS_MOST, strict=True)] = Field(
        TIMEOUT_MS, description="After it nobody is assigned."
    )


class OwnerBody(_Body):
    """Whose assignment it is. `version` as it was given; absent: whichever it has."""

    agent_id: AgentId
    version: Version | None = None


class CompleteBody(OwnerBody):
    """What came of the call."""

    outcome: Word = Field(examples=["no_answer"])
    notes: Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")] | None = None
    callback_at: AwareDatetime | None = None


class _Identified(BaseModel):
    request_id: str


class AssignedAnswer(_Identified, Assigned):
    """The user is this agent's."""


class EmptyAnswer(_Identified, Empty):
    """Nothing was claimable when the transaction committed."""


class PausedAnswer(_Identified, Paused):
    """An operator paused it."""


class TooLateAnswer(_Identified, TooLate):
    """The deadline had passed; nobody was assigned."""


RequestAnswer = Annotated[
    AssignedAnswer | EmptyAnswer | PausedAnswer | TooLateAnswer, Field(discriminator="outcome")
]


class Sent(BaseModel):
    """A regeneration was asked for."""

    task_id: str


class State(BaseModel):
    """Whether the gateway is alive, or ready."""

    status: str


__all__ = [
    "AgentId",
    "CompleteBody",
    "Done",
    "Finished",
    "OwnerBody",
    "RequestAnswer",
    "RequestBody",
    "Sent",
    "State",
]

_HELD = {
    "id": "01932c07-1f00-7000-8000-000000000000",
    "user_id": 2064,
    "agent_id": 26,
    "queue": "unsigned_users",
    "source": "queue",
    "reason": "score 0",
    "rank": 1,
    "claimed_at": "2026-11-23T15:00:00Z",
    "lease_expires_at": "2026-11-23T15:05:00Z",
    "version": 1,
    "state": "active",
}
_ID = {"request_id": "01932c07-1eff-7000-8000-000000000000"}
REQUEST_EXAMPLES: dict[str, Any] = {
    "assigned": {"value": {"outcome": "assigned", "assignment": _HELD, "replayed": False} | _ID},
    "empty": {
        "value": {
            "outcome": "empty",
            "queue": "unsigned_users",
            "retry_after": 30.0,
            "why": {"unsigned_users": "nobody is left"},
        }
        | _ID
    },
    "paused": {"value": {"outcome": "paused", "queue": "unsigned_users"} | _ID},
    "too_late": {"value": {"outcome": "too_late"} | _ID},
}
FINISHED_EXAMPLES: dict[str, Any] = {
    outcome: {
        "value": {
            "outcome": outcome,
            "assignment": _HELD
            | ({} if outcome == "renewed" else {"state": outcome, "version": 2}),
            "replayed": False,
        }
    }
    for outcome in ("completed", "skipped", "released", "renewed")
}
