"""The offers that a client or gateway remembers as accepted by a heartbeat.

The first heartbeat that names an offer sends a command that accepts the offer. While the offer is
remembered, later heartbeats that name the offer send no second accept command.
"""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

KNOWN_AT_MOST = 10_000


class Accepted:
    """The last 10,000 offers (`KNOWN_AT_MOST`) that agents accepted through one client or gateway.

    Each client over Celery and each gateway process has an object of its own. An older offer is
    forgotten. If a heartbeat names a forgotten offer, the accept command is sent again.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, str], None] = OrderedDict()

    def knows(self, agent: int, assignment: UUID | str) -> bool:
        """Return True if this agent is remembered to have accepted the assignment."""
        return (agent, str(assignment)) in self._known

    def add(self, agent: int, assignment: UUID | str) -> None:
        """Remember that this agent accepted the assignment."""
        self._known[agent, str(assignment)] = None
        if len(self._known) > KNOWN_AT_MOST:
            self._known.popitem(last=False)
