"""Eligibility: each rule is one SQL expression.

Used for building a generation, for checking at the claim, and for the cleanups. Every expression is
over `crm.users` and `user_call_scores` as they stand in the query around it, either of which may be
null (outer joined), and is true or false, never null. The instant is the bind parameter `now`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Interval,
    and_,
    bindparam,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from assignment_workers.policy.outcomes import TERMINAL
from assignment_workers.schema.base import Instant, NaiveInstant, word
from assignment_workers.schema.crm import Claim, ClaimRequirement, CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import Assignment

NOW = bindparam("now", type_=NaiveInstant)

SETTLING = timedelta(hours=2)
"""How old the score row of a user above score 0 has to be (original-dialer section 3)."""

EXCLUDED_REQUIREMENTS = (
    "signature",
    "vehicle_registration",
    "cfa",
    "solicitor_letter_of_authority",
    "letter_of_authority",
)
"""Requirement types that no call can obtain (original-dialer section 3)."""

BASE_REQUIREMENT = "base requirement for claim."
"""The reason, to the letter, with which an `id_document` requirement does not count."""


class Kind(StrEnum):
    """What a broken rule means for the user."""

    CONVERTED = "converted"
    """They reached what the dialer queue is for: they leave it, and a conversion is recorded."""
    BARRED = "barred"
    """They may not be called until a fact about them changes."""
    RESTING = "resting"
    """They will be callable by themselves, later."""


@dataclass(frozen=True, eq=False)
class Rule:
    """One condition of eligibility; `name` is the reason shown when it does not hold."""

    name: str
    holds: ColumnElement[bool]
    kind: Kind
    means: str = ""
    """What it means that the rule does not hold, for people."""
    until: ColumnElement[datetime] | None = None
    """From when on a resting rule holds by itself, as the facts are; meant where it is broken."""


def _utc(naive: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[datetime]:
    return func.timezone(word("UTC"), naive, type_=Instant)


def _words(values: Iterable[str]) -> list[ColumnElement[str]]:
    return [word(value) for value in values]


def _is_cancelled() -> ColumnElement[bool]:
    return func.coalesce(func.lower(Claim.status), word("")) == word("cancelled")


def _claims(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists(select(1).select_from(Claim).where(Claim.user_id == CrmUser.id, *conditions))


def _signed() -> ColumnElement[bool]:
    return func.coalesce(CrmUser.current_signature_file_id, word("")) != word("")


def _wanting() -> ColumnElement[bool]:
    """Some requirement of a claim that goes on is pending, of a kind that a call can obtain."""
    excused = and_(
        ClaimRequirement.type == word("id_document"),
        ClaimRequirement.claim_requirement_reason == BASE_REQUIREMENT,
    )
    return exists(
        select(1)
        .select_from(ClaimRequirement)
        .join(Claim, Claim.id == ClaimRequirement.claim_id)
        .where(
            Claim.user_id == CrmUser.id,
            not_(_is_cancelled()),
            func.upper(ClaimRequirement.status) == word("PENDING"),
            func.coalesce(ClaimRequirement.type, word("")).not_in(_words(EXCLUDED_REQUIREMENTS)),
            func.coalesce(excused, false()).is_(False),
        )
    )


IN_CRM = Rule("not_in_crm", CrmUser.id.is_not(None), Kind.BARRED, "the CRM does not know them")
ENABLED = Rule("disabled", CrmUser.is_enabled.is_(True), Kind.BARRED, "disabled in the CRM")
NOT_TERMINAL = Rule(
    "opted_out",
    and_(
        func.coalesce(UserCallScore.last_outcome, word("")).not_in(_words(TERMINAL)),
        not_(
            exists(
                select(1)
                .select_from(Assignment)
                .where(
                    Assignment.user_id == CrmUser.id,
                    Assignment.outcome.in_(_words(TERMINAL)),
                )
            )
        ),
    ),
    Kind.BARRED,
    "an earlier call ended with do_not_contact or no_claim",
)
"""Whoever asked not to be contacted, or has no claim, is never offered again (hazard D4)."""
CLAIM_ALIVE = Rule(
    "all_claims_cancelled",
    or_(not_(_claims(_is_cancelled())), _claims(not_(_is_cancelled()))),
    Kind.BARRED,
    "all their claims are cancelled",
)
"""A user without any claim passes (original-dialer section 3)."""
UNSIGNED = Rule("signed", not_(_signed()), Kind.CONVERTED, "they have signed")
SIGNED = Rule("unsigned", _signed(), Kind.BARRED, "they have not signed yet")
WANTING = Rule(
    "requirements_completed",
    _wanting(),
    Kind.CONVERTED,
    "nothing is pending that a call can obtain",
)
ACTIVE = Rule(
    "inactive", UserCallScore.is_active.is_(True), Kind.BARRED, "their score row is not active"
)
RESTED = Rule(
    "cooling_down",
    or_(UserCallScore.next_call_after.is_(None), UserCallScore.next_call_after <= NOW),
    Kind.RESTING,
    "their last outcome asks to wait",
    _utc(UserCallScore.next_call_after),
)
SETTLED = Rule(
    "too_new",
    or_(
        UserCallScore.current_score <= 0,
        UserCallScore.created_at <= NOW - literal(SETTLING, Interval()),
    ).is_(True),
    Kind.RESTING,
    "with a score above 0, and their score row is younger than two hours",
    _utc(UserCallScore.created_at + literal(SETTLING, Interval())),
)


def in_pool(queue: str) -> Rule:
    """The user's score row says that they belong to this dialer queue."""
    return Rule(
        "in_other_queue",
        func.coalesce(UserCallScore.current_queue_type, word("")) == word(queue),
        Kind.BARRED,
        "their score row names another dialer queue, or there is none",
    )
