"""An agent's ask for a user, as the claim takes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ClaimRequest:
    """One ask. `queue` None: any dialer queue that the agent is allowed, in the policies' order.

    `deadline`: from this instant of the database's clock on nobody is assigned; None: no limit.
    `sent_at`: when it was sent, for the records only.
    """

    agent_id: int
    request_id: str
    queue: str | None = None
    deadline: datetime | None = None
    sent_at: datetime | None = None

    def __hash__(self) -> int:
        return hash(self.request_id)  # the key of many a table here, and nearly always enough
