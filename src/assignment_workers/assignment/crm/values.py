"""The conversion of an external CRM's values to the types of its declared facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from sqlalchemy.types import TypeEngine

from assignment_workers.identity import UserId
from assignment_workers.policy.facts import FactSource, kind_of
from assignment_workers.schema.crm import AnyCase
from assignment_workers.telemetry import CRM_READS

LARGEST_ID = 2**63 - 1
Convert = Callable[[Any], Any]


class Unreadable(Exception):
    """A value of the CRM that cannot be converted to the type of its fact."""


class RowReader:
    """A converter of the rows of a CRM table to types that JSON and COPY accept.

    `columns` has the names of the columns, in the order of a row. A person's id stays the CRM's id.
    """

    def __init__(self, source: FactSource, *, numbered: str | None, folds: bool) -> None:
        """Prepare the conversion of the rows of the CRM table `source`.

        `numbered`: the type of the CRM's ids of persons, such as `uuid`; None: integers. `folds`:
        True if the CRM's server ignores case when it compares texts; the texts of columns of the
        type `AnyCase` are then converted to lower case.
        """
        self.columns = tuple(source.types)
        self._converters = tuple(
            reader_of_ids(numbered)
            if name in source.person_columns
            else _converter(type_, folds=folds)
            for name, type_ in source.types.items()
        )
        self._persons = [self.columns.index(name) for name in sorted(source.person_columns)]
        self._key = [self.columns.index(name) for name in source.key]

    def read(self, row: Sequence[Any]) -> tuple[Any, ...] | None:
        """Return the converted row; None if a value cannot be converted or a key column is null."""
        try:
            read = tuple(
                None if value is None else convert(value)
                for convert, value in zip(self._converters, row, strict=True)
            )
            if any(read[place] is None for place in self._key):
                raise Unreadable("a part of the primary key is null")
        except Unreadable:
            CRM_READS.labels("unreadable").inc()
            return None
        return read

    def persons(self, rows: Iterable[tuple[Any, ...]]) -> set[UserId]:
        """Return the CRM's ids of all persons to whom the rows refer.

        `rows`: results of the method `read`, so their values are converted.
        """
        return {row[place] for row in rows for place in self._persons if row[place] is not None}

    def with_numbers(
        self, row: tuple[Any, ...], numbers: Mapping[UserId, int]
    ) -> tuple[Any, ...] | None:
        """Return a row, converted before, with internal integer ids in place of the CRM's ids.

        `numbers`: the internal id of each person, from `assignment.user_ids`, by the CRM's id. The
        result is None if a person has no internal id.
        """
        changed = list(row)
        for place in self._persons:
            number = numbers.get(row[place])
            if number is None:
                return None
            changed[place] = number
        return tuple(changed)


def reader_of_ids(numbered: str | None) -> Callable[[Any], UserId]:
    """Return the function that converts a person's id in the CRM.

    `numbered`: the type of the CRM's ids; None: integers. The function raises `Unreadable` for a
    value that is not of this type.
    """
    if numbered is None:
        return whole_number
    return _uuid if numbered == "uuid" else str


def _converter(type_: TypeEngine[Any], *, folds: bool) -> Convert:
    if folds and isinstance(type_, AnyCase):
        return _folded
    kind = kind_of(type_)
    if kind is datetime:
        return _aware if getattr(type_, "timezone", False) else instant
    return _CONVERTERS.get(kind, _text)


def _text(value: object) -> str:
    return str(value).replace("\x00", "")


def _folded(value: object) -> str:
    # A MySQL server ignores trailing spaces when it compares, too.
    return _text(value).rstrip(" ").lower()


_TRUTHS = {"1": True, "y": True, "yes": True, "t": True, "true": True}
_TRUTHS |= {"0": False, "n": False, "no": False, "f": False, "false": False}


def _truth(value: object) -> bool:
    """Convert a boolean, 0 or 1, a bit, or a word such as `yes`; else raise `Unreadable`."""
    said = value
    if isinstance(value, bytes):
        said = int.from_bytes(value, "big")
    found = _TRUTHS.get(str(int(said) if isinstance(said, bool) else said).strip().lower())
    if found is None:
        raise Unreadable(f"{value!r:.40} is neither yes nor no")
    return found


def whole_number(value: object) -> int:
    """Convert a value to an integer of 64 bits; raise `Unreadable` if this is impossible."""
    try:
        number = int(str(value))
    except (TypeError, ValueError):
        raise Unreadable(f"{value!r:.40} is not a whole number") from None
    if not -LARGEST_ID <= number <= LARGEST_ID:
        raise Unreadable(f"{number} is not a number of 64 bits")
    return number


def _decimal(value: object) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise Unreadable(f"{value!r:.40} is not a number") from None
    if not number.is_finite():
        raise Unreadable(f"{value!r:.40} is not finite")
    return number


def _float(value: object) -> float:
    return float(_decimal(value))


def instant(value: object) -> datetime | None:
    """Convert a CRM value to a UTC time without a time zone; MySQL's zero date becomes None.

    Raises `Unreadable` if the value is not a time.
    """
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001 - without a zone
    if _is_zero(value):
        return None
    raise Unreadable(f"{value!r:.40} is not a date with a time")


def _aware(value: object) -> datetime | None:
    found = instant(value)
    return None if found is None else found.replace(tzinfo=UTC)


def _date(value: object) -> date | None:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if _is_zero(value):
        return None
    raise Unreadable(f"{value!r:.40} is not a date")


def _is_zero(value: object) -> bool:
    return str(value).startswith("0000-00-00")


def _uuid(value: object) -> str:
    try:
        return str(value if isinstance(value, UUID) else UUID(str(value)))
    except ValueError:
        raise Unreadable(f"{value!r:.40} is not a UUID") from None


_CONVERTERS: Mapping[type[Any] | None, Convert] = {
    bool: _truth,
    int: whole_number,
    float: _float,
    Decimal: _decimal,
    date: _date,
    UUID: _uuid,
}
