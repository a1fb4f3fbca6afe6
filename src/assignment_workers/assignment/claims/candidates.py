"""The users at the head of a dialer queue, judged by current facts, in the order of their rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar, Protocol
from uuid import UUID

from sqlalchemy import BigInteger, Select, bindparam, exists, literal_column, select

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.generations.entries import READY
from assignment_workers.assignment.transaction import ClaimBudgetExceeded, FencedTransaction
from assignment_workers.policy.queues import Policy, reason_for
from assignment_workers.policy.rules import NUMBER_UNREAD
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Assignment, Entry, Phone, Source

INELIGIBLE_AT_MOST = 5_000
"""Maximum number of ineligible users whom one claim transaction removes or makes wait.

This number costs about 50 ms (benchmarks/claim.py).
"""


UNKNOWN = "unknown"
UNKNOWN_FOR = timedelta(minutes=1)
"""Time that a user without usable CRM facts waits, without losing the position in the queue.

The user stays in the dialer queue, because missing facts prove nothing. Meanwhile, users with worse
ranks can be claimed.
"""

SIZES = (*(2**n for n in range(13)), INELIGIBLE_AT_MOST)
"""The possible values of the LIMIT with which users of a dialer queue are read.

Only these few values are used, so that few different SQL statements exist and each is prepared
once.
"""


@dataclass(frozen=True)
class Candidate:
    """A user of a dialer queue who may be assigned now, with rank and score."""

    user_id: int
    rank: int
    score: int
    source: ClassVar = Source.QUEUE
    source_id: ClassVar[UUID | None] = None
    details: ClassVar[Mapping[str, Any]] = {}

    @property
    def reason(self) -> str:
        """Return the reason for the call, as agents see it."""
        return reason_for(self.score)


class Claimable(Protocol):
    """A user who may be assigned now, from a dialer queue, a callback or a missed call."""

    @property
    def user_id(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def score(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def source(self) -> Source: ...
    @property
    def source_id(self) -> UUID | None: ...
    @property
    def details(self) -> Mapping[str, Any]:
        """Return the details that are stored in the event of the user's assignment."""


