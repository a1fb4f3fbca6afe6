"""What comes before the dialer queue: users who are due a call, the longest due first."""

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
"""Users that one read takes."""

Found = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class DueUser:
    """A user who is due a call, from the dialer queue where they belong by their facts."""

    source: Source
    source_id: UUID
    user_id: int
    queue: str
    due_at: datetime
    kept_for: int | None
    """The agent who may have them for now; None: anybody."""
    score: int
    rank: int = 0

    @property
    def reason(self) -> str:
        """Why they are to be called, for agents."""
        return self.source.value

    @property
    def details(self) -> dict[str, Any]:
        """What the event of the grant tells besides."""
        return {
            "source": self.source,
            "source_id": self.source_id,
            "scheduled_for": self.due_at,
            "kept_for": self.kept_for,
        }


@dataclass(frozen=True)
class DueKind:
    """Callbacks, or missed calls."""

    source: Source
    head: Select[*tuple[Any, ...]]
    """The next of them after `after_at` and `after_key`."""
    statement: Callable[[tuple[Policy, ...]], Select[*tuple[Any, ...]]]
    """As `judged`, of those."""
    before: object
    """A key before every other."""
    put_aside: Callable[[FencedTransaction, Settings, Sequence[Found]], None]
    """Sees to those whose users may not be called, so that nobody meets them again at once."""


@dataclass
class Due:
    """Those of one kind that are due, read only as far as somebody asks."""

    kind: DueKind
    transaction: FencedTransaction
    policies: Mapping[str, Policy]
    settings: Settings
    taken: set[int]
    """Users handed out in this transaction: shared with the heads of the dialer queues."""
    _found: list[DueUser] = field(default_factory=list)
    _unfit: list[Found] = field(default_factory=list)
    _after: tuple[datetime, object] | None = None
    _exhausted: bool = False
    _unread: bool = False
    """More numbers have to be read first than this transaction may read."""

    def take(
        self, agent: int, queues: Collection[str], excluded: Collection[int]
    ) -> DueUser | None:
        """The longest due whom this agent may have, once only; None where there is none.

        They belong to one of these dialer queues by their facts and are not in `excluded`. Raises
        `ClaimBudgetExceeded` when the search has to go on in another transaction.
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
        """See to those who were met and may not be called."""
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
    """The first `AT_A_TIME` rows, fenced as the head of a dialer queue is, as the table `head`."""
    limit: ColumnElement[int] = literal_column(str(AT_A_TIME))
    return ordered.limit(limit).cte("head").prefix_with("MATERIALIZED")


def judged(
    head: FromClause,
    policies: Sequence[Policy],
    *,
    broken: ColumnElement[str | None] | None = None,
) -> Select[*tuple[Any, ...]]:
    """The rows of `head`, with where their users belong and what keeps them from a call.

    Validated as any user, but for the rules that say when: they are due now. `head` has `id`,
    `user_id`, `due_at`, `key`, `queue_type` and `preferred_agent_id`. `broken`: what else may keep
    a row from a call, named first. `put_off`: whoever was skipped or deferred rests, whatever they
    are due for.
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
