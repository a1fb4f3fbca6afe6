"""What an operation on the assignment queue works with: a transaction, an instant, a term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import ClauseElement, Connection

from assignment_workers.assignment.crm.reader import CrmReader
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.identity import new_id
from assignment_workers.policy.queues import POLICIES
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.pipeline import Rows, Statement, run_statements
from assignment_workers.schema.tables import DEFAULT_LANE, Event


class EventKind(StrEnum):
    """What an event tells. Each state change leaves one (guarantee 11)."""

    ASSIGNED = "assigned"
    """An agent was handed a user: an offer, until it is accepted."""
    COMPLETED = "completed"
    """The agent ended the call with an outcome; `actions` are what others are to do."""
    SKIPPED = "skipped"
    """The agent does not want this user; others are offered them after a rest."""
    DEFERRED = "deferred"
    """The agent put the user off until a time, for everyone."""
    CLOSED = "closed"
    """The agent took the user out of this dialer queue until an operator lifts it."""
    RELEASED = "released"
    """The user was given back untouched."""
    ACCEPTED = "accepted"
    """The agent took up the offer; the lease of work runs from here."""
    RENEWED = "renewed"
    """The agent renewed the lease."""
    EXPIRED = "expired"
    """Accepted work ended because its lease ran out without a sign of life."""
    OFFER_LAPSED = "offer_lapsed"
    """An offer ended because nobody accepted it in time."""
    AGENT_STATE = "agent_state"
    """An agent stated a state, or was set to one; changes by moves are in the moves' events."""
    TAKEN_OUT = "taken_out"
    """A user left the published generation, with the rule that they broke."""
    PUT_OFF = "put_off"
    """A user waits at their place until a time, with the rule that holds them back."""
    SUPPRESSED = "suppressed"
    """A user or phone number is not to be offered: do-not-contact, quarantine or closed."""
    SUPPRESSION_LIFTED = "suppression_lifted"
    """A suppression was lifted."""
    SUPPRESSION_LIST_CHANGED = "suppression_list_changed"
    """A list of suppressed numbers was loaded, replaced or dropped."""
    CONVERTED = "converted"
    """A user reached what their dialer queue is for, and left it."""
    DISCOVERED = "discovered"
    """A user is new: they have a score row, in the pool where they belong or in none."""
    POOL_CHANGED = "pool_changed"
    """A user belongs to another dialer queue, or to none, from now on."""
    CALLBACK_PROMISED = "callback_promised"
    """A callback was promised for a time."""
    CALLBACK_KEPT = "callback_kept"
    """The promised call was made."""
    CALLBACK_POSTPONED = "callback_postponed"
    """A callback is due again later."""
    CALLBACK_CANCELLED = "callback_cancelled"
    """A callback will not be made."""
    CALLBACK_SUPERSEDED = "callback_superseded"
    """The user was promised another callback, which replaces this one."""
    CALLBACK_ENDED_ELSEWHERE = "callback_ended_elsewhere"
    """Another program had ended the callback when its call ended; it stays as that left it."""
    MISSED_CALL_FOLLOWED_UP = "missed_call_followed_up"
    """A user whose call was missed was called back."""
    MISSED_CALL_CANCELLED = "missed_call_cancelled"
    """A missed call needs no call back any more."""
    MISSED_CALL_FOR_OPERATOR = "missed_call_for_operator"
    """A missed call fits no user, or several: an operator decides."""
    GENERATION_PUBLISHED = "generation_published"
    """A generation is the one that its dialer queue hands out from."""
    GENERATION_RETIRED = "generation_retired"
    """A newer generation took its place."""
    GENERATION_FAILED = "generation_failed"
    """A build failed; what is published stays."""
    QUEUE_PAUSED = "queue_paused"
    """An operator paused the dialer queue: nobody is handed out from it."""
    QUEUE_RESUMED = "queue_resumed"
    """An operator resumed the dialer queue."""
    TERM_BEGUN = "term_begun"
    """A sequencer leads the lane from here on, with a new term."""
    CLOCK_STEPPED = "clock_stepped"
    """The database's clock is ahead of, or behind, where it would have been by `seconds`."""
    RACE = "ASSIGNMENT_RACE_CONDITION"
    """A race was met and resolved; `kind` names it, `done` is what was done."""


