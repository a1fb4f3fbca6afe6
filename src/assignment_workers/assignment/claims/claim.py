"""Assign the best eligible user to each request, in one transaction for the whole list.

Cost: a fixed number of statements for any number of requests; one more for each further batch of
entries, which is read if the users of the previous batch were ineligible; and one for each batch of
due callbacks or missed calls. No cost grows with the size of the dialer queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import bindparam, exists, select

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.agents.sessions import Session, turned_away
from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Held,
    Paused,
    Refused,
    RequestAnswer,
    TooLate,
    Unavailable,
)
from assignment_workers.assignment.callbacks import callbacks, missed_calls
from assignment_workers.assignment.callbacks.due import Due, DueKind
from assignment_workers.assignment.claims import idempotency, new_assignments
from assignment_workers.assignment.claims.candidates import Claimable, Head
from assignment_workers.assignment.claims.empty import Why
from assignment_workers.assignment.claims.idempotency import Requester
from assignment_workers.assignment.claims.new_assignments import NewAssignment
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.lifecycle.expire import Lapsed, expire
from assignment_workers.assignment.suppressions import quarantine
from assignment_workers.assignment.transaction import ClaimBudgetExceeded, FencedTransaction
from assignment_workers.errors import CrmUnavailable, no_queue
from assignment_workers.policy.queues import Policy, suspicious
from assignment_workers.schema.base import Instant
from assignment_workers.schema.pipeline import Rows, Statement
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    DialerQueue,
    Entry,
    Generation,
)
from assignment_workers.settings import Settings

log = structlog.get_logger()


def claim(
    transaction: FencedTransaction,
    requests: Sequence[ClaimRequest],
    *,
    policies: Mapping[str, Policy],
    settings: Settings,
) -> list[RequestAnswer | None]:
    """Claim a user for each request; return the answers in order, None where a retry is needed.

    The transaction keeps four of the guarantees that docs/how-it-works.md lists by number.
    Guarantee 1: no user and no agent has two active assignments; unique indexes enforce this.
    Guarantee 3: every assigned user meets the dialer queue's rules by facts that this transaction
    reads. Guarantee 4: users with a due callback or missed call come first; then comes the
    best-ranked eligible user whom no agent holds. Guarantee 5: a request id that an earlier
    transaction answered gets the same answer.

    If several of `requests` have the same id, the first of them gets the answer, and the others get
    None. A request that needs another transaction gets None, too: one transaction removes, for
    example, only a limited number of ineligible users, and has to be committed before the search
    continues. Errors of the database propagate; then nothing is committed.
    """
    first: dict[str, ClaimRequest] = {}
    for request in requests:
        first.setdefault(request.request_id, request)
    answers: dict[str, RequestAnswer] = {}
    requesters: dict[ClaimRequest, Requester] = {}
    asked = list(first.values())
    looked_up, places = transaction.run(
        idempotency.asking(transaction, asked, settings),
        Statement(_PLACES, {"instant": transaction.now, "now": transaction.now}),
    )
    found = idempotency.understood(transaction, asked, looked_up)
    for request in asked:
        match found[request.request_id]:
            case Requester() as requester:
                requesters[request] = requester
            case Assigned(assignment=hold) as answer:
                transaction.require_lanes(hold.queue)
                answers[request.request_id] = answer
            case answer:
                answers[request.request_id] = answer
    if requesters:
        decided = _Claim(transaction, policies, settings, requesters).decide(places)
        answers |= {request.request_id: answer for request, answer in decided.items()}
    return [answers.pop(request.request_id, None) for request in requests]


@dataclass(frozen=True)
class _Place:
    """The state of a dialer queue in this transaction: its pause and its published generation.

    `paused`: True if the queue is paused. `generation`: the number of the published generation.
    """

    paused: bool
    generation: int | None
    waited: bool = False
    """True if the wait of some users of the queue is over, but they are not claimable yet.

    A transaction may change only lanes (groups of dialer queues) that it has locked. This
    transaction has not locked the queue's lane, so it cannot make these users claimable.
    """


@dataclass
class _Claim:
    transaction: FencedTransaction
    policies: Mapping[str, Policy]
    settings: Settings
    requesters: Mapping[ClaimRequest, Requester]
    """The requests that have no stored answer, each with the agent who makes it.

    The order is that in which the caller of `claim` passed the requests.
    """
    places: dict[str, _Place] = field(default_factory=dict)
    holds: dict[int, Held] = field(default_factory=dict)
    """The active assignments of the requests' agents, by agent, including new ones."""
    on_break: dict[int, Session] = field(default_factory=dict)
    """The session of each agent whom this transaction set on break, by agent.

    The reason is that the agent did not accept several offers in time.
    """
    made: dict[ClaimRequest, NewAssignment] = field(default_factory=dict)
    due: list[DueKind] = field(default_factory=list)
    """The kinds of calls of which at least one is due: callbacks first, then missed calls.

    This is the order in which they are assigned.
    """
    unfinished: bool = False
    """True if this transaction has made the maximum number of waiting users claimable.

    The wait of further users may be over too. Therefore, this transaction answers no request; the
    claim continues in another transaction.
    """

    def decide(self, places: Rows) -> dict[ClaimRequest, RequestAnswer]:
        """Decide, store and return the answer to each request.

        `places`: for each dialer queue, the row of the query `_PLACES`, which has the queue's
        state. Requests that need another transaction are absent from the result.
        """
        self._see_places(places)
        if self.unfinished:
            return {}
        answers: dict[ClaimRequest, RequestAnswer] = {}
        open_requests: dict[ClaimRequest, list[str]] = {}
        for request, requester in self.requesters.items():
            allowed = self._allowed(request, requester)
            if request.deadline is not None and request.deadline <= self.transaction.now:
                answers[request] = TooLate(database_time=self.transaction.now)
            elif isinstance(allowed, Refused):
                answers[request] = allowed
            else:
                open_requests[request] = allowed
        if open_requests:
            answers |= self._hand_out(open_requests)
        self._store(answers)
        return answers

    def _see_places(self, rows: Rows) -> None:
        """Read the state of each dialer queue, end assignments, and make users ready.

        `rows`: the rows of the query `_PLACES`, which have the states. This method ends each
        assignment whose lease is over. Exception: the lease of an accepted assignment is extended
        instead if a heartbeat of its agent, committed by now, is recent enough (`expire`). The
        method also makes users ready whose waiting time is over. If more such users may remain,
        `unfinished` is set. Assignments are ended or extended, and users made ready, only in the
        lanes (groups of dialer queues) that this transaction has locked.
        """
        self.due = [
            kind
            for is_due, kind in (
                (any(row.promised for row in rows), callbacks.CALLBACKS),
                (any(row.missed for row in rows), missed_calls.MISSED_CALLS),
            )
            if is_due
        ]
        holds = [
            requester.hold for requester in self.requesters.values() if requester.hold is not None
        ]
        self.transaction.require_lanes(
            *(hold.queue for hold in holds)
        )  # or one could end while it is returned
        some = any(row.lapsed for row in rows if self.transaction.has(row.name))
        lapsed = expire(self.transaction, settings=self.settings) if some else Lapsed()
        self.on_break = lapsed.on_break
        self.holds = {
            hold.agent_id: hold for each in holds if (hold := lapsed.still(each)) is not None
        }
        for row in rows:
            ours = self.transaction.has(row.name)
            if row.due and ours and entries.promote(self.transaction, row.generation_id):
                self.unfinished = True
            self.places[row.name] = _Place(row.paused, row.generation_id, row.due and not ours)

    def _allowed(self, request: ClaimRequest, requester: Requester) -> list[str] | Refused:
        """Return the dialer queues that the request may get a user from, or a refusal.

        The queues are in the order in which they are tried.
        """
        if not requester.known:
            return Refused(code=Code.UNKNOWN_AGENT, reason=f"no agent {request.agent_id}")
        if not requester.is_active:
            return Refused(
                code=Code.INACTIVE_AGENT, reason=f"agent {request.agent_id} is not active"
            )
        if request.agent_id not in self.holds:
            session = self.on_break.get(request.agent_id, requester.session)
            if away := turned_away(session, self.settings, self.transaction.now):
                return away
        allowed = requester.allowed
        if not isinstance(allowed, list):
            return Refused(
                code=Code.QUEUE_NOT_ALLOWED,
                reason=f"allowed_queues of agent {request.agent_id} is not a list of dialer queues",
            )
        if request.queue is None:
            served = self.settings.served(self.policies, requester.team)
            queues = [queue for queue in served if queue in allowed]
            if queues:
                return queues
            return Refused(
                code=Code.QUEUE_NOT_ALLOWED,
                reason=f"agent {request.agent_id} is allowed no dialer queue",
            )
        if request.queue not in self.policies:
            return Refused(
                code=Code.UNKNOWN_QUEUE,
                reason=no_queue(request.queue, self.policies),
            )
        if request.queue not in allowed:
            return Refused(
                code=Code.QUEUE_NOT_ALLOWED,
                reason=f"agent {request.agent_id} is not allowed {request.queue}",
            )
        return [request.queue]

    def _hand_out(
        self, open_requests: Mapping[ClaimRequest, list[str]]
    ) -> dict[ClaimRequest, RequestAnswer]:
        """Assign a user to each request, in the order of `open_requests`; return the answers.

        `open_requests`: by request, the dialer queues from which the request may get a user. If
        such a queue has a user with a due callback or missed call, the request gets this user.
        Otherwise the queues are tried in their order, and the request gets the best user of the
        first queue that has an eligible user. Requests that need another transaction are absent
        from the result.
        """
        answers: dict[ClaimRequest, RequestAnswer] = {}
        without: list[ClaimRequest] = []
        free = {request.agent_id: self.requesters[request].skipped for request in open_requests}
        for agent in self.holds.keys() & free.keys():
            del free[agent]
        taken: set[int] = set()
        heads = self._heads(len(free) + sum(map(len, free.values())), taken)
        due = [
            Due(kind, self.transaction, self.policies, self.settings, taken) for kind in self.due
        ]
        try:
            for request, allowed in open_requests.items():
                if request.agent_id in self.holds:
                    answers[request] = Assigned(
                        assignment=self.holds[request.agent_id], replayed=True
                    )
                elif hold := self._longest_due(request, allowed, due) or self._best(
                    request, allowed, heads
                ):
                    answers[request] = Assigned(assignment=hold)
                else:
                    without.append(request)
        except ClaimBudgetExceeded:
            pass  # unanswered requests get another transaction; ineligible entries stay out
        except CrmUnavailable as error:
            log.warning("crm_unavailable", reason=str(error))
            away = Unavailable(retry_after=error.retry_after, reason=error.general)
            answers = dict.fromkeys(open_requests, away) | answers
            without.clear()
        for each in due:
            each.put_aside()
        # Otherwise a user could become ready there before this transaction commits an empty answer.
        self.transaction.require_lanes(
            *(queue for request in without for queue in open_requests[request])
        )
        self._put_out(heads)
        users = [grant.hold.user_number for grant in self.made.values()]
        why = Why(self.transaction, self.policies, users)
        for request in without:
            skipped = bool(self.requesters[request].skipped)
            try:
                answers[request] = self._without(why, open_requests[request], skipped=skipped)
            except CrmUnavailable as error:  # an unavailable CRM is never 'empty'
                log.warning("crm_unavailable", reason=str(error))
                answers[request] = Unavailable(retry_after=error.retry_after, reason=error.general)
        return answers

    def _longest_due(
        self, request: ClaimRequest, allowed: Sequence[str], due: Sequence[Due]
    ) -> Held | None:
        places = self.places
        queues = [each for each in allowed if each in places and not places[each].paused]
        for kind in due:
            found = kind.take(request.agent_id, queues, self.requesters[request].skipped)
            if found:
                self.transaction.require_lanes(found.queue)
                return self._hold(request, found.queue, found)
        return None

    def _best(
        self, request: ClaimRequest, allowed: Sequence[str], heads: Mapping[str, Head]
    ) -> Held | None:
        for queue in allowed:
            head = heads.get(queue)
            if head and self.places[queue].waited:
                self.transaction.require_lanes(queue)
            candidate = head.take(self.requesters[request].skipped) if head else None
            if head and candidate:
                self.transaction.require_lanes(queue)
                return self._hold(request, queue, candidate, head.generation)
        return None

    def _heads(self, size: int, taken: set[int]) -> dict[str, Head]:
        return {
            queue: Head(
                self.transaction, self.policies[queue], place.generation, max(size, 1), taken
            )
            for queue, place in self.places.items()
            if queue in self.policies
            and place.generation is not None
            and not place.paused
            # A dialer queue outside its calling hours is not read: all night, every entry would be
            # judged.
            and not self._is_closed(self.policies[queue])
        }

    def _is_closed(self, policy: Policy) -> bool:
        return policy.hours is not None and policy.is_closed(
            self.transaction.now, self.transaction.crm_reader.zones
        )

    def _hold(
        self,
        request: ClaimRequest,
        queue: str,
        found: Claimable,
        generation: int | None = None,
    ) -> Held:
        hold = Held(
            id=self.transaction.new_id(),
            user_id=found.user_id,
            agent_id=request.agent_id,
            queue=queue,
            source=found.source.value,
            reason=found.reason,
            rank=found.rank,
            claimed_at=self.transaction.now,
            lease_expires_at=self.transaction.now + self.settings.of(queue).first_lease,
            version=1,
            state=AssignmentState.ACTIVE.value,
            accepted_at=None,
        )
        self.holds[request.agent_id] = hold
        self.made[request] = NewAssignment(
            hold, found.score, generation, found.source_id, found.details
        )
        return hold

    def _put_out(self, heads: Mapping[str, Head]) -> None:
        """Remove the ineligible users whom the search found, and make the resting users wait.

        A resting user is one whom a rule excludes for a time. `heads`: the result of the search in
        each dialer queue. Events record both changes; they come before the events of the new
        assignments.
        """
        for queue, head in heads.items():
            if head.found_out:
                self.transaction.require_lanes(queue)
            if head.held_elsewhere:
                # otherwise the assignment could end while its entry is marked as held
                self.transaction.require_all_lanes()
            entries.take_out(self.transaction, queue, head.generation, head.ineligible)
            rules = (
                suspicious(self.transaction.dialer.policies.values())
                if head.ineligible
                else frozenset()
            )
            unclear = [user for user, why in head.ineligible.items() if why in rules]
            most = self.settings.of(queue).quarantine_after
            quarantine(self.transaction, unclear, after=most)
            entries.put_off(self.transaction, queue, head.generation, head.resting)
            if head.held_elsewhere:
                entries.hold(self.transaction, head.held_elsewhere)

    def _store(self, answers: Mapping[ClaimRequest, RequestAnswer]) -> None:
        """Store the new assignments, with their events, and each answer that is final.

        An answer is not final if it asks the agent to retry: `unavailable`, or a refusal with
        `retry_after`. Such an answer is not stored, so a retry with the same request id is decided
        anew. The users' entries (positions) in the published generations are marked held.
        """
        # An answer that asks for a retry is not stored, because the retry may have the same id.
        said = {
            request: answer
            for request, answer in answers.items()
            if request not in self.made and not _passes(answer)
        }
        new_assignments.store(self.transaction, self.made, said)

    def _without(self, why: Why, allowed: Sequence[str], *, skipped: bool) -> RequestAnswer:
        """Return the answer to a request for which none of the `allowed` dialer queues has a user.

        `why`: the object that finds the reason why a queue has no claimable user. `skipped`: True
        if the agent skipped users lately.
        """
        queue = allowed[0] if len(allowed) == 1 else None
        places = {name: self.places.get(name, _Place(False, None)) for name in allowed}
        if all(place.paused for place in places.values()):
            return Paused(queue=queue)
        unbuilt = [n for n, place in places.items() if not place.paused and not place.generation]
        if unbuilt:
            return Unavailable(
                retry_after=5.0, reason=f"{', '.join(unbuilt)} has no published generation yet"
            )
        return why.nothing_claimable(queue, places, skipped=skipped)


