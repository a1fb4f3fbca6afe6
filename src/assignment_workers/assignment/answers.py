"""Every answer a caller can get, as a closed union to `match` on, and its JSON."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Held(_Value):
    """An assignment as its agent sees it. `version` goes with every later word about it.

    `state` is 'active' unless the answer is a replay of one whose hold has ended since.
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
    """When its agent took it up; None: it is an offer, and lapses as one."""


class Code(StrEnum):
    """Why something was refused, for programs."""

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
    """The least time since the agent's last call is not over; `retry_after` says when."""
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
    """A command that the database saw later has set the same state since."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """No outcome has this name."""
    UNKNOWN_GENERATION = "unknown_generation"
    """No generation has this number, or it cannot be published."""
    UNAUTHENTICATED = "unauthenticated"
    """The gateway: no token, or none that is in force."""
    FORBIDDEN = "forbidden"
    """The gateway: this token may not do that, or not for that agent."""


class Assigned(_Value):
    """The user is this agent's. `replayed`: this was said before; nothing new was handed out."""

    outcome: Literal["assigned"] = "assigned"
    assignment: Held
    replayed: bool = False


class Empty(_Value):
    """Nothing was claimable when the transaction committed. `why` says so for each dialer queue."""

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
    """The database or the CRM cannot answer, or a dialer queue was never built: not empty."""

    outcome: Literal["unavailable"] = "unavailable"
    retry_after: float
    """Seconds."""
    reason: str


class TooLate(_Value):
    """The deadline had passed; nobody was assigned.

    `database_time`: what the database's clock said, for a client whose reading of it is behind.
    """

    outcome: Literal["too_late"] = "too_late"
    database_time: datetime | None = None
    """None: it was answered by a version before 0.2.0."""


class Refused(_Value):
    """The request cannot be met as it is; asking again unchanged gets the same.

    But where `retry_after` says when time will have mended it.
    """

    outcome: Literal["refused"] = "refused"
    code: Code
    reason: str
    retry_after: float | None = None
    """Seconds."""


Ended = Literal["completed", "skipped", "deferred", "closed", "released", "accepted", "renewed"]


class Finished(_Value):
    """The assignment is in this state by this call, or by an earlier one like it (`replayed`)."""

    outcome: Ended
    assignment: Held
    replayed: bool = False


class Done(_Value):
    """A command was carried out. `replayed`: it had been already, and nothing changed."""

    outcome: Literal["done"] = "done"
    replayed: bool = False
    counts: dict[str, int] = Field(default_factory=dict)


class Stated(_Value):
    """The agent's state is this, by this call or an earlier one like it (`replayed`).

    Not always as it was said: who says that they are available while they hold work is `on_call`.
    """

    outcome: Literal["stated"] = "stated"
    agent_id: int
    state: str
    since: datetime
    released: UUID | None = None
    """The offer that was taken back by it."""
    replayed: bool = False


class Noted(_Value):
    """A heartbeat was kept, and this is how the agent stands.

    `state` None: none was ever stated. `lease_expires_at` of what they hold, if anything, reckoned
    by this heartbeat where it counts: for work, not for an offer.
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
    """The answer in these JSON values; raises `pydantic.ValidationError` for anything else."""
    return _ADAPTER.validate_python(value)