class OtherLanes(Exception):
    """The turn has to be taken again from its start, with the rows of these lanes locked too."""

    def __init__(self, lanes: frozenset[str]) -> None:
        super().__init__(f"needs {', '.join(sorted(lanes))}")
        self.lanes = lanes


class ClaimBudgetExceeded(Exception):
    """So much was seen to in this transaction that it should commit before the search goes on."""


@dataclass(frozen=True)
class FencedTransaction:
    """One transaction that has its lane's row lock: nothing else of the lane runs.

    `now` is the database's clock, read after the lock was gained, so turns never overlap in time.
    """

    connection: Connection
    now: datetime
    term: int
    randomness: Random = field(default_factory=Random)
    races: list[dict[str, Any]] = field(default_factory=list)
    """The events of races that were left in this turn: told in the log once it has committed."""
    lanes: Lanes = ONE_LANE
    locked: frozenset[str] = frozenset({DEFAULT_LANE})
    """The lanes whose rows this transaction has locked."""
    first: Sequence[Rows] = ()
    """The rows of the statements that went with the proof of the term."""
    last: list[Statement] | None = None
    """What goes with the commit, for the line; None: nobody sees to that, and nothing waits."""

    def has(self, queue: str) -> bool:
        """Whether nothing else of this dialer queue's lane runs."""
        return self.lanes.is_one or self.lanes.of(queue) in self.locked

    @property
    def queues_of_other_lanes(self) -> list[str]:
        """The dialer queues of other lanes; what is theirs is not this transaction's to write."""
        return [] if self.lanes.is_one else [each for each in POLICIES if not self.has(each)]

    def require_lanes(self, *queues: str) -> None:
        """Go on only if nothing else of these dialer queues' lanes runs.

        To be called before the first write to what is theirs: published entries, assignments, a
        pause. Raises `OtherLanes` where it is not so; then the line takes the turn again, holding
        those rows too, locked in the order of their names. With one lane it costs a comparison.
        """
        if not self.lanes.is_one:
            self._require(map(self.lanes.of, queues))

    def require_all_lanes(self) -> None:
        """The same for every lane."""
        if not self.lanes.is_one:
            self._require(self.lanes.names)

    def _require(self, lanes: Iterable[str]) -> None:
        if lacking := frozenset(lanes) - self.locked:
            raise OtherLanes(lacking)

    @cached_property
    def crm_reader(self) -> CrmReader:
        """How this turn sees the CRM."""
        return CrmReader(self.connection, run=self.run)

    def run(self, *asks: Statement) -> list[Rows]:
        """The rows of each of these statements, which go in one trip."""
        return run_statements(self.connection, *asks)

    def defer_write(self, statement: ClauseElement, parameters: Mapping[str, Any]) -> None:
        """Write this once the operation is done, in one trip with the commit: both or neither.

        For what nothing in the rest of the turn reads or builds on.
        """
        asked = Statement(statement, parameters)
        if self.last is None:
            self.run(asked)
        else:
            self.last.append(asked)

    def new_id(self) -> UUID:
        """A fresh id for something made in this turn."""
        return new_id(self.now, self.randomness)

    def record(self, *events: dict[str, Any]) -> None:
        """Leave events in the transaction that makes the changes they tell of."""
        if events:
            self.connection.execute(RECORD, {"events": self.dated(events)})

    def dated(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of these events, for `RECORD`."""
        self.races.extend(event for event in events if event["kind"] == EventKind.RACE)
        return [{"details": {}, **event, "at": self.now, "term": self.term} for event in events]

    def race(self, kind: str, **facts: object) -> None:
        """Leave the event of a race that was met and resolved; see `raced`."""
        self.record(raced(kind, **facts))


def raced(kind: str, **facts: object) -> dict[str, Any]:
    """The event of a race that was met and resolved: what it was, and what was done.

    `facts` are columns of an event, or `done` and others for its details.
    """
    columns = {name: facts.pop(name) for name in list(facts) if name in _COLUMNS}
    return {"kind": EventKind.RACE, **columns, "details": {"kind": kind, **facts}}


_COLUMNS = {"queue", "user_id", "agent_id", "assignment_id", "request_id", "generation_id"}

RECORD = insert_rows(
    Event,
    Event.at,
    Event.kind,
    Event.term,
    Event.queue,
    Event.user_id,
    Event.agent_id,
    Event.assignment_id,
    Event.request_id,
    Event.generation_id,
    Event.details,
    parameter="events",
)
