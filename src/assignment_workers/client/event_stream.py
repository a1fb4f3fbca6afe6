"""The state of a client that reads the gateway's live events, without I/O.

The state has the id of the last event that the client has received, and the time that the client
waits before it connects again.
"""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID

from httpx_sse import ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field

from assignment_workers.assignment.answers import Code
from assignment_workers.errors import AssignmentWorkersError

PATH = "/v1/events"
SILENT_SECONDS = 45.0
"""Seconds without a byte after which a connection counts as lost. The gateway sends at least a
comment every 15 seconds.
"""
AGAIN_SECONDS, AGAIN_AT_MOST = 0.5, 15.0
"""Seconds to wait before the first attempt to reconnect, and the limit of the wait later on.

The wait doubles with each failed attempt, up to the limit. If the gateway asks for a longer wait,
the client waits as long as the gateway asks, even if that is longer than the limit.
"""


class StreamedEvent(BaseModel):
    """An event that the gateway streams, such as an assignment, its end, a generation or a pause.

    An event of kind `reset` means that missed events cannot be sent any more; read the current
    state again. Values that the reader must not see, or that the event does not have, are None.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    """The position of the event among all events.

    To receive the events that follow, pass this value as `after` to the client's method `events`.
    """
    kind: str
    at: datetime | None = None
    term: int | None = None
    queue: str | None = None
    user_id: int | str | None = None
    agent_id: int | None = None
    assignment_id: UUID | None = None
    request_id: str | None = None
    generation_id: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class EventsRefused(AssignmentWorkersError):
    """The gateway refuses to stream events, for example because of the token."""

    def __init__(self, code: Code | str, reason: str) -> None:
        super().__init__(f"events: {reason}")
        self.code = code
        self.reason = reason


class EventPosition:
    """The position of a reader in the events. After a lost connection, reading continues there."""

    def __init__(self, agent_id: int | None, after: int | None) -> None:
        self.parameters = {} if agent_id is None else {"agent_id": str(agent_id)}
        self._last = after
        self._failed = 0
        self._retry_after = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers of the next attempt to connect, with the id of the last event."""
        return {} if self._last is None else {"Last-Event-ID": str(self._last)}

    def connected(self) -> None:
        """Reset the count of failed attempts to connect.

        Called when an attempt has succeeded: the gateway has just begun to stream events.
        """
        self._failed, self._retry_after = 0, 0.0

    def refused(self, status: int, body: object) -> None:
        """Handle a response of the gateway that is no event stream.

        Raises `EventsRefused` if a retry would not help. Otherwise `pause` will return at least the
        wait for which the gateway asked.
        """
        said = body if isinstance(body, dict) else {}
        soon = said.get("retry_after")
        self._retry_after = float(soon) if isinstance(soon, int | float) else 0.0
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return
        reason = str(said.get("detail") or f"HTTP status {status}")
        raise EventsRefused(str(said.get("code") or "malformed"), reason)

    def event(self, sent: ServerSentEvent) -> StreamedEvent | None:
        """Return the event in the message `sent`; None if the message has an id but no event.

        The id is remembered. After a lost connection, reading continues after this id.
        """
        if sent.id.isdecimal():
            self._last = int(sent.id)
        return StreamedEvent.model_validate_json(sent.data) if sent.data else None

    def pause(self) -> float:
        """Return the seconds to wait before the next attempt to connect."""
        seconds = AGAIN_SECONDS * (1 << min(self._failed, 5))
        self._failed += 1
        return max(min(seconds, AGAIN_AT_MOST), self._retry_after)