@dataclass
class Head:
    """The best-ranked users of one dialer queue, read in batches only as far as requests need.

    Users who were read but must not be assigned now are in one of three attributes.
    `held_elsewhere` has the users who have an active assignment. `resting` has the users who have
    to wait. `ineligible` has the remaining users who break a rule; it maps the id of the user to
    the name of the rule.
    """

    transaction: FencedTransaction
    policy: Policy
    generation: int
    wanted: int
    """Number of users that the next read asks for; it is rounded up to one of `SIZES`.

    If the dialer queue has fewer users left, the read returns only these. Each further read asks
    for four times as many users as the read before, but never for more than the last of `SIZES`.
    """
    taken: set[int]
    """Ids of users assigned in this transaction, from any dialer queue, callback or missed call."""
    ineligible: dict[int, str] = field(default_factory=dict)
    resting: dict[int, tuple[str, datetime]] = field(default_factory=dict)
    """Maps each user who has to wait to the reason and the end of the wait.

    The reason is the name of a rule, or `unknown` for a user without usable facts.
    """
    held_elsewhere: list[int] = field(default_factory=list)
    _found: list[Candidate] = field(default_factory=list)
    _after: int = -1
    _unread: bool = False
    """True if a later transaction must parse the phone number of the next user.

    The reason is that one transaction parses only a limited number of phone numbers.
    """
    _exhausted: bool = False

    @property
    def found_out(self) -> bool:
        """True if at least one of the users who were read must not be assigned now."""
        return bool(self.ineligible or self.resting or self.held_elsewhere)

    def take(self, excluded: Collection[int]) -> Candidate | None:
        """Return the best-ranked eligible user not in `excluded`; None if there is none.

        No user is returned twice. Raises `ClaimBudgetExceeded` when this transaction has read as
        much as it may, so that the search has to continue in another transaction.
        """
        position = 0
        while True:
            while position < len(self._found):
                user = self._found[position].user_id
                if user not in excluded and user not in self.taken:
                    self.taken.add(user)
                    return self._found.pop(position)
                position += 1
            if self._exhausted:
                return None
            self._read()

    def _read(self) -> None:
        if self._unread or len(self.ineligible) + len(self.resting) >= INELIGIBLE_AT_MOST:
            raise ClaimBudgetExceeded
        size = next(size for size in SIZES if size >= min(self.wanted, SIZES[-1]))
        crm_reader = self.transaction.crm_reader
        if crm_reader.is_spent and (self.ineligible or self.resting):
            raise ClaimBudgetExceeded
        place = {"generation": self.generation, "after": self._after}
        rows, fresh = crm_reader.judge_or_recall(
            _judged(self.policy, size),
            place,
            users=_users(size),
            policy=self.policy,
            now=self.transaction.now,
        )
        for user_id, rank, score, broken, rests_until, is_held in rows:
            if broken == NUMBER_UNREAD and fresh and not crm_reader.readable and not is_held:
                self._unread = True  # no user behind is assigned before this one is judged
                return
            self._after = rank
            if is_held:
                self.held_elsewhere.append(user_id)
            elif (
                user_id in crm_reader.unknown
                or broken == NUMBER_UNREAD
                or (broken is not None and not fresh)
            ):
                self.resting[user_id] = (UNKNOWN, self.transaction.now + UNKNOWN_FOR)
            elif broken is not None and rests_until is not None and self.policy.is_resting(broken):
                self.resting[user_id] = (broken, rests_until)
            elif broken is not None:
                self.ineligible[user_id] = broken
            else:
                self._found.append(Candidate(user_id, rank, score))
        self._exhausted = len(rows) < size
        self.wanted = size * 4


@cache
def _head(size: int) -> Select[*tuple[Any, ...]]:
    """Select the next `size` ready (claimable) users of a generation in the order of rank.

    SQL parameters: `generation`, and `after`, the rank after which to start. Index:
    ix_entries_ready.
    """
    return (
        select(Entry.user_id, Entry.rank, Entry.score)
        .where(
            Entry.generation_id == bindparam("generation", type_=BigInteger),
            Entry.state == READY,
            Entry.rank > bindparam("after", type_=BigInteger),
        )
        .order_by(Entry.rank)
        .limit(literal_column(str(size)))
    )


@cache
def _users(size: int) -> Select[tuple[int]]:
    return _head(size).with_only_columns(Entry.user_id)


@expression_cache
def _judged(policy: Policy, size: int) -> Select[*tuple[Any, ...]]:
    """Select the next `size` users in state `ready` by rank, each judged by the policy's rules.

    The column `broken` has the first rule that the user breaks now, or null. The column
    `rests_until` has the end of the time for which a rule excludes the user, or null. The column
    `held` is true for a user who has an active assignment.

    Index: ix_entries_ready of the generation's partition, read in order and no further than `size`.
    The limit is inside a MATERIALIZED CTE, because otherwise the planner could join first and read
    the whole partition. The limit is a literal, because a plan made for an unknown limit would
    expect to read a tenth of the partition. The statement locks no rows: the transaction has locked
    the lane's row, so no other claim or publication of the lane runs.
    """
    head = _head(size).cte("head").prefix_with("MATERIALIZED")
    held = exists(
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == head.c.user_id, Assignment.state == ACTIVE)
    )
    return (
        select(
            head.c.user_id,
            head.c.rank,
            head.c.score,
            policy.broken_rule().label("broken"),
            policy.rests_until().label("rests_until"),
            held.label("held"),
        )
        .select_from(head)
        .outerjoin(UserCallScore, UserCallScore.user_id == head.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == head.c.user_id)
        .outerjoin(Phone, Phone.user_id == head.c.user_id)
        .order_by(head.c.rank)
    )
