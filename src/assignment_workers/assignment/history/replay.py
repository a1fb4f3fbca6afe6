"""Replay recorded events in order, and find the events that break a guarantee.

The replay keeps a model of the state that the events describe: the active assignments with their
leases, the published generations, the paused dialer queues, and the claimable users with their
ranks. Each event is checked against this state, and then changes it. The module does not use the
database: its input is recorded events (`Fact`), and its output is broken guarantees (`Breach`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from assignment_workers.assignment.active_assignments import MADE_BY_DIALER
from assignment_workers.assignment.history.claimable_set import ClaimableSet
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.schema.tables import DEFAULT_LANE, AgentStatus
from assignment_workers.settings import Settings


class Fact(NamedTuple):
    """One recorded event, with the fields that the check of the history needs.

    `rank` is set for a new assignment, `lease_expires_at` for a new or renewed one. `until` is the
    time from which a user who has to wait is claimable again. `term` is the term of the sequencer
    that made the change; None for an event that was recorded without a term.
    """

    id: int
    at: datetime
    kind: str
    term: int | None
    queue: str | None
    user_id: int | None
    agent_id: int | None
    assignment_id: str | None
    request_id: str | None
    generation_id: int | None
    rank: int | None = None
    lease_expires_at: datetime | None = None
    until: datetime | None = None
    reassigned_from: str | None = None
    """For an assignment that an operator moved to this agent: the assignment that it replaces."""
    source: str | None = None
    """For a new assignment: `callback`, `missed_call`, or None for a user from a dialer queue."""
    source_id: str | None = None
    scheduled_for: datetime | None = None
    kept_for: int | None = None
    """For an assignment made for a callback: the only agent who could get the user, if any."""
    state: str | None = None
    """For a change of an agent's state: the new state."""
    lane: str | None = None
    """For the beginning of a sequencer's term: the sequencer's lane; None: the default lane."""

    @property
    def is_dialers(self) -> bool:
        """True if an adopted dialer made the assignment itself, by a SQL statement.

        An adopted dialer is an existing one whose tables and claims this system has taken over.
        """
        return (self.request_id or "").startswith(MADE_BY_DIALER)


@dataclass(frozen=True)
class Breach:
    """A broken guarantee (by number), and the id of the event that breaks it.

    The guarantees are numbered in docs/how-it-works.md. The id is 0 if a stored row, not an event,
    shows the breach. `what`: a description.
    """

    guarantee: int
    event: int
    what: str


@dataclass(slots=True)
class ReplayedAssignment:
    """An assignment that is active at the present point of the replay."""

    assignment: str
    agent: int
    user: int
    lease_until: datetime
    queue: str | None = None
    accepted: bool = False
    """False while the assignment is an offer that the agent has not accepted."""


KINDS_WITHOUT_TERM = {
    EventKind.CALLBACK_SUPERSEDED,
    EventKind.DISCOVERED,
    EventKind.GENERATION_FAILED,
    EventKind.MISSED_CALL_FOR_OPERATOR,
    EventKind.RACE,
}
"""Kinds of events that may be recorded without a term, the fencing token of a sequencer.

Processes that are no sequencers have no term, but may record events of these kinds. The events of
these kinds do not change which users are claimable.
"""


