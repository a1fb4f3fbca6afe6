"""The policies: one object per dialer queue, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, UnaryExpression, and_, case, func, null

from assignment_workers.policy import rules
from assignment_workers.policy.rules import Kind, Rule
from assignment_workers.schema.base import Instant, word
from assignment_workers.schema.dialer import UserCallScore

ORDER: tuple[UnaryExpression[Any], ...] = (
    UserCallScore.current_score.asc(),
    UserCallScore.created_at.desc(),
    UserCallScore.user_id.desc(),
)
"""Score 0 first, newest first; then score ascending, newest first (original-dialer section 3).

A total order: ids differ."""


@dataclass(frozen=True, eq=False)
class Policy:
    """A dialer queue's rules in one place.

    Rules are in the order in which a broken one is named.
    """

    queue: str
    conversion_type: str
    rules: tuple[Rule, ...]
    order: tuple[UnaryExpression[Any], ...] = field(default=ORDER)

    def eligible(self) -> ColumnElement[bool]:
        """True for a user who may be handed out from this dialer queue at `now`."""
        return and_(*(rule.holds for rule in self.rules))

    def broken_rule(self) -> ColumnElement[str | None]:
        """The name of the first rule that does not hold; null for an eligible user."""
        return case(*((~rule.holds, word(rule.name)) for rule in self.rules), else_=null())

    def is_resting(self, rule: str) -> bool:
        """A user who breaks this rule first will be eligible by themselves, later."""
        return any(each.name == rule and each.kind is Kind.RESTING for each in self.rules)

    def rests_until(self) -> ColumnElement[datetime | None]:
        """From when on the resting rules that are broken hold by themselves; null where none is.

        Meant for whoever breaks no other: resting rules are the last of a policy.
        """
        resting = [rule for rule in self.rules if rule.until is not None]
        return func.greatest(
            *(case((~rule.holds, rule.until), else_=null()) for rule in resting), type_=Instant
        )

    def belongs(self) -> ColumnElement[bool]:
        """True for a user whose place is this dialer queue by their facts, now or once rested."""
        return and_(
            *(
                rule.holds
                for rule in self.rules
                if rule.kind is not Kind.RESTING and rule.name not in _OF_THE_SCORE_ROW
            )
        )

    def converted(self) -> ColumnElement[bool]:
        """True for a user of this pool who reached what the dialer queue is for.

        Whoever is not in the CRM has no facts, and is not taken for converted.
        """
        converting = [~rule.holds for rule in self.rules if rule.kind is Kind.CONVERTED]
        standing = [
            rule.holds
            for rule in self.rules
            if rule.name in {"not_in_crm", "in_other_queue", "unsigned"}
        ]
        return and_(*standing, *converting)


_OF_THE_SCORE_ROW = {"in_other_queue", "inactive"}

_PERSON = (rules.IN_CRM, rules.ENABLED, rules.NOT_TERMINAL, rules.CLAIM_ALIVE)
_TIMES = (rules.ACTIVE, rules.RESTED, rules.SETTLED)

UNSIGNED_USERS = Policy(
    queue="unsigned_users",
    conversion_type="signature_obtained",
    rules=(*_PERSON, rules.UNSIGNED, rules.in_pool("unsigned_users"), *_TIMES),
)
OUTSTANDING_REQUESTS = Policy(
    queue="outstanding_requests",
    conversion_type="requirements_completed",
    rules=(
        *_PERSON,
        rules.SIGNED,
        rules.WANTING,
        rules.in_pool("outstanding_requests"),
        *_TIMES,
    ),
)

POLICIES: dict[str, Policy] = {
    policy.queue: policy for policy in (UNSIGNED_USERS, OUTSTANDING_REQUESTS)
}
"""By dialer queue name, in the order in which an agent with no preference is served."""


def place_of(policies: Sequence[Policy]) -> ColumnElement[str | None]:
    """The dialer queue a user belongs to by their facts.

    Null for none. The first that fits wins.
    """
    return case(*((policy.belongs(), word(policy.queue)) for policy in policies), else_=null())


def reason_for(score: int) -> str:
    """Why a user with this score is in a dialer queue, for agents (original-dialer section 4)."""
    if score <= 0:
        return "new"
    if score <= 5:
        return "high"
    return "medium" if score <= 10 else "aged"
