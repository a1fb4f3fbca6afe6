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
    """A column type for a UTC time in `timestamp(3)` without zone, as the dialer and CRM use it.

    Python code passes and gets aware datetimes. A naive datetime is refused, because its zone is
    unknown.
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
        """Return a stored time as an aware datetime in UTC."""
        return None if value is None else value.replace(tzinfo=UTC)

    @property
    def python_type(self) -> type[Any]:
        return datetime


class Base(DeclarativeBase):
    """The base class of this project's tables, in the schema `assignment`."""

    metadata = MetaData(schema="assignment", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class DialerBase(DeclarativeBase):
    """The base class of the dialer's own tables, in the schema `public`.

    A migration takes existing tables over, and creates those that are missing.
    """

    metadata = MetaData(schema="public", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


class CrmBase(DeclarativeBase):
    """The base class of the CRM's tables, in the schema `crm`. They are read, never written."""

    metadata = MetaData(schema="crm", naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text}


def one_of(column: str, values: Iterable[StrEnum]) -> CheckConstraint:
    """Build a check constraint by which `column` holds one of `values`, such as a state."""
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=column)


def sql_text(value: str) -> ColumnElement[str]:
    """Return `value`, a fixed word such as the name of a state, as a literal in the SQL text.

    PostgreSQL uses a partial index only if it sees the condition of the index, and the generic plan
    of a prepared statement does not show the value of a parameter. Raises `ValueError` for a value
    with characters other than letters, digits and underscores.
    """
    if not value.replace("_", "x").isalnum() and value:
        raise ValueError(f"not a name of ours: {value!r}")
    return literal_column(f"'{value}'", Text())
