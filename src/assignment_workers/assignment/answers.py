"""Every answer that a caller can get, as a closed union for `match`, and its JSON."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Held(_Value):
    """An assignment as its agent sees it.

    The agent sends `version` with each later command about the assignment. `state` is 'active',
    except in a replayed answer whose assignment has ended since.
    """

    id: UUID
    user_id: int
    agent_id: int
    queue: str
    source: str
    reason: str
    rank: int
    claimed_at: datetime
    lease_expires_at: datetime
    version: int
    state: str
    accepted_at: datetime | None = None
    """Time at which the agent accepted the assignment; None: the assignment is still an offer."""


class Code(StrEnum):
    """The reason of a refusal, for programs."""

    MALFORMED = "malformed"
    """An argument is missing or cannot be read."""
    UNKNOWN_AGENT = "unknown_agent"
    """No agent has this id."""
    INACTIVE_AGENT = "inactive_agent"
    """The agent is not active in the dialer."""
    UNKNOWN_QUEUE = "unknown_queue"
    """No dialer queue has this name."""
    QUEUE_NOT_ALLOWED = "queue_not_allowed"
    """The agent may not take from this dialer queue."""
    ON_BREAK = "on_break"
    """The agent is on break."""
    OFFLINE = "offline"
    """The agent is offline."""
    SESSION_LIMIT = "session_limit"
    """The agent has made as many calls as a session may have."""
    BREAK_DUE = "break_due"
    """The agent has worked as long as they may without a break."""
    CALL_GAP = "call_gap"
    """The minimum time since the agent's last call is not over; `retry_after` says how long."""
    REQUEST_ID_TAKEN = "request_id_taken"
    """Another agent used this request id."""
    UNKNOWN_USER = "unknown_user"
    """No user has this id."""
    NOT_SUPPRESSED = "not_suppressed"
    """There is no such suppression to lift."""
    FORGOTTEN = "forgotten"
    """The person was erased."""
    UNKNOWN_ASSIGNMENT = "unknown_assignment"
    """No assignment has this id."""
    NOT_OWNER = "not_owner"
    """The assignment is another agent's."""
    NOT_ACTIVE = "not_active"
    """The assignment has ended."""
    STALE_VERSION = "stale_version"
    """The assignment has another version."""
    SUPERSEDED = "superseded"
    """A command with a later position has set the same state since."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """No outcome has this name."""
    UNKNOWN_GENERATION = "unknown_generation"
    """No generation has this number, or it cannot be published."""
    UNAUTHENTICATED = "unauthenticated"
    """The gateway: no token, or none that is in force."""
    FORBIDDEN = "forbidden"
    """The gateway: this token may not do that, or not for that agent."""


class Assigned(_Value):
    """The agent holds the user.

    `replayed`: the assignment existed already, and this request made no new one.
    """

    outcome: Literal["assigned"] = "assigned"
    assignment: Held
    replayed: bool = False


class Empty(_Value):
    """Nothing was claimable when the transaction committed.

    `why`: the reason for each dialer queue.
    """

    outcome: Literal["empty"] = "empty"
    queue: str | None
    retry_after: float
    """Seconds until something may be claimable."""
    why: dict[str, str]


class Paused(_Value):
    """An operator paused every dialer queue that the request may take from."""

    outcome: Literal["paused"] = "paused"
    queue: str | None


class Unavailable(_Value):
    """The database or the CRM cannot answer, or a dialer queue was never built.

    Unlike `empty`, this does not say that no user is claimable.
    """

    outcome: Literal["unavailable"] = "unavailable"
    retry_after: float
    """Seconds."""
    reason: str


class TooLate(_Value):
    """The deadline had passed; nobody was assigned.

    `database_time`: the time of the database's clock, for a client whose estimate of it is behind.
    """

    outcome: Literal["too_late"] = "too_late"
    database_time: datetime | None = None
    """None: a version before 0.2.0 made the answer."""


class Refused(_Value):
    """The request cannot be met; the same request gets the same answer again.

    Exception: with `retry_after`, the same request may succeed once that time has passed.
    """

    outcome: Literal["refused"] = "refused"
    code: Code
    reason: str
    retry_after: float | None = None
    """Seconds."""


Ended = Literal["completed", "skipped", "deferred", "closed", "released", "accepted", "renewed"]


class Finished(_Value):
    """The assignment is in this state, by this call or by an earlier identical one (`replayed`)."""

    outcome: Ended
    assignment: Held
    replayed: bool = False


class Done(_Value):
    """A command was carried out.

    `replayed`: its effect existed before, and nothing changed.
    """

    outcome: Literal["done"] = "done"
    replayed: bool = False
    counts: dict[str, int] = Field(default_factory=dict)


class Stated(_Value):
    """The agent's state, set by this call or by an earlier identical one (`replayed`).

    It may differ from the requested state: an agent who states `available` while holding accepted
    work is `on_call`.
    """

    outcome: Literal["stated"] = "stated"
    agent_id: int
    state: str
    since: datetime
    released: UUID | None = None
    """The offer that the change of state released."""
    replayed: bool = False


class Noted(_Value):
    """A heartbeat was stored; the agent's state and assignment.

    `state` None: the agent never stated one. `lease_expires_at`: the end of the lease of the
    agent's assignment, if there is one. The heartbeat extends the lease of accepted work, not of an
    offer.
    """

    outcome: Literal["noted"] = "noted"
    agent_id: int
    state: str | None
    assignment_id: UUID | None
    lease_expires_at: datetime | None


RequestAnswer = Assigned | Empty | Paused | Unavailable | TooLate | Refused
FinishAnswer = Finished | Unavailable | Refused
CommandAnswer = Done | Unavailable | Refused
StateAnswer = Stated | Unavailable | Refused
HeartbeatAnswer = Noted | Unavailable | Refused
Answer = RequestAnswer | Finished | Done | Stated | Noted

_ADAPTER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="outcome")])


def from_json(value: object) -> Answer:
    """Return the answer in these JSON values. Raises `pydantic.ValidationError` for others."""
    return _ADAPTER.validate_python(value)