def _passes(answer: RequestAnswer) -> bool:
    """Return True if the answer is temporary: the same request may get another answer later."""
    return answer.outcome == "unavailable" or (
        isinstance(answer, Refused) and answer.retry_after is not None
    )


_PLACES = select(
    DialerQueue.name,
    DialerQueue.paused_at.is_not(None).label("paused"),
    Generation.id.label("generation_id"),
    exists(
        select(1)
        .select_from(Entry)
        .where(
            Entry.generation_id == Generation.id,
            Entry.state == entries.WAITING,
            Entry.available_from <= bindparam("instant", type_=Instant),
        )
    ).label("due"),
    exists(
        select(1)
        .select_from(Assignment)
        .where(
            Assignment.state == ACTIVE,
            Assignment.lease_expires_at <= bindparam("instant", type_=Instant),
            Assignment.queue == DialerQueue.name,
        )
    ).label("lapsed"),
    callbacks.ANY_DUE.label("promised"),
    missed_calls.ANY_DUE.label("missed"),
).outerjoin(
    Generation,
    (Generation.queue == DialerQueue.name) & (Generation.state == entries.PUBLISHED_STATE),
)
"""Select each dialer queue, its published generation, and a column that is true during a pause.

Further columns are true if there is work for the claim: a user's wait is over (`due`), the lease of
an assignment is over (`lapsed`), a callback is due (`promised`), or a missed call is due
(`missed`). The last two are the same for every dialer queue.

Cost: two index lookups for each dialer queue, and two more in all.
"""
