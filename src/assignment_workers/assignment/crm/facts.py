"""The queries to an external CRM, in its own names, and the conversion of its rows to facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    bindparam,
    column,
    null,
    or_,
    select,
    table,
)

from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import (
    FACTS,
    FOLDED,
    Claim,
    ClaimRequirement,
    CrmMapping,
    CrmUser,
)
from assignment_workers.telemetry import CRM_READS

Key = int | str
Position = tuple[datetime, Key | None]
"""A point in a CRM table that is read in the order of `created_at` and id: the last row read.

If the id is None, the point lies before all rows with that `created_at`.
"""


LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class NewCrmRow:
    """A new row of the CRM: its creation time, its own id, and its user's id."""

    created_at: datetime
    key: Key
    user_id: int


class Unreadable(Exception):
    """A value of the CRM that cannot be converted to the type of its fact."""


@dataclass(frozen=True)
class CrmFacts:
    """CRM facts of some users, in the form of SQL parameters.

    `unreadable`: users whose facts in the CRM cannot be used, so that nothing is known about them.
    """

    parameters: Mapping[str, Sequence[Mapping[str, Any]]]
    unreadable: frozenset[int]


def parameter(model: type[CrmBase]) -> str:
    """Return the name of the SQL parameter that holds the facts of this CRM table."""
    return f"crm_{model.__tablename__}"


class Queries:
    """The queries to an external CRM, in that CRM's table and column names.

    Methods convert the rows of these queries to our facts.
    """

    def __init__(self, mapping: CrmMapping, *, folds: bool) -> None:
        self._folded = FOLDED if folds else set()
        tables = {
            model: table(
                name,
                *(
                    column(mapping.column(model, each))
                    for each in FACTS[model]
                    if mapping.has(model, each)
                ),
            )
            for model, name in mapping.tables.items()
        }
        self._columns: dict[type[CrmBase], dict[str, ColumnElement[Any]]] = {
            model: {
                name: of.c[mapping.column(model, name)]
                if mapping.has(model, name)
                else null().label(name)
                for name in FACTS[model]
            }
            for model, of in tables.items()
        }
        user, claim, asked = (self._columns[each] for each in (CrmUser, Claim, ClaimRequirement))
        chain = (
            tables[CrmUser]
            .outerjoin(tables[Claim], claim["user_id"] == user["id"])
            .outerjoin(tables[ClaimRequirement], asked["claim_id"] == claim["id"])
        )
        self._width = {model: len(names) for model, names in FACTS.items()}
        every = [
            of.label(f"{place}_{name}")
            for place, model in enumerate(FACTS)
            for name, of in self._columns[model].items()
        ]
        self.facts = (
            select(*every)
            .select_from(chain)
            .where(user["id"].in_(bindparam("users", expanding=True)))
        )
        """Query for users with their claims and requirements, all read at one instant."""
        self.probe = select(user["id"]).limit(1)
        self.everything = {model: select(*self._columns[model].values()) for model in FACTS}
        wanted = tables[ClaimRequirement].join(tables[Claim], asked["claim_id"] == claim["id"])
        self.since: dict[tuple[str, bool], Select[*tuple[Any, ...]]] = {
            (model.__tablename__, goes_on): self._since(source, of, owner, goes_on)
            for model, source, of, owner in (
                (CrmUser, tables[CrmUser], user, user["id"]),
                (ClaimRequirement, wanted, asked, claim["user_id"]),
            )
            for goes_on in (False, True)
        }

    @staticmethod
    def _since(
        source: FromClause,
        of: Mapping[str, ColumnElement[Any]],
        user: ColumnElement[Any],
        goes_on: bool,  # noqa: FBT001
    ) -> Select[*tuple[Any, ...]]:
        at, key = of["created_at"], of["id"]
        after = at >= bindparam("at")
        if goes_on:
            after = or_(at > bindparam("at"), (at == bindparam("at")) & (key > bindparam("key")))
        return (
            select(at.label("created_at"), key.label("key"), user.label("user"))
            .select_from(source)
            .where(after)
            .order_by(at, key)
            .limit(bindparam("most", type_=Integer))
        )

    def facts_of(self, found: Sequence[Row[*tuple[Any, ...]]]) -> CrmFacts:
        """Return the facts in the rows of the query `facts`, each only once.

        A row of that join has a user, one of the user's claims and one of its requirements.
        """
        kept: dict[type[CrmBase], dict[object, dict[str, Any]]] = {model: {} for model in FACTS}
        unreadable = set()
        for row in found:
            begin = 0
            for model, width in self._width.items():
                part = row[begin : begin + width]
                begin += width
                if part[0] is None or part[0] in kept[model]:
                    continue
                values = self.values(model, part)
                if values is None:
                    unreadable.add(int(row[0]))
                else:
                    kept[model][part[0]] = dict(zip(FACTS[model], values, strict=True))
        facts = {parameter(model): [*each.values()] for model, each in kept.items()}
        return CrmFacts(facts, frozenset(unreadable))

    def values(self, model: type[CrmBase], row: Sequence[Any]) -> tuple[Any, ...] | None:
        """Convert a row of this CRM table to our types, whatever the CRM's types are.

        None for a row with values that cannot be converted.
        """
        named = zip(FACTS[model], row, strict=True)
        try:
            return tuple(self._value(model, name, value) for name, value in named)
        except Unreadable:
            CRM_READS.labels("unreadable").inc()
            return None

    def _value(self, model: type[CrmBase], name: str, value: object) -> object:
        kind = model.__table__.c[name].type.python_type
        if value is None:
            return None
        if kind is bool:
            return _truth(value)
        if kind is int:
            return _number(value)
        if kind is datetime:
            return _instant(value)
        text = str(value).replace("\x00", "")
        # The rules ignore case, and a MySQL server ignores trailing spaces when it compares.
        return text.rstrip(" ").lower() if (model, name) in self._folded else text


_TRUTHS = {"1": True, "y": True, "yes": True, "t": True, "true": True}
_TRUTHS |= {"0": False, "n": False, "no": False, "f": False, "false": False}


def found_of(created_at: object, key: object, user: object) -> NewCrmRow:
    at = _instant(created_at)
    if at is None:
        raise Unreadable("a row was made at no time")
    own = key if isinstance(key, int) else str(key)
    return NewCrmRow(at.replace(tzinfo=UTC), own, _number(user))


def _truth(value: object) -> bool:
    """Read a boolean from a boolean, 0 or 1, a bit, or a word for either."""
    said = value
    if isinstance(value, bytes):
        said = int.from_bytes(value, "big")
    found = _TRUTHS.get(str(int(said) if isinstance(said, bool) else said).strip().lower())
    if found is None:
        raise Unreadable(f"{value!r:.40} is neither yes nor no")
    return found


def _number(value: object) -> int:
    try:
        number = int(str(value))
    except (TypeError, ValueError):
        raise Unreadable(f"{value!r:.40} is not a whole number") from None
    if not -LARGEST_ID <= number <= LARGEST_ID:
        raise Unreadable(f"{number} is not a number of 64 bits")
    return number


def _instant(value: object) -> datetime | None:
    """Convert a CRM value to a UTC time without a time zone; MySQL's zero date becomes None."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if str(value).startswith("0000-00-00"):
        return None
    raise Unreadable(f"{value!r:.40} is not a date with a time")
