"""Queries for eligibility statuses: the reasons for which users are or are not claimable.

A status is the name of a rule that the user breaks, or one of `EligibilityStatus`. The command
`explain` shows the statuses of a user. The answer `empty` (no user is claimable) has a reason,
which is found from the statuses of the users with the best scores. The rules are judged by the same
SQL expressions as in claims and builds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Label,
    Select,
    any_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy.orm import aliased

from assignment_workers.assignment.active_assignments import ACTIVE
from assignment_workers.assignment.generations.entries import DRAINED_REASON, OUT, WAITING
from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import RuleEffect
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Assignment, Entry, Phone


class EligibilityStatus(StrEnum):
    """An eligibility status that is not the name of a rule.

    A user who breaks a rule of the dialer queue has the name of that rule as status. Exception: a
    user whom an agent holds is `HELD` even if the user breaks a rule.
    """

    HELD = "held"
    WAITING = "waiting"
    DRAINED = "drained"
    TAKEN_OUT = "taken_out"
    NOT_IN_GENERATION = "not_in_generation"
    CLAIMABLE = "claimable"


_MEANS: dict[str, str] = {
    EligibilityStatus.HELD: "an agent has them",
    EligibilityStatus.WAITING: (
        "put off for a while: skipped, or resting when they were last looked at"
    ),
    EligibilityStatus.DRAINED: (
        "an operator drained the dialer queue: the next build has them again"
    ),
    EligibilityStatus.TAKEN_OUT: (
        "eligible, and out of what is published: the next build has them again"
    ),
    EligibilityStatus.NOT_IN_GENERATION: (
        "eligible, and not in what is published: the next build has them"
    ),
    EligibilityStatus.CLAIMABLE: "claimable now",
}


def meanings(policy: Policy) -> dict[str, str]:
    """Return an explanation of each eligibility status for people to read, by status.

    The texts of three statuses tell about the next build: `drained`, `taken_out` and
    `not_in_generation`. If the dialer queue has no size limit, these texts say that the next build
    has the user. If the dialer queue has a size limit, the next build may leave the user out. These
    texts then give the limit, and say which users a build takes first.
    """
    if policy.limit is None:
        return dict(_MEANS)
    limited: dict[str, str] = {
        status: f"{words}: a build takes {policy.limit} users at most, those first who can be"
        " called before the build after it, then by rank"
        for status, words in (
            (EligibilityStatus.DRAINED, "an operator drained the dialer queue"),
            (EligibilityStatus.TAKEN_OUT, "eligible, and out of what is published"),
            (EligibilityStatus.NOT_IN_GENERATION, "eligible, and not in what is published"),
        )
    }
    return _MEANS | limited


def eligibility_status(
    policy: Policy, people: CTE, rules: Sequence[Label[Any]] = ()
) -> Select[*tuple[Any, ...]]:
    """Select the eligibility status of each user in `people`.

    The column `stands` has the status: an `EligibilityStatus`, or the first rule of the policy that
    the user breaks. The column `free_at` has the time at which the status ends, if known. Further
    columns are those of the user's entry (position) in the generation; they are null if the user
    has no entry. `rules`: SQL expressions about the user that the caller needs too, such as whether
    the user meets a certain rule. Each of them is a further column, with the name of its label.

    SQL parameters: `generation`, the published one or null; `taken`, the users assigned in this
    transaction; `instant`, the present time; and the parameters of the policy. Cost for each user:
    lookups by primary keys and in the index on active assignments, and the evaluation of the
    policy's rules, which costs as much as in a claim.
    """
    hold = aliased(Assignment)
    # A fence, because the planner overestimates the join with the entries, and would then judge
    # these few users by reading the whole CRM.
    judged = (
        select(
            people.c.user_id,
            policy.broken_rule().label("broken"),
            policy.rests_until().label("rests_until"),
            hold.lease_expires_at,
            *rules,
        )
        .select_from(people)
        .outerjoin(UserCallScore, UserCallScore.user_id == people.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == people.c.user_id)
        .outerjoin(Phone, Phone.user_id == people.c.user_id)
        .outerjoin(hold, (hold.user_id == people.c.user_id) & (hold.state == ACTIVE))
        .cte("judged")
        .prefix_with("MATERIALIZED")
    )
    found = judged.c
    is_taken = found.user_id == any_(bindparam("taken", type_=ARRAY(BigInteger)))
    is_held = found.lease_expires_at.is_not(None) | is_taken
    resting = [sql_text(rule.name) for rule in policy.rules if rule.kind is RuleEffect.RESTING]
    is_drained = (Entry.state == OUT) & (Entry.reason == sql_text(DRAINED_REASON))
    waits = (Entry.state == WAITING) & (Entry.available_from > bindparam("instant", type_=Instant))
    return (
        select(
            found.user_id,
            case(
                (is_held, sql_text(EligibilityStatus.HELD)),
                (found.broken.is_not(None), found.broken),
                (Entry.user_id.is_(None), sql_text(EligibilityStatus.NOT_IN_GENERATION)),
                (is_drained, sql_text(EligibilityStatus.DRAINED)),
                (Entry.state == OUT, sql_text(EligibilityStatus.TAKEN_OUT)),
                (waits, sql_text(EligibilityStatus.WAITING)),
                else_=sql_text(EligibilityStatus.CLAIMABLE),
            ).label("stands"),
            case(
                (is_held, found.lease_expires_at),
                (found.broken.in_(resting), found.rests_until),
                (found.broken.is_not(None), null()),
                (waits, Entry.available_from),
            ).label("free_at"),
            Entry.generation_id,
            Entry.rank,
            Entry.state,
            Entry.available_from,
            Entry.reason,
            *(found[rule.name] for rule in rules),
        )
        .select_from(judged)
        .outerjoin(
            Entry,
            (Entry.generation_id == bindparam("generation", type_=BigInteger))
            & (Entry.user_id == found.user_id),
        )
    )


def members(policy: Policy, at_most: int | None) -> Select[*tuple[Any, ...]]:
    """Select the ids of all users whose score row names the dialer queue of `policy`.

    `policy`: the rules of the dialer queue. `at_most`: only this number of users, those with the
    best scores; None: all of them.
    """
    found = select(UserCallScore.user_id).where(
        UserCallScore.current_queue_type == sql_text(policy.queue)
    )
    if at_most is not None:
        found = found.order_by(UserCallScore.current_score).limit(literal_column(str(at_most)))
    return found


@expression_cache
def tally(policy: Policy, at_most: int | None) -> Select[*tuple[Any, ...]]:
    """Count the users whose score row names the dialer queue of `policy`, by eligibility status.

    `policy`: the rules of the dialer queue. `at_most`: only this number of users, those with the
    best scores, by the index on queue and score; None: all. The result has one row for each status
    that occurs. In each row, the column `free_at` is the earliest time at which this status ends
    for one of the users who have it; null if no such time is known. SQL parameters: those of
    `eligibility_status`.
    """
    pool = members(policy, at_most).cte("pool").prefix_with("MATERIALIZED")
    each = eligibility_status(policy, pool).subquery("each")
    return select(
        each.c.stands, func.count().label("users"), func.min(each.c.free_at).label("free_at")
    ).group_by(each.c.stands)
