"""The context of an operation on the assignment queue: a transaction, its time and its term."""

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

from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import CrmReader
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.identity import new_id
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.pipeline import Rows, Statement, run_statements
from assignment_workers.schema.tables import DEFAULT_LANE, Event


class EventKind(StrEnum):
    """Kinds of events. Each change of state is recorded as an event of one of these kinds."""

    ASSIGNED = "assigned"
    """An agent was assigned a user: an offer, until it is accepted."""
    COMPLETED = "completed"
    """The agent ended the call with an outcome; `actions` lists tasks for other systems."""
    SKIPPED = "skipped"
    """The agent skipped the user.

    No agent is offered the user for the time in the setting `skip_everyone`, by default 15 minutes.
    The agent who skipped is not offered the user for the time in `skip_agent`, by default an hour.
    """
    DEFERRED = "deferred"
    """The agent postponed the user: no agent is offered the user before a certain time."""
    CLOSED = "closed"
    """The agent closed this dialer queue for the user.

    A suppression of the kind `closed` keeps the user out of the dialer queue until an operator
    lifts the suppression.
    """
    RELEASED = "released"
    """The assignment was ended without a call; the user is claimable again."""
    ACCEPTED = "accepted"
    """The agent accepted the offer; the lease of the accepted assignment starts."""
    RENEWED = "renewed"
    """The agent renewed the lease."""
    EXPIRED = "expired"
    """An accepted assignment ended because its lease expired without a heartbeat or a renewal."""
    OFFER_LAPSED = "offer_lapsed"
    """An offer ended because its agent did not accept it in time."""
    AGENT_STATE = "agent_state"
    """An agent's state was set by the agent, an operator or a job.

    If a command about an assignment changes the state, only the command's event records the change.
    """
    TAKEN_OUT = "taken_out"
    """A user was removed from the published generation; the event's `reason` says why.

    The reason is the name of the broken rule, or `drained` if an operator drained the queue.
    """
    PUT_OFF = "put_off"
    """A claim made a user wait, because a rule excludes the user for a time.

    The user keeps the position in the dialer queue. The event's `reason` is the name of the rule,
    and `until` is the time at which the wait ends. If an agent postpones the user, the kind is
    `deferred` instead.
    """
    SUPPRESSED = "suppressed"
    """A user or phone number was suppressed: do not contact, quarantine or closed."""
    SUPPRESSION_LIFTED = "suppression_lifted"
    """A suppression was lifted."""
    SUPPRESSION_LIST_CHANGED = "suppression_list_changed"
    """A list of suppressed numbers was put in force or dropped."""
    CONVERTED = "converted"
    """A user converted (reached the goal of the dialer queue), and left the dialer queue."""
    DISCOVERED = "discovered"
    """A new user of the CRM received a score row, with a dialer queue or without one."""
    POOL_CHANGED = "pool_changed"
    """A user's score row was moved to another dialer queue."""
    CALLBACK_PROMISED = "callback_promised"
    """A callback was promised for a time."""
    CALLBACK_KEPT = "callback_kept"
    """The promised call was made."""
    CALLBACK_POSTPONED = "callback_postponed"
    """A callback was postponed."""
    CALLBACK_CANCELLED = "callback_cancelled"
    """A callback was cancelled."""
    CALLBACK_SUPERSEDED = "callback_superseded"
    """The user was promised another callback, which replaces this one."""
    CALLBACK_ENDED_ELSEWHERE = "callback_ended_elsewhere"
    """Another program ended the callback while an agent had the assignment for it.

    The callback stays as that program left it.
    """
    MISSED_CALL_FOLLOWED_UP = "missed_call_followed_up"
    """The user of a missed call was called back."""
    MISSED_CALL_CANCELLED = "missed_call_cancelled"
    """A missed call was cancelled, because it no longer needs a follow-up."""
    MISSED_CALL_FOR_OPERATOR = "missed_call_for_operator"
    """A missed call needs an operator: its caller is unclear, or may not be called."""
    GENERATION_PUBLISHED = "generation_published"
    """A generation was published: its dialer queue hands out users from it."""
    GENERATION_RETIRED = "generation_retired"
    """A newer generation replaced a generation."""
    GENERATION_FAILED = "generation_failed"
    """A build failed; the published generation stays."""
    QUEUE_PAUSED = "queue_paused"
    """An operator paused the dialer queue; it hands out no user."""
    QUEUE_RESUMED = "queue_resumed"
    """An operator resumed the dialer queue."""
    SETTINGS_CHANGED = "settings_changed"
    """Operational settings were changed, or their first values were stored."""
    WAIT_ENDED = "wait_ended"
    """A user who waited because of a rule is claimable again, because the settings have changed."""
    TERM_BEGUN = "term_begun"
    """A sequencer began to lead the lane, with a new term."""
    CLOCK_STEPPED = "clock_stepped"
    """The database's clock jumped by more than a second.

    The detail `seconds` is the size of the jump; it is negative if the clock went back. The detail
    `lane` is the lane whose sequencer noticed the jump.
    """
    RACE = "ASSIGNMENT_RACE_CONDITION"
    """A conflict between two writers (a race) was detected and resolved.

    The event's detail `kind` is the name of the race. The detail `done` says how the race was
    resolved.
    """


class OtherLanes(Exception):
    """Raised to restart the transaction with the rows of the lanes `lanes` locked as well."""

    def __init__(self, lanes: frozenset[str]) -> None:
        super().__init__(f"needs {', '.join(sorted(lanes))}")
        self.lanes = lanes


class ClaimBudgetExceeded(Exception):
    """Raised when a transaction has judged as many users as one transaction may.

    The transaction must commit, and the claim continues in another one.
    """


