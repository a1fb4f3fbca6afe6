"""What every table module shares: the bases, column types and the naming of constraints."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    DateTime,
    Dialect,
    MetaData,
    Text,
    TypeDecorator,
    literal_column,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase

NAMES = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
}

Instant = DateTime(timezone=True)


class NaiveInstant(TypeDecorator[datetime]):
    """UTC in a `timestamp(3)` without zone, as the dialer and the CRM store it.

    Aware datetimes go in and come out; a naive one is refused, for nobody knows what it means
    (original-dialer section 1).
    """

    impl = TIMESTAMP(precision=3)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Drop the zone of an aware datetime after bringing it to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without zone cannot be stored: {value}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say that a stored time is UTC."""
        return None if value is None else value.replace(tzinfo=UTC)

    @property
    def python_type(self) -> type[Any]:
        return datetime


class Base(DeclarativeBase):
    """Tables of ours, in the schema `assignment`."""

    metadata = MetaData(schema="assignment", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class DialerBase(DeclarativeBase):
    """Tables of the dialer, in `public`: adopted where they exist, created where not."""

    metadata = MetaData(schema="public", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class CrmBase(DeclarativeBase):
    """Tables of the CRM, in `crm`: read, never written."""

    metadata = MetaData(schema="crm", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


def one_of(column: str, values: Iterable[StrEnum]) -> CheckConstraint:
    """A check that `column` holds one of the names in `values`."""
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=column)


def sql_text(value: str) -> ColumnElement[str]:
    """A name of ours, such as a state, written into the statement and not sent as a parameter.

    A partial index is used only where the planner sees its condition; in the generic plan of a
    prepared statement a parameter hides it.
    """
    if not value.replace("_", "x").isalnum() and value:
        raise ValueError(f"not a name of ours: {value!r}")
    return literal_column(f"'{value}'", Text())
