"""Query plans of the rules that are not built in, to find rules that no index serves.

A rule that no index serves makes a claim read a whole table. Every dialer queue has the rules that
are built into this package. A dialer (the definition of a call centre's dialer queues) adds rules
of its own to them. Only these added rules are examined here. Their queries are explained
(`EXPLAIN`), not run. This module has nothing to do with the sequencer's probe messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Connection, Select, bindparam, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement, Executable
from sqlalchemy.sql.compiler import SQLCompiler

from assignment_workers.policy.queues import Policy
from assignment_workers.policy.rules import READY_MADE, SETTLED, Rule
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore


@dataclass(frozen=True)
class RulePlan:
    """The query plan of a rule: tables that a claim would scan whole, or the planner's error."""

    queue: str
    rule: str
    scanned: tuple[str, ...] = ()
    error: str | None = None


def plans(
    connection: Connection, policies: Mapping[str, Policy], now: datetime
) -> Iterator[RulePlan]:
    """Yield the query plan of each rule that the dialer adds, one dialer queue after the other.

    Rules that are built into this package are left out. A rule of two dialer queues has two plans.
    Each rule's query is explained, not run. Sequential and bitmap scans are switched off for the
    rest of the caller's transaction, so a plan has a sequential scan only where no index serves the
    rule.
    """
    connection.execute(_ONLY_BY_INDEX)
    for policy in policies.values():
        for rule in policy.rules:
            if rule.name not in READY_MADE and rule.name != SETTLED:
                yield _plan(connection, policy, rule, now)


def _plan(connection: Connection, policy: Policy, rule: Rule, now: datetime) -> RulePlan:
    parameters = {**policy.building(now), "users": []}
    try:
        with connection.begin_nested():
            found = connection.execute(_Explained(_judged(rule)), parameters).scalar_one()
    except DBAPIError as error:
        return RulePlan(policy.queue, rule.name, error=str(error.orig).splitlines()[0])
    scanned = tuple(sorted(set(_scans(found[0]["Plan"]))))
    return RulePlan(policy.queue, rule.name, scanned)


def _judged(rule: Rule) -> Select[*tuple[Any, ...]]:
    """Select the verdict of the rule on each user in the SQL parameter `users`."""
    head = (
        select(func.unnest(bindparam("users", type_=ARRAY(BigInteger))).label("user_id"))
        .cte("head")
        .prefix_with("MATERIALIZED")
    )
    return (
        select(head.c.user_id, rule.holds)
        .select_from(head)
        .outerjoin(UserCallScore, UserCallScore.user_id == head.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == head.c.user_id)
    )


def _scans(plan: Mapping[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield str(plan["Relation Name"])
    for part in plan.get("Plans", ()):
        yield from _scans(part)


class _Explained(Executable, ClauseElement):
    """The statement `EXPLAIN (FORMAT JSON)` of a query, as an SQLAlchemy element."""

    inherit_cache = False

    def __init__(self, query: Select[*tuple[Any, ...]]) -> None:
        self.query = query


@compiles(_Explained)
def _explain(element: _Explained, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.query, **options)}"


_ONLY_BY_INDEX = select(
    *(func.set_config(f"enable_{way}", "off", True) for way in ("seqscan", "bitmapscan"))
)
