"""Users with a due callback or missed call: claims assign them before users of dialer queues.

The user whose call has been due for longest comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Row,
    Select,
    case,
    exists,
    false,
    func,
    literal_column,
    null,
    select,
)

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.transaction import ClaimBudgetExceeded, FencedTransaction
from assignment_workers.policy.queues import Policy, queue_of
from assignment_workers.policy.rules import NUMBER_UNREAD, is_put_off
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Agent, UserCallScore
from assignment_workers.schema.tables import Assignment, Phone, Source
from assignment_workers.settings import Settings

AT_A_TIME = 64
"""Maximum number of due calls of one kind (callbacks or missed calls) that one statement reads."""

Found = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class DueUser:
    """A user with a due callback or missed call, and the dialer queue that the user belongs to.

    `source_id`: the id of the callback or missed call. `due_at`: the time at which it was due.
    """

    source: Source
    source_id: UUID
    user_id: int
    queue: str
    due_at: datetime
    kept_for: int | None
    """Id of the only agent who may call the user at present; None if any agent may."""
    score: int
    rank: int = 0

    @property
    def reason(self) -> str:
        """The reason for the call, as agents see it."""
        return self.source.value

    @property
    def details(self) -> dict[str, Any]:
        """The details about the due call for the event that records the assignment of the user.

        The event of every assignment has other details, such as the rank and the lease; these are
        not included here.
        """
        return {
            "source": self.source,
            "source_id": self.source_id,
            "scheduled_for": self.due_at,
            "kept_for": self.kept_for,
        }


@dataclass(frozen=True)
class DueKind:
    """One of the two kinds of due calls, callbacks or missed calls, with its queries."""

    source: Source
    head: Select[*tuple[Any, ...]]
    """Query for due calls in order, from the position after `after_at` and `after_key`.

    Both are SQL parameters: the due time and the key of the last call that was read.
    """
    statement: Callable[[tuple[Policy, ...]], Select[*tuple[Any, ...]]]
    """Function that returns the query for the next due calls.

    The function's argument is the policies (rules of dialer queues) by which the query judges the
    users of these calls.
    """
    before: object
    """The value of the query's parameter `after_key` for the first read of due calls.

    The value sorts before the key of every call.
    """
    put_aside: Callable[[FencedTransaction, Settings, Sequence[Found]], None]
    """Function that ends or postpones due calls whose users must not be called.

    The next claims therefore do not read these calls again.
    """


@dataclass
class Due:
    """The due callbacks, or the due missed calls, read in batches only as far as requests need."""

    kind: DueKind
    transaction: FencedTransaction
    policies: Mapping[str, Policy]
    settings: Settings
    taken: set[int]
    """Ids of users assigned in this transaction, from any dialer queue, callback or missed call."""
    _found: list[DueUser] = field(default_factory=list)
    _unfit: list[Found] = field(default_factory=list)
    _after: tuple[datetime, object] | None = None
    _exhausted: bool = False
    _unread: bool = False
    """True if the next due call in the order cannot be judged in this transaction.

    Its user's phone number is not parsed yet, and this transaction has already parsed as many phone
    numbers as one transaction may. A later transaction must parse the number.
    """

    def take(
        self, agent: int, queues: Collection[str], excluded: Collection[int]
    ) -> DueUser | None:
        """Return the user whose call has been due for longest and whom this agent may call.

        None if there is none. The user belongs to one of `queues` and is not in `excluded`. No user
        is returned twice. Raises `ClaimBudgetExceeded` when the search has to continue in another
        transaction.
        """
        position = 0
        while True:
            while position < len(self._found):
                found = self._found[position]
                if (
                    found.queue in queues
                    and found.kept_for in (None, agent)
                    and found.user_id not in excluded
                    and found.user_id not in self.taken
                ):
                    self.taken.add(found.user_id)
                    return self._found.pop(position)
                position += 1
            if self._exhausted:
                return None
            self._read()

    def put_aside(self) -> None:
        """End or postpone the due calls that were read but whose users must not be called."""
        if self._unfit:
            self.kind.put_aside(self.transaction, self.settings, self._unfit)
            self._unfit.clear()

    def _read(self) -> None:
        if self._unread:
            raise ClaimBudgetExceeded
        now = self.transaction.now
        at, key = self._after or (now - timedelta(days=36_500), self.kind.before)
        crm_reader = self.transaction.crm_reader
        policy = next(iter(self.policies.values()))
        people = limited(self.kind.head)
        rows, fresh = crm_reader.judge_or_recall(
            self.kind.statement(tuple(self.policies.values())),
            {"now": now, "after_at": at, "after_key": key},
            users=select(people.c.user_id),
            policy=policy,
            now=now,
        )
        for row in rows:
            if row.broken == NUMBER_UNREAD and fresh and not crm_reader.readable and not row.held:
                self._unread = True
                return
            self._after = (row.due_at, row.key)
            passed_over = row.held or row.put_off or row.user_id in crm_reader.unknown
            passed_over |= row.broken == NUMBER_UNREAD
            if passed_over or (row.broken is not None and not fresh):
                continue
            if row.broken is not None:
                if self.transaction.has(row.place or row.queue_type or ""):
                    self._unfit.append(row)
                continue
            lately = now < row.due_at + self.settings.callback_preferred
            kept_for = row.preferred_agent_id if lately and row.is_there else None
            self._found.append(
                DueUser(
                    self.kind.source,
                    row.id,
                    row.user_id,
                    row.place,
                    row.due_at,
                    kept_for,
                    row.score,
                )
            )
        self._exhausted = len(rows) < AT_A_TIME


def limited(ordered: Select[*tuple[Any, ...]]) -> CTE:
    """Return a CTE named `head` with the first `AT_A_TIME` rows of the query `ordered`.

    The CTE is materialized, so that the planner cannot join before it applies the limit.
    """
    limit: ColumnElement[int] = literal_column(str(AT_A_TIME))
    return ordered.limit(limit).cte("head").prefix_with("MATERIALIZED")


def judged(
    head: FromClause,
    policies: Sequence[Policy],
    *,
    broken: ColumnElement[str | None] | None = None,
) -> Select[*tuple[Any, ...]]:
    """Select due calls, each with the user's dialer queue and the first rule that forbids the call.

    `head` has the calls, with the columns `id`, `user_id`, `due_at`, `key`, `queue_type` and
    `preferred_agent_id`. `key` orders the calls that have the same `due_at`. `broken`: a SQL
    expression for a further reason against a call; None: there is none. This reason takes
    precedence over the rules.

    Four rules are not applied. They say that the score row names the dialer queue, that the score
    row is old enough, that the wait after the last outcome is over, and that no callback is
    pending. These rules only decide if and when the dialer queue hands out a user. A due call does
    not wait for the dialer queue. All other rules apply, such as the calling hours.

    The result has the columns of `head` and others. The column `place` has the dialer queue; null:
    the user belongs to none. The column `broken` has the further reason, else the name of the
    broken rule; null: there is neither. The column `put_off` is true for a user whose wait after a
    skip or a deferral is not over. This wait is not a rule, so the column `broken` does not show
    it.
    """
    place = queue_of(policies)
    out = case(
        *((head.c.queue_type == sql_text(each.queue), each.out_of_place()) for each in policies),
        else_=policies[0].out_of_place(),
    )
    back = case(
        *((place == sql_text(each.queue), each.held_back()) for each in policies), else_=null()
    )
    own = null() if broken is None else broken
    facts = case((place.is_(None), out), else_=back)
    held = (
        select(1)
        .select_from(Assignment)
        .where(Assignment.user_id == head.c.user_id, Assignment.state == ACTIVE)
    )
    return (
        select(
            *head.c,
            place.label("place"),
            func.coalesce(own, facts).label("broken"),
            exists(held).label("held"),
            is_put_off(head.c.user_id).label("put_off"),
            func.coalesce(Agent.is_active, false()).label("is_there"),
            func.coalesce(UserCallScore.current_score, 0).label("score"),
        )
        .select_from(head)
        .outerjoin(UserCallScore, UserCallScore.user_id == head.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == head.c.user_id)
        .outerjoin(Phone, Phone.user_id == head.c.user_id)
        .outerjoin(Agent, Agent.id == head.c.preferred_agent_id)
        .order_by(head.c.due_at, head.c.key)
    )