@dataclass(frozen=True)
class FencedTransaction:
    """A transaction in which the sequencer of a lane writes.

    The transaction holds the lock on the lane's row. So no other fenced transaction of the lane
    runs meanwhile, and the fenced transactions of a lane never overlap in time. `now`: the time of
    the database's clock, which was read after the lock was obtained.

    A term is a sequencer's right to write: a number that grows, and a random id. `term`: the number
    of the sequencer's term. This term was proved to be the lane's present one.
    """

    connection: Connection
    now: datetime
    term: int
    dialer: Dialer
    """The definition of the dialer that this process has loaded: its dialer queues and outcomes.

    It does not include the calling rules that come from the settings, such as calling hours.
    """
    randomness: Random = field(default_factory=Random)
    races: list[dict[str, Any]] = field(default_factory=list)
    """The events of races (conflicts between two writers) that this transaction recorded.

    They are logged after the commit.
    """
    crm: Crm | None = None
    """The external CRM; None if the CRM is in our own database."""
    lanes: Lanes = ONE_LANE
    locked: frozenset[str] = frozenset({DEFAULT_LANE})
    """The lanes whose rows this transaction has locked."""
    first: Sequence[Rows] = ()
    """Results of the first reads, such as the look-up of a command's stored answer.

    These reads were sent in one round trip with the check of the term.
    """
    settings_id: UUID | None = None
    """The id of the version of the operational settings in force; None: no version is stored."""
    last: list[Statement] | None = None
    """Deferred writes, which are sent in one round trip with the commit.

    None: writes are not deferred but executed at once.
    """

    def has(self, queue: str) -> bool:
        """Return True if this transaction has locked the lane of the dialer queue."""
        return self.lanes.is_one or self.lanes.of(queue) in self.locked

    @property
    def queues_of_other_lanes(self) -> list[str]:
        """The dialer queues in those lanes that this transaction has not locked.

        The transaction must not change these dialer queues.
        """
        return (
            []
            if self.lanes.is_one
            else [each for each in self.dialer.policies if not self.has(each)]
        )

    def require_lanes(self, *queues: str) -> None:
        """Ensure that this transaction has locked the lanes of these dialer queues.

        Call this before the first write that concerns these dialer queues. That is a write to an
        assignment, to the pause of a dialer queue, or to an entry (the position of a user) in a
        published generation. Raises `OtherLanes` if a lane is not locked. The transaction runner
        then restarts the transaction and also locks the rows of the lanes that were not locked, in
        the order of the lanes' names. With one lane the cost is a comparison.
        """
        if not self.lanes.is_one:
            self._require(map(self.lanes.of, queues))

    def require_all_lanes(self) -> None:
        """Ensure that this transaction has locked every lane. Raises `OtherLanes` if it has not."""
        if not self.lanes.is_one:
            self._require(self.lanes.names)

    def _require(self, lanes: Iterable[str]) -> None:
        if lacking := frozenset(lanes) - self.locked:
            raise OtherLanes(lacking)

    @cached_property
    def crm_reader(self) -> CrmReader:
        """The reader of the CRM in this transaction."""
        return CrmReader(self.connection, self.dialer, self.crm, run=self.run)

    def run(self, *asks: Statement) -> list[Rows]:
        """Execute the statements `asks` in one round trip; return the rows of each statement."""
        return run_statements(self.connection, *asks)

    def defer_write(self, statement: ClauseElement, parameters: Mapping[str, Any]) -> None:
        """Add a write to those that are executed at the end, in one round trip with the commit.

        Use this only for rows that nothing in the rest of the transaction reads or depends on. The
        field `last` is the list of these writes; if it is None, the write is executed at once.
        """
        asked = Statement(statement, parameters)
        if self.last is None:
            self.run(asked)
        else:
            self.last.append(asked)

    def new_id(self) -> UUID:
        """Return a new id for a row of this transaction."""
        return new_id(self.now, self.randomness)

    def record(self, *events: dict[str, Any]) -> None:
        """Record events in this transaction.

        Call this in the transaction that makes the changes that the events describe. So a change
        and its event are committed together, or neither is.
        """
        if events:
            self.connection.execute(RECORD, {"events": self.dated(events)})

    def dated(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the events with this transaction's time and term, for the statement `RECORD`.

        Events of races (conflicts between two writers) are also added to the field `races`.
        """
        self.races.extend(event for event in events if event["kind"] == EventKind.RACE)
        return [{"details": {}, **event, "at": self.now, "term": self.term} for event in events]

    def race(self, kind: str, **facts: object) -> None:
        """Record that a conflict between two writers (a race) was detected and resolved.

        `kind`: the name of the race. `facts`: more about it, by name. The fact `done` is a text
        that says how the race was resolved. A fact with the name of a column of the events, such as
        `user_id`, is stored in that column; every other fact is stored in the event's details.
        """
        self.record(raced(kind, **facts))


def sent_by(sender: str | None) -> dict[str, str]:
    """Return the detail `sent_by` for the event of a command that was sent on behalf of an agent.

    `sender`: the name of the API token with which a caller other than the agent sent the command,
    such as `token 0a12`. None: the command was sent with the agent's own token, or with none; then
    the result is empty.
    """
    return {} if sender is None else {"sent_by": sender}


def raced(kind: str, **facts: object) -> dict[str, Any]:
    """Return the event of a conflict between two writers (a race) that was detected and resolved.

    `kind`: the name of the race. `facts`: more about it, by name. The fact `done` is a text that
    says how the race was resolved. A fact with the name of a column of the events, such as
    `user_id`, becomes the value of that column; every other fact becomes one of the details.
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
