"""What agents state, and what their moves and their silence make of it, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from assignment_workers.assignment.answers import Code
from tests.support.world import HOUR

AT_WORK = {"available", "on_call", "wrap_up"}
SILENT = 2 * HOUR


@dataclass(frozen=True)
class Limits:
    """What a session may have at the most; None: it has no such limit."""

    calls: int | None = None
    gap: timedelta | None = None
    interval: timedelta | None = None


@dataclass
class Agent:
    """How an agent stands. `is_kept`: something of it was written down."""

    is_kept: bool = False
    state: str | None = None
    since: datetime | None = None
    session_began: datetime | None = None
    working_since: datetime | None = None
    last_call_ended_at: datetime | None = None
    calls: int = 0
    offers_lapsed: int = 0
    seen_at: datetime | None = None
    asked_at: datetime | None = None

    def moves(self, becomes: str, now: datetime, *, calls: int = 0) -> None:
        """Who works goes from state to state; who is on break or offline stays so."""
        if not self.is_kept:
            return
        if self.state in AT_WORK and self.state != becomes:
            self.state, self.since = becomes, now
        if calls:
            self.last_call_ended_at = now
        self.calls += calls
        self.offers_lapsed = 0

    def lets_lapse(self, now: datetime, most: int) -> None:
        """An offer was not accepted in time; so many in a row, and they are on break."""
        self.is_kept = True
        self.offers_lapsed += 1
        if self.offers_lapsed >= most and self.state != "offline":
            self.state, self.since = "break", now
            self.session_began = self.session_began or now

    def states(self, becomes: str, now: datetime) -> None:
        self.is_kept = True
        if becomes == "offline":
            self.session_began = self.working_since = None
        else:
            if self.session_began is None:
                self.session_began, self.calls, self.working_since = now, 0, now
            if self.state == "break" and becomes != "break":
                self.working_since = now
        if becomes == "available":
            self.offers_lapsed = 0
        self.state, self.since = becomes, now

    def turned_away(self, now: datetime, limits: Limits) -> Code | None:
        """Why they are handed nobody; who never stated anything is served."""
        working, ended = self.working_since, self.last_call_ended_at
        reasons = (
            (Code.ON_BREAK, self.state == "break"),
            (Code.OFFLINE, self.state == "offline"),
            (Code.SESSION_LIMIT, limits.calls is not None and self.calls >= limits.calls),
            (Code.BREAK_DUE, limits.interval and working and working + limits.interval <= now),
            (Code.CALL_GAP, limits.gap and ended and ended + limits.gap > now),
        )
        return next((code for code, is_so in reasons if is_so), None) if self.state else None

    def lives_until(
        self, accepted_at: datetime | None, now: datetime, lease: timedelta
    ) -> datetime | None:
        """Until when a sign of life keeps accepted work; None: it does not."""
        if accepted_at is None or self.seen_at is None or self.seen_at <= accepted_at:
            return None
        until = self.seen_at + lease
        return until if until > now else None

    def is_silent(self, now: datetime) -> bool:
        """A session is open, and nothing was heard of them for two hours."""
        signs = (self.since, self.last_call_ended_at, self.seen_at)
        last = max(at for at in signs if at is not None) if any(signs) else None
        asked = self.asked_at is not None and self.asked_at > now - SILENT
        is_open = self.state not in {None, "offline"}
        return is_open and last is not None and last < now - SILENT and not asked
