"""Compare the users whom this system would offer with those whom the dialer offers. Read only."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeGuard, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Subquery,
    Table,
    Text,
    bindparam,
    case,
    column,
    exists,
    false,
    func,
    literal,
    null,
    select,
    table,
    text,
)
from sqlalchemy import (
    cast as as_type,
)
from sqlalchemy.sql.visitors import replacement_traverse

from assignment_workers.adoption.sources import found_sources
from assignment_workers.assignment.crm.external_crm import BATCH_SECONDS, Crm
from assignment_workers.assignment.crm.reader import over_facts, own_ids
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.base import Base, sql_text
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.dialer_schema import in_schema, schema_of
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import Phone


@dataclass(frozen=True)
class Compared:
    """A number of users whom only this system or only the dialer would offer, for one reason.

    `only` is `ours` or `theirs`. For `theirs`, `rule` is the first of our rules that the users
    break, or `no_score_row` or `not_in_crm` if no rule can be evaluated. For `ours`, `rule` is
    `meets every rule`. `first` is the lowest id of these users.
    """

    queue: str
    only: str
    rule: str
    users: int
    first: int


def compare(connection: Connection, crm: Crm | None, *, now: datetime) -> list[Compared]:
    """Count the users whom only this system, or only the dialer, would offer at `now`.

    The dialer offers a user if its queue table has a pending or assigned row of the user. From an
    external CRM, the facts of `USERS_AT_A_TIME` users are read at a time. Raises `UsageError` if no
    queue table of the dialer exists, if a table that our rules read does not exist, or if this
    process has no policy for one of the queue tables. Raises `CrmUnavailable`, `SchemaMismatch` or
    `UsageError` if the external CRM cannot be read.
    """
    sources = found_sources(connection)
    if not sources:
        raise UsageError("nothing to compare with: the dialer's own queue tables are not there")
    for needed in (
        "public.user_call_scores",
        "public.callbacks",
        *(("crm.users", "crm.claims", "crm.claim_requirements") if crm is None else ()),
    ):
        if connection.execute(text(f"SELECT to_regclass('{needed}')")).scalar() is None:
            name = in_schema(needed, schema_of(connection))
            raise UsageError(f"the table {name} is not there: our rules cannot be asked")
    for source in sources:
        if source.queue not in loaded().policies:
            raise UsageError(
                f"the dialer has no queue {source.queue}: there are {', '.join(loaded().policies)}"
            )
    if crm is not None:
        crm.check()
    # Without statistics the planner would scan one table for each row of the other.
    connection.execute(text("SET LOCAL enable_nestloop TO off"))
    return [
        each
        for source in sources
        for each in _compared(connection, loaded().policies[source.queue], source.table, now, crm)
    ]


def _compared(
    connection: Connection, policy: Policy, name: str, now: datetime, crm: Crm | None
) -> Iterator[Compared]:
    is_ours_there = connection.execute(_ARE_THERE).scalar_one()
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for users in (None,) if crm is None else _batches(connection, name):
        given: dict[str, Any] = {"now": now, "users": users}
        if crm is not None and users is not None:
            ids = own_ids(loaded(), connection, users)
            given |= crm.facts(ids, seconds=BATCH_SECONDS).parameters
        for only, statement in _statements(policy, name, by_user=users is not None).items():
            counted = statement
            if crm is not None:
                counted = over_facts(counted, crm.declared)
            if not is_ours_there:
                counted = cast("Any", replacement_traverse(counted, {}, _without_ours))
            for row in connection.execute(counted, given):
                number, first = counts.get((only, row.rule), (0, row.id))
                counts[only, row.rule] = number + row.users, min(first, row.id)
    for (only, rule), (number, first) in sorted(counts.items(), reverse=True):
        yield Compared(policy.queue, only, rule, number, first)


def _batches(connection: Connection, name: str) -> Iterator[list[int]]:
    """Yield the ids of the users whom `compare` judges, in batches of at most `USERS_AT_A_TIME`.

    They are the users who have a pending or assigned row in the dialer's queue table `name`, and
    the users who have a row in the table `user_call_scores`. The ids are in ascending order.
    """
    rows = connection.execute(
        text(
            f"SELECT user_id FROM public.{name} WHERE status IN ('pending', 'assigned')"
            " UNION SELECT user_id FROM public.user_call_scores ORDER BY 1"
        )
    )
    users = array("q", (row.user_id for row in rows.yield_per(USERS_AT_A_TIME)))
    for start in range(0, len(users), USERS_AT_A_TIME):
        yield list(users[start : start + USERS_AT_A_TIME])


@expression_cache
def _statements(policy: Policy, name: str, *, by_user: bool) -> dict[str, Select[Any]]:
    """Return two queries that count users, under the keys `ours` and `theirs`.

    `ours` counts the users whom only this system offers. `theirs` counts the users whom only the
    dialer offers, grouped by the rule of ours that the users break. If a user breaks several rules,
    the first of them in the order of `policy.rules` counts. If no rule can be evaluated, because a
    row is missing, the group is `no_score_row` or `not_in_crm`. `name` is the dialer's queue table.
    `by_user`: True if the queries have a SQL parameter `users`, and count only the users whose ids
    are in it; False: the queries count all users.
    """
    theirs = table(name, column("user_id", BigInteger()), column("status", Text()), schema="public")
    offered = theirs.c.status.in_([sql_text("pending"), sql_text("assigned")])
    asked = bindparam("users", type_=ARRAY(BigInteger()))
    queued = select(theirs.c.user_id).where(offered).distinct()
    if by_user:
        queued = queued.where(theirs.c.user_id == func.any(asked))
    queue = queued.subquery("queued")
    rule = case(
        (UserCallScore.user_id.is_(None), sql_text("no_score_row")),
        (CrmUser.id.is_(None), sql_text("not_in_crm")),
        else_=policy.broken_rule(),
    )
    lost = (
        select(queue.c.user_id, rule.label("rule"))
        .select_from(queue)
        .outerjoin(UserCallScore, UserCallScore.user_id == queue.c.user_id)
        .outerjoin(CrmUser, CrmUser.id == queue.c.user_id)
        .outerjoin(Phone, Phone.user_id == queue.c.user_id)
        .subquery("lost")
    )
    meets = (
        select(UserCallScore.user_id, literal("meets every rule").label("rule"))
        .join(CrmUser, CrmUser.id == UserCallScore.user_id)
        .outerjoin(Phone, Phone.user_id == UserCallScore.user_id)
        .where(
            policy.eligible(),
            ~exists(
                select(1)
                .select_from(theirs)
                .where(theirs.c.user_id == UserCallScore.user_id, offered)
            ),
        )
    )
    if by_user:
        meets = meets.where(UserCallScore.user_id == func.any(asked))
    return {
        only: select(
            found.c.rule, func.count().label("users"), func.min(found.c.user_id).label("id")
        )
        .where(found.c.rule.is_not(None))
        .group_by(found.c.rule)
        for only, found in (("theirs", lost), ("ours", meets.subquery("gained")))
    }


USERS_AT_A_TIME = 5_000
"""The number of users whose facts are read from an external CRM with one query."""
_ARE_THERE = text("SELECT to_regclass('assignment.assignments') IS NOT NULL")


@cache
def _nobody(of: Table) -> Subquery:
    """Return a subquery that has the columns of the table `of`, and no rows.

    The subquery stands in for the table before a migration, when the database has no such table.
    """
    columns = (as_type(null(), each.type).label(each.name) for each in of.columns)
    return select(*columns).where(false()).subquery(of.name)


def _without_ours(element: object, **_: object) -> ColumnElement[Any] | FromClause | None:
    """Return a substitute for `element` in a rule's SQL if `element` is one of our tables.

    Before a migration, our tables do not exist. So an empty subquery replaces each of our tables,
    and a column of that subquery replaces a column of the table. Returns None for anything else,
    which leaves `element` unchanged.
    """
    if isinstance(element, Column) and _is_ours(element.table):
        return _nobody(element.table).c[element.name]
    return _nobody(element) if _is_ours(element) else None


def _is_ours(element: object) -> TypeGuard[Table]:
    return isinstance(element, Table) and element.schema == Base.metadata.schema
