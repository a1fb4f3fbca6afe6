"""An agent's request for a user, as the claim receives it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ClaimRequest:
    """One request of an agent for a user.

    `queue`: the dialer queue that the user has to come from. If None, the user may come from any
    dialer queue that the agent is allowed. These queues are tried one after the other. Queues that
    are in the setting `queue_priority` come first, in the order that the setting has for the
    agent's team. The other queues follow, in the order in which the dialer defines them.

    `deadline`: from this instant of the database's clock on, no user is assigned; None: no limit.
    `sent_at`: the time of sending. `sent_by`: the name of the API token with which a caller other
    than the agent sent the request for the agent, if any. Both are only recorded.
    """

    agent_id: int
    request_id: str
    queue: str | None = None
    deadline: datetime | None = None
    sent_at: datetime | None = None
    sent_by: str | None = None

    def __hash__(self) -> int:
        return hash(self.request_id)  # a frequent key of dictionaries; ids nearly always differ
