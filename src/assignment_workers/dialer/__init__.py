"""The names that a dialer's file, `dialerconfig.py`, imports from this package.

A `dialerconfig.py` is a Python file. It defines one object, `dialer`, a `Dialer` of dialer queues
and outcomes. A rule is a SQLAlchemy expression over facts of a person. It may read `Person`, the
CRM's row of the person, and `Score`, the person's score row. It may read other tables about persons
only inside of `exists`, because a person may have several rows there. A rule is true or false,
never null, and reads the time from the parameter `NOW`.
"""

from __future__ import annotations

from assignment_workers.policy.dialer import Dialer, Queue
from assignment_workers.policy.facts import Names, News, Persons, fact_table, person_column
from assignment_workers.policy.outcomes import REVIEW, SCORE_CEILING, Action, Outcome
from assignment_workers.policy.rules import (
    ACTIVE,
    ATTEMPTS,
    CALLING_HOURS,
    CALLS_PER_DAY,
    CONTACTABLE,
    COOL_DOWN,
    HAS_NUMBER,
    IN_CRM,
    IN_POOL,
    NOT_CLOSED,
    NOT_OPTED_OUT,
    NOT_PROMISED,
    NOT_QUARANTINED,
    NOW,
    NUMBER_CLEAR,
    NUMBER_READ,
    OFFER_GAP,
    READY_MADE,
    RESTED,
    ReadyRule,
    Rule,
    RuleEffect,
    settled,
)
from assignment_workers.schema.base import NaiveInstant as Time
from assignment_workers.schema.base import sql_text as word
from assignment_workers.schema.crm import AnyCase, Claim, ClaimRequirement, PersonId
from assignment_workers.schema.crm import CrmUser as Person
from assignment_workers.schema.dialer import UserCallScore as Score

__all__ = [
    "ACTIVE",
    "ATTEMPTS",
    "CALLING_HOURS",
    "CALLS_PER_DAY",
    "CONTACTABLE",
    "COOL_DOWN",
    "HAS_NUMBER",
    "IN_CRM",
    "IN_POOL",
    "NOT_CLOSED",
    "NOT_OPTED_OUT",
    "NOT_PROMISED",
    "NOT_QUARANTINED",
    "NOW",
    "NUMBER_CLEAR",
    "NUMBER_READ",
    "OFFER_GAP",
    "READY_MADE",
    "RESTED",
    "REVIEW",
    "SCORE_CEILING",
    "Action",
    "AnyCase",
    "Claim",
    "ClaimRequirement",
    "Dialer",
    "Names",
    "News",
    "Outcome",
    "Person",
    "PersonId",
    "Persons",
    "Queue",
    "ReadyRule",
    "Rule",
    "RuleEffect",
    "Score",
    "Time",
    "fact_table",
    "person_column",
    "settled",
    "word",
]