class Replay:
    """A check that replays recorded events in the order of their ids to find broken guarantees.

    The replay keeps the state that the events describe, such as the active assignments and the
    claimable users. Each event (`Fact`) is checked against this replayed state, and then changes
    it. `breaches`: the broken guarantees found so far. `settings`: the settings in force at the
    first event. `later`: the settings after each later change, in order. `bound`: the longest time
    that an assignment may outlast its lease while a sequencer leads. An event costs a few
    microseconds, whatever a generation's size.
    """

    def __init__(
        self, settings: Settings, *, bound: timedelta, later: Sequence[Settings] = ()
    ) -> None:
        self.breaches: list[Breach] = []
        self._settings = settings
        self._later = deque(later)
        self._skip_at_most = max(each.skip_agent for each in (settings, *later))
        self._bound = bound
        self._lanes = lanes_of(settings)
        self._at: dict[str, datetime] = {}
        """By lane: the time of the lane's last transaction."""
        self._terms: dict[str, int] = {}
        """By lane: the highest number of a sequencer's term in the events replayed so far."""
        self._lane_of: dict[int, str] = {}
        """By number of a term (a sequencer's fencing token): the lane that the sequencer leads."""
        self._silences: dict[str, list[tuple[datetime, datetime]]] = {}
        """By lane: periods in which the lane may have had no leader, or the clock was set forward.

        Each period begins with the last event before a new term, or before a step of the clock, and
        ends when that term begins or that step is recorded.
        """
        self._holds: dict[str, ReplayedAssignment] = {}
        self._by_user: dict[int, ReplayedAssignment] = {}
        self._by_agent: dict[int, ReplayedAssignment] = {}
        self._published: dict[str, int] = {}
        self._retired: Fact | None = None
        """The event that retired a generation, until the event that publishes the next one.

        The two events must follow each other directly.
        """
        self._failed: set[int] = set()
        self._claimable_sets: dict[str, ClaimableSet] = {}
        self._paused: set[str] = set()
        self._skipped: dict[int, dict[int, datetime]] = {}
        """By agent: the skipped users and the time of each skip, the earliest first."""
        self._resting: dict[int, datetime] = {}
        """By user: the time until which the user is offered to no agent."""
        self._completed: dict[int, str] = {}
        """By user: the id of the last completed assignment."""
        self._released: dict[int, tuple[str, datetime]] = {}
        """By user: id and end of the last assignment that was released or expired."""
        self._requests: set[str] = set()
        self._away: dict[int, str] = {}
        """The state of each agent who is on break or offline, by agent."""
        self._done: set[str] = set()
        """Ids of callbacks and missed calls that have ended."""
        self._tellers: dict[str, Callable[[Fact], None]] = {
            EventKind.ASSIGNED: self._assigned,
            EventKind.COMPLETED: self._was_completed,
            EventKind.SKIPPED: self._was_skipped,
            EventKind.DEFERRED: self._was_deferred,
            EventKind.CLOSED: self._was_closed,
            EventKind.RELEASED: self._given_back,
            EventKind.EXPIRED: self._expired,
            EventKind.OFFER_LAPSED: self._expired,
            EventKind.ACCEPTED: self._renewed,
            EventKind.RENEWED: self._renewed,
            EventKind.AGENT_STATE: self._stated,
            EventKind.CALLBACK_PROMISED: self._promised,
            EventKind.CALLBACK_KEPT: self._promise_ended,
            EventKind.CALLBACK_POSTPONED: self._nothing,
            EventKind.CALLBACK_CANCELLED: self._promise_ended,
            EventKind.CALLBACK_SUPERSEDED: self._promise_ended,
            EventKind.CALLBACK_ENDED_ELSEWHERE: self._nothing,
            EventKind.MISSED_CALL_FOLLOWED_UP: self._promise_ended,
            EventKind.MISSED_CALL_CANCELLED: self._promise_ended,
            EventKind.MISSED_CALL_FOR_OPERATOR: self._promise_ended,
            EventKind.TAKEN_OUT: self._taken_out,
            EventKind.PUT_OFF: self._put_off,
            EventKind.CONVERTED: self._converted,
            EventKind.GENERATION_PUBLISHED: self._was_published,
            EventKind.GENERATION_RETIRED: self._was_retired,
            EventKind.GENERATION_FAILED: self._was_failed,
            EventKind.QUEUE_PAUSED: self._was_paused,
            EventKind.QUEUE_RESUMED: self._was_resumed,
            EventKind.SETTINGS_CHANGED: self._settings_changed,
            EventKind.WAIT_ENDED: self._wait_ended,
            EventKind.DISCOVERED: self._nothing,
            EventKind.POOL_CHANGED: self._nothing,
            EventKind.SUPPRESSED: self._nothing,
            EventKind.SUPPRESSION_LIFTED: self._nothing,
            EventKind.SUPPRESSION_LIST_CHANGED: self._nothing,
            # Workers of 0.1.0 that still run during an upgrade record these kinds.
            "barred": self._nothing,
            "bar_lifted": self._nothing,
            EventKind.TERM_BEGUN: self._nothing,
            EventKind.CLOCK_STEPPED: self._nothing,
            EventKind.RACE: self._nothing,
        }

    def led(self, lane: str, terms: Collection[int]) -> None:
        """Record that these terms belong to the lane.

        `terms`: the numbers of terms (the fencing tokens of sequencers). Most events name a term
        but no lane, so the replay finds the event's lane by the term. A term in `terms` may have
        begun before the first replayed event or during the replayed period.
        """
        self._lane_of |= dict.fromkeys(terms, lane)

    def stood(self, hold: ReplayedAssignment) -> None:
        """Add an active assignment to the state against which later events are checked."""
        self._holds[hold.assignment] = hold
        self._by_user[hold.user] = self._by_agent[hold.agent] = hold

    def had_skipped(
        self, agent: int, user: int, at: datetime, until: datetime | None = None
    ) -> None:
        """Add a skip of this user by this agent at the time `at`.

        `until`: the time before which no agent is offered the user. None: the time is `at` plus the
        setting `skip_everyone`.
        """
        self._skipped.setdefault(agent, {})[user] = at
        self._resting[user] = until or at + self._settings.skip_everyone

    def had_deferred(self, user: int, until: datetime) -> None:
        """Add a deferral: no agent is offered this user before `until`."""
        self._resting[user] = until

    def had_published(self, queue: str, generation: int) -> None:
        """Add a generation published before the first replayed event; its ranks are unknown."""
        self._published[queue] = generation

    def had_paused(self, queue: str) -> None:
        """Add a dialer queue that was paused at the time of the first replayed event."""
        self._paused.add(queue)

    def apply(self, fact: Fact) -> None:
        """Check the next recorded event against the replayed state, and update that state.

        The state has, for example, the active assignments and the claimable users. A guarantee that
        the event breaks is added to `breaches`.
        """
        teller = self._tellers.get(fact.kind)
        if teller is None:
            self._breach(11, fact, f"{fact.kind} is no kind of event")
            return
        if fact.term is not None:
            self._line(fact, fact.term)
        elif fact.kind not in KINDS_WITHOUT_TERM and not fact.is_dialers:
            self._breach(9, fact, f"{fact.kind} under no term")
        claimable_set = self._claimable_sets.get(fact.queue or "")
        if claimable_set is not None and claimable_set.waiting:
            claimable_set.promote(fact.at)
        teller(fact)

    def publish(self, fact: Fact, ranks: dict[int, int], *, missed: Mapping[str, int]) -> None:
        """Check the publication of a generation, and add the generation to the replayed state.

        `fact`: the event of the publication. `ranks`: the rank of each user in the generation; the
        replay changes this dictionary later, so the caller must not use it any more. `missed`: the
        assignments that were completed too late for the build of the generation to see; it maps the
        id of each assignment to its user.
        """
        self.apply(fact)
        if fact.queue is None or fact.generation_id is None:
            return
        for assignment, user in missed.items():
            if self._completed.get(user) == assignment and user not in self._by_user:
                ranks.pop(user, None)
        self._resting = {user: at for user, at in self._resting.items() if at > fact.at}
        self._claimable_sets[fact.queue] = ClaimableSet.of(
            fact.generation_id, ranks, held=self._by_user.keys(), resting=self._resting
        )

    def finish(self, now: datetime) -> None:
        """Report assignments that are overdue at `now`, and a retirement without a publication.

        Call this after the last event. The event that retires a generation must be followed by the
        event that publishes the next one.
        """
        for hold in self._holds.values():
            if now > self._due(hold):
                what = f"assignment {hold.assignment} has outlived its lease"
                self.breaches.append(Breach(7, 0, what))
        if self._retired is not None:
            self._breach(2, self._retired, "a generation was retired and none published")

    def _line(self, fact: Fact, term: int) -> None:
        """Check that the event follows the earlier transactions of its lane.

        `term`: the number of the term (the fencing token) of the sequencer that made the change.
        Transactions of a lane must not overlap, so no event may have an earlier time than the
        lane's event before it. Exception: the event that records a step of the clock (a jump of the
        database's clock). Unless an event begins a new term, it must have the same term as the
        lane's event before it. A new term must have the next number after the highest term of all
        lanes.

        One more check covers all lanes together. After an event that retires a generation, the next
        event with a term, in any lane, must be the event that publishes the next generation. Events
        without a term may stand between the two. This method is not called for events without a
        term.
        """
        if fact.kind == EventKind.TERM_BEGUN:
            self._lane_of[term] = fact.lane or DEFAULT_LANE
        lane = self._lane_of.get(term, DEFAULT_LANE)
        before = self._at.get(lane)
        self._at[lane] = fact.at
        stepped = fact.kind == EventKind.CLOCK_STEPPED
        if before is not None and fact.at < before and not stepped:
            self._breach(9, fact, f"of {fact.at}, after an event of {before}")
        # Nobody could have ended a hold that lapses in a step forward of the clock.
        if before is not None and (stepped or fact.kind == EventKind.TERM_BEGUN):
            self._silences.setdefault(lane, []).append((before, fact.at))
        if term != self._terms.get(lane) or fact.kind == EventKind.TERM_BEGUN:
            self._change_term(fact, term, lane)
        if self._retired is not None and fact.kind != EventKind.GENERATION_PUBLISHED:
            self._breach(2, fact, f"{fact.kind} before the next generation is published")
            self._retired = None

    def _change_term(self, fact: Fact, term: int, lane: str) -> None:
        last = max(self._terms.values(), default=None)
        known = self._terms.get(lane)
        self._terms[lane] = max(known or term, term)
        if fact.kind == EventKind.TERM_BEGUN:
            if last is not None and term != last + 1:
                self._breach(9, fact, f"term {term} begins after term {last}")
        elif known is None:
            return
        elif term < known:
            self._breach(9, fact, f"{fact.kind} of term {term} after term {known} began")
        else:
            self._breach(9, fact, f"{fact.kind} of term {term}, which has not begun")

    def _assigned(self, fact: Fact) -> None:
        user, agent, assignment, request = (
            fact.user_id,
            fact.agent_id,
            fact.assignment_id,
            fact.request_id,
        )
        if user is None or agent is None or assignment is None or request is None:
            self._breach(11, fact, "assigned: a user, agent, assignment or request is not named")
            return
        if request in self._requests:
            self._breach(5, fact, f"request {request} is answered with a second user")
        self._requests.add(request)
        if held := self._by_user.get(user):
            self._breach(1, fact, f"user {user} is held by agent {held.agent} and given to {agent}")
        elif fact.reassigned_from is not None:
            if self._released.get(user) != (fact.reassigned_from, fact.at):
                self._breach(4, fact, f"user {user} is given on, and was not taken from an agent")
        elif fact.source is None:
            self._in_order(fact, user, agent)
        else:
            self._as_promised(fact, user, agent)
        if held := self._by_agent.get(agent):
            self._breach(1, fact, f"agent {agent} holds user {held.user} already")
        self._may_be_handed_out(fact, user, agent)
        self.stood(
            ReplayedAssignment(assignment, agent, user, self._leased(fact, fact.at), fact.queue)
        )
        for claimable_set in self._claimable_sets.values():
            claimable_set.hold(user)

    def _may_be_handed_out(self, fact: Fact, user: int, agent: int) -> None:
        """Check that the agent is neither on break nor offline, and the dialer queue is not paused.

        A user whom an operator moves to another agent may be in a paused queue. Assignments that an
        adopted dialer (an existing one whose tables this system has taken over) made itself are not
        checked, because such a dialer checks neither breaks nor pauses.
        """
        if fact.is_dialers:
            return
        if agent in self._away:
            self._breach(3, fact, f"agent {agent} is {self._away[agent]} and is given user {user}")
        if fact.queue in self._paused and fact.reassigned_from is None:
            self._breach(6, fact, f"user {user} is handed out while {fact.queue} is paused")

    def _in_order(self, fact: Fact, user: int, agent: int) -> None:
        """Check an assignment that was made from a dialer queue.

        The generation must be the published one, and the agent must not have skipped the user
        lately. No claimable user with a better rank may be passed over, unless the agent skipped
        that user lately; this is not checked if the ranks of the generation are unknown.
        """
        queue = fact.queue or ""
        generation = self._published.get(queue)
        if generation is None or fact.generation_id != generation:
            self._breach(2, fact, f"generation {fact.generation_id} is not the published one")
            return
        not_for = self._not_for(agent, fact.at)
        if user in not_for:
            self._breach(4, fact, f"agent {agent} skipped user {user} at {not_for[user]}")
        claimable_set = self._claimable_sets.get(queue)
        if claimable_set is None:
            return
        rank = claimable_set.ranks.get(user)
        if rank is None or user not in claimable_set.ready:
            self._breach(4, fact, f"user {user} was not claimable in generation {generation}")
        elif fact.rank != rank:
            self._breach(4, fact, f"user {user} has rank {rank}, not {fact.rank}")
        elif better := claimable_set.passed_over(rank, not_for):
            self._breach(4, fact, f"user {better} has a better rank than user {user}")

    def _as_promised(self, fact: Fact, user: int, agent: int) -> None:
        """Check an assignment that was made for a callback or a missed call.

        The callback or missed call must be due and must not have ended. The user must not be
        reserved for another agent, and the agent must not have skipped the user lately.
        """
        not_for = self._not_for(agent, fact.at)
        if user in not_for and not fact.is_dialers:
            self._breach(4, fact, f"agent {agent} skipped user {user} at {not_for[user]}")
        if fact.source_id in self._done:
            self._breach(10, fact, f"{fact.source} {fact.source_id} had ended")
        if fact.scheduled_for is not None and fact.at < fact.scheduled_for:
            self._breach(10, fact, f"user {user} is called before {fact.scheduled_for}")
        if fact.kept_for not in (None, agent):
            self._breach(10, fact, f"user {user} is kept for agent {fact.kept_for}")

    def _not_for(self, agent: int, now: datetime) -> Mapping[int, datetime]:
        """Return the users whom the agent skipped lately, with the time of each skip.

        After a skip, this agent must not get the user again for the time of the setting
        `skip_agent`. Only users for whom this time has not passed at `now` are returned.
        """
        skipped = self._skipped.get(agent, {})
        while skipped and next(iter(skipped.values())) <= now - self._skip_at_most:
            del skipped[next(iter(skipped))]
        since = now - self._settings.skip_agent
        return {user: at for user, at in skipped.items() if at > since}

    def _leased(self, fact: Fact, earlier: datetime) -> datetime:
        """Return the end of the lease that the event sets; check that the lease is not too long.

        The lease may end at most one full lease after the event, or at `earlier` if that is later.
        `earlier`: for a renewed assignment, the end of the lease before the event; for a new
        assignment, the time of the event.
        """
        latest = max(earlier, fact.at + self._settings.of(fact.queue or "").lease)
        if fact.lease_expires_at is None:
            self._breach(11, fact, f"assignment {fact.assignment_id}: no lease is named")
            return latest
        if fact.lease_expires_at > latest and not fact.is_dialers:
            self._breach(7, fact, f"assignment {fact.assignment_id} has too long a lease")
        return fact.lease_expires_at

    def _renewed(self, fact: Fact) -> None:
        if hold := self._owned(fact):
            if fact.kind == EventKind.ACCEPTED and hold.accepted:
                self._breach(5, fact, f"assignment {hold.assignment} is accepted twice")
            hold.accepted = True
            hold.lease_until = self._leased(fact, hold.lease_until)

    def _expired(self, fact: Fact) -> None:
        hold = self._holds.get(fact.assignment_id) if fact.assignment_id else None
        if hold is not None and fact.at < hold.lease_until:
            self._breach(7, fact, f"assignment {hold.assignment} expired before its lease lapsed")
        if hold is not None and fact.kind == EventKind.OFFER_LAPSED and hold.accepted:
            self._breach(7, fact, f"assignment {hold.assignment} lapsed as an offer, and was not")
        self._given_back(fact)

    def _given_back(self, fact: Fact) -> None:
        if hold := self._ended(fact):
            self._released[hold.user] = (hold.assignment, fact.at)
            for claimable_set in self._claimable_sets.values():
                claimable_set.make_ready(hold.user)

    def _was_skipped(self, fact: Fact) -> None:
        if hold := self._ended(fact):
            self.had_skipped(hold.agent, hold.user, fact.at, fact.until)
            for claimable_set in self._claimable_sets.values():
                claimable_set.wait(hold.user, self._resting[hold.user])

    def _was_deferred(self, fact: Fact) -> None:
        if fact.until is None:
            self._breach(11, fact, "deferred: until when is not named")
            return
        if hold := self._ended(fact):
            self.had_deferred(hold.user, fact.until)
            for claimable_set in self._claimable_sets.values():
                claimable_set.wait(hold.user, fact.until)

    def _was_closed(self, fact: Fact) -> None:
        if hold := self._ended(fact):
            for claimable_set in self._claimable_sets.values():
                claimable_set.drop(hold.user)

    def _was_completed(self, fact: Fact) -> None:
        if hold := self._ended(fact):
            self._completed[hold.user] = hold.assignment
            for claimable_set in self._claimable_sets.values():
                claimable_set.drop(hold.user)

    def _settings_changed(self, fact: Fact) -> None:
        if not self._later:
            self._breach(11, fact, "the settings were changed, and no version of them is stored")
            return
        self._settings = self._later.popleft()

    def _wait_ended(self, fact: Fact) -> None:
        claimable_set = self._claimable_sets.get(fact.queue or "")
        if claimable_set is not None and fact.user_id is not None:
            claimable_set.make_ready(fact.user_id)

    def _promised(self, fact: Fact) -> None:
        if fact.user_id is None or self._completed.get(fact.user_id) != fact.assignment_id:
            self._breach(10, fact, f"a callback for {fact.assignment_id}, which was not completed")

    def _promise_ended(self, fact: Fact) -> None:
        if fact.source_id is None:
            self._breach(11, fact, f"{fact.kind}: nothing is named that ended")
            return
        if fact.source_id in self._done:
            self._breach(10, fact, f"{fact.kind}: {fact.source_id} ends twice")
        self._done.add(fact.source_id)

    def _ended(self, fact: Fact) -> ReplayedAssignment | None:
        hold = self._owned(fact)
        if hold is None:
            return None
        del self._holds[hold.assignment]
        for holds, key in ((self._by_user, hold.user), (self._by_agent, hold.agent)):
            if holds.get(key) is hold:
                del holds[key]
        return hold

    def _owned(self, fact: Fact) -> ReplayedAssignment | None:
        """Return the assignment that the event is about; None if the assignment is not active.

        Records a breach if the assignment is not active, if the event names another agent or user
        than the assignment, or if the event came too long after the end of the lease.
        """
        hold = self._holds.get(fact.assignment_id) if fact.assignment_id else None
        if hold is None:
            self._breach(8, fact, f"assignment {fact.assignment_id} {fact.kind} while not active")
            return None
        if hold.agent != fact.agent_id:
            self._breach(8, fact, f"{fact.kind} by agent {fact.agent_id}, held by {hold.agent}")
        if hold.user != fact.user_id:
            self._breach(11, fact, f"{fact.kind} tells of user {fact.user_id}, held is {hold.user}")
        if fact.at > self._due(hold):
            late = fact.at - hold.lease_until
            self._breach(7, fact, f"assignment {hold.assignment} stood {late} after its lease")
        return hold

    def _due(self, hold: ReplayedAssignment) -> datetime:
        """Return the time by which the assignment must have ended if its lease is not renewed.

        This is the end of the lease plus `bound`, the longest time that an assignment may outlast
        its lease while a sequencer leads. Exception: this sum may be in a period in which the
        assignment's lane may have had no leader, or in which the clock was set forward. The result
        is then the end of that period plus `bound`.
        """
        due = hold.lease_until + self._bound
        for stopped, begun in self._silences.get(self._lanes.of(hold.queue), ()):
            if stopped <= due < begun:
                due = begun + self._bound
        return due

    def _taken_out(self, fact: Fact) -> None:
        if fact.user_id is None or fact.generation_id is None:
            self._breach(11, fact, "taken_out: a user or generation is not named")
            return
        if fact.user_id in self._by_user:
            self._breach(2, fact, f"user {fact.user_id} is taken out while held")
        for claimable_set in self._claimable_sets.values():
            if claimable_set.generation == fact.generation_id:
                claimable_set.drop(fact.user_id)

    def _put_off(self, fact: Fact) -> None:
        if fact.user_id is None or fact.generation_id is None or fact.until is None:
            self._breach(11, fact, "put_off: a user, a generation or until when is not named")
            return
        if fact.user_id in self._by_user:
            self._breach(2, fact, f"user {fact.user_id} is put off while held")
        for claimable_set in self._claimable_sets.values():
            if claimable_set.generation == fact.generation_id:
                claimable_set.wait(fact.user_id, fact.until)

    def _converted(self, fact: Fact) -> None:
        if fact.user_id is None:
            self._breach(11, fact, "converted: no user is named")
            return
        if fact.user_id in self._by_user:
            self._breach(2, fact, f"user {fact.user_id} is converted while held")
        for claimable_set in self._claimable_sets.values():
            claimable_set.drop(fact.user_id)

    def _was_published(self, fact: Fact) -> None:
        retired, self._retired = self._retired, None
        queue, generation = fact.queue, fact.generation_id
        if queue is None or generation is None:
            self._breach(11, fact, "published: a dialer queue or generation is not named")
            return
        before = self._published.get(queue)
        if before is not None and before >= generation:
            self._breach(2, fact, f"generation {generation} follows {before}")
        if generation in self._failed:
            self._breach(2, fact, f"generation {generation} has failed and is published")
        replaced = (retired.queue, retired.generation_id, retired.at) if retired else None
        if replaced != (None if before is None else (queue, before, fact.at)):
            self._breach(2, fact, f"{generation} is published, and what it replaces not retired")
        self._published[queue] = generation
        self._claimable_sets.pop(queue, None)

    def _was_retired(self, fact: Fact) -> None:
        self._retired = fact

    def _was_failed(self, fact: Fact) -> None:
        if fact.generation_id is None:
            self._breach(11, fact, "failed: no generation is named")
            return
        self._failed.add(fact.generation_id)
        if fact.generation_id in self._published.values():
            self._breach(2, fact, f"generation {fact.generation_id} is published and has failed")

    def _was_paused(self, fact: Fact) -> None:
        self._paused.add(fact.queue or "")

    def _was_resumed(self, fact: Fact) -> None:
        self._paused.discard(fact.queue or "")

    def _stated(self, fact: Fact) -> None:
        if fact.agent_id is None or fact.state is None:
            self._breach(11, fact, "agent_state: an agent or their state is not named")
            return
        if fact.state in (AgentStatus.BREAK, AgentStatus.OFFLINE):
            self._away[fact.agent_id] = fact.state
        else:
            self._away.pop(fact.agent_id, None)

    def _nothing(self, fact: Fact) -> None:
        """Ignore an event of a kind that does not change the replayed state."""

    def _breach(self, guarantee: int, fact: Fact, what: str) -> None:
        self.breaches.append(Breach(guarantee, fact.id, what))
