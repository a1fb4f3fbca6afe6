"""Every answer that a caller can get, as a closed union for `match`, and its JSON."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from assignment_workers.identity import UserId


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)


class Held(_Value):
    """An assignment as its agent sees it.

    The agent sends `version` with each later command about the assignment. `state` is 'active',
    except in a replayed answer whose assignment has ended since.
    """

    id: UUID
    user_id: UserId
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

    @property
    def user_number(self) -> int:
        """The user's internal integer id, which is the value of `user_id` inside the workers.

        Outside the workers, `user_id` may be the CRM's id of the user, a text. Then this property
        raises `TypeError`.
        """
        if not isinstance(self.user_id, int):
            raise TypeError("only the workers know the number of this user")
        return self.user_id


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
    """The agent may not be assigned users of this dialer queue."""
    ON_BREAK = "on_break"
    """The agent is on break."""
    OFFLINE = "offline"
    """The agent is offline."""
    SESSION_LIMIT = "session_limit"
    """The agent has made as many calls as a session may have."""
    BREAK_DUE = "break_due"
    """The agent has worked for the longest time that is allowed without a break."""
    CALL_GAP = "call_gap"
    """The minimum time since the agent's last call is not over; `retry_after`: the seconds left."""
    REQUEST_ID_TAKEN = "request_id_taken"
    """Another agent used this request id."""
    UNKNOWN_USER = "unknown_user"
    """No user has this id."""
    NOT_SUPPRESSED = "not_suppressed"
    """The suppression that was to be lifted does not exist or was lifted already."""
    FORGOTTEN = "forgotten"
    """The user was erased from the records, and stays suppressed."""
    UNKNOWN_ASSIGNMENT = "unknown_assignment"
    """No assignment has this id."""
    NOT_OWNER = "not_owner"
    """Another agent has the assignment."""
    NOT_ACTIVE = "not_active"
    """The assignment has ended."""
    STALE_VERSION = "stale_version"
    """The command names a version of the assignment other than the present one."""
    SUPERSEDED = "superseded"
    """A command that was sent later was carried out first; this one would undo its effect."""
    UNKNOWN_OUTCOME = "unknown_outcome"
    """The dialer has no outcome with the name that the command gives."""
    UNKNOWN_GENERATION = "unknown_generation"
    """No generation has this number, or it cannot be published."""
    UNAUTHENTICATED = "unauthenticated"
    """The call to the gateway has no token, or a token that is not valid (any more)."""
    FORBIDDEN = "forbidden"
    """The gateway does not allow this HTTP request.

    The token's role may not send such a request, or the token belongs to another agent. Or the
    request came from a page of another site, or a form was not sent from a page of the dashboard.
    """


class Assigned(_Value):
    """The request was met: its agent holds the user of `assignment`.

    `replayed`: True if an earlier copy of this request made the assignment.
    """

    outcome: Literal["assigned"] = "assigned"
    assignment: Held
    replayed: bool = False


class Empty(_Value):
    """No user was claimable for the agent when the transaction committed.

    `why` maps the name of each dialer queue to the reason.
    """

    outcome: Literal["empty"] = "empty"
    queue: str | None
    retry_after: float
    """Seconds after which to ask again, because a user may be claimable then."""
    why: dict[str, str]


class Paused(_Value):
    """An operator has paused every dialer queue from which the request could get a user."""

    outcome: Literal["paused"] = "paused"
    queue: str | None


class Unavailable(_Value):
    """The request or command could not be carried out now, and may be sent again.

    The reasons: the database, the CRM or the broker does not answer, or a dialer queue was never
    built. The answer `empty` is different: it says that no user is claimable.
    """

    outcome: Literal["unavailable"] = "unavailable"
    retry_after: float
    """Seconds after which to send the request again."""
    reason: str


class TooLate(_Value):
    """The deadline of the request had passed, so no user was assigned.

    `database_time`: the time of the database's clock when the deadline was checked. Some clients
    keep an estimate of that clock's present time. If the estimate is earlier than `database_time`,
    the client can set it to `database_time`.
    """

    outcome: Literal["too_late"] = "too_late"
    database_time: datetime | None = None
    """Time of the database's clock when the deadline was checked.

    None: a version before 0.2.0 made the answer.
    """


class Refused(_Value):
    """The request cannot be met; the same request gets the same answer again.

    Exception: with `retry_after`, the same request may succeed once that time has passed.
    """

    outcome: Literal["refused"] = "refused"
    code: Code
    reason: str
    retry_after: float | None = None
    """Seconds after which the same request may succeed; None: never."""


Ended = Literal["completed", "skipped", "deferred", "closed", "released", "accepted", "renewed"]


class Finished(_Value):
    """A command about an assignment was carried out; `outcome` is what was done.

    `replayed`: True if an earlier identical command did it, and this one changed nothing.
    """

    outcome: Ended
    assignment: Held
    replayed: bool = False


class Done(_Value):
    """A command was carried out; `counts` has numbers about it.

    `replayed`: True if the command's effect existed before, and nothing changed.
    """

    outcome: Literal["done"] = "done"
    replayed: bool = False
    counts: dict[str, int] = Field(default_factory=dict)


class Stated(_Value):
    """The agent's state was set, by this command or by an earlier identical one (`replayed`).

    `state` may differ from the requested one: an agent who states `available` while holding
    accepted work is `on_call`.
    """

    outcome: Literal["stated"] = "stated"
    agent_id: int
    state: str
    since: datetime
    released: UUID | None = None
    """The id of the offer that the change of state released, if any."""
    replayed: bool = False


class Noted(_Value):
    """A heartbeat was stored; the answer has the agent's state and the end of the agent's lease.

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
    """Return the answer in a decoded JSON value.

    Raises `pydantic.ValidationError` for a value that is not an answer.
    """
    return _ADAPTER.validate_python(value)
