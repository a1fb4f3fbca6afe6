"""Base classes, column types and constraint names that all table modules share."""

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
    """A UTC time in a `timestamp(3)` without zone, as the dialer and the CRM store it.

    Aware datetimes go in and come out. A naive datetime is refused, because its zone is unknown
    (original-dialer section 1).
    """

    impl = TIMESTAMP(precision=3)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware datetime to UTC without a zone. Raises `ValueError` for a naive one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without zone cannot be stored: {value}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Mark a stored time as UTC."""
        return None if value is None else value.replace(tzinfo=UTC)

    @property
    def python_type(self) -> type[Any]:
        return datetime


class Base(DeclarativeBase):
    """Our tables, in the schema `assignment`."""

    metadata = MetaData(schema="assignment", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class DialerBase(DeclarativeBase):
    """The dialer's tables, in `public`: adopted where they exist, created where they do not."""

    metadata = MetaData(schema="public", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class CrmBase(DeclarativeBase):
    """The CRM's tables, in `crm`: read, never written."""

    metadata = MetaData(schema="crm", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


def one_of(column: str, values: Iterable[StrEnum]) -> CheckConstraint:
    """Build a check constraint that `column` holds one of `values`, such as states."""
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=column)


def sql_text(value: str) -> ColumnElement[str]:
    """Return `value`, a name of ours such as a state, as SQL text instead of a parameter.

    The planner uses a partial index only if it sees the condition of the index. In the generic plan
    of a prepared statement a parameter hides that condition. Raises `ValueError` for a value with
    characters other than letters, digits and underscores.
    """
    if not value.replace("_", "x").isalnum() and value:
        raise ValueError(f"not a name of ours: {value!r}")
    return literal_column(f"'{value}'", Text())
