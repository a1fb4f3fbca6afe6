"""An external CRM's values become those of the declared facts, or are unreadable."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import BigInteger, Boolean, Date, DateTime, Float, Numeric, Text, Uuid
from sqlalchemy.types import TypeEngine

from assignment_workers.assignment.crm.values import RowReader
from assignment_workers.dialer import AnyCase, PersonId, Time
from assignment_workers.policy.facts import FactSource

NAMED = UUID("c11c0000-0000-4000-8000-00000000000a")
NOON = datetime(2026, 6, 1, 12)  # noqa: DTZ001 - as a driver gives it
HERE = timezone(timedelta(hours=2))


def of(type_: TypeEngine[Any], *, numbered: str | None = None, folds: bool = False) -> RowReader:
    persons = frozenset({"value"} if isinstance(type_, PersonId) else ())
    types = {"value": type_}
    source = FactSource("table", "table", {"value": "value"}, types, persons, (), None)
    return RowReader(source, numbered=numbered, folds=folds)


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [
        (Boolean(), b"\x01", True),
        (Boolean(), "N", False),
        (BigInteger(), Decimal(7), 7),
        (Numeric(), "1.50", Decimal("1.50")),
        (Float(), Decimal("0.5"), 0.5),
        (Text(), "a\x00b ", "ab "),
        (Uuid(), NAMED.hex.upper(), str(NAMED)),
        (Date(), NOON, date(2026, 6, 1)),
        (Date(), "0000-00-00", None),
        (Time(), NOON.replace(tzinfo=HERE), datetime(2026, 6, 1, 10)),  # noqa: DTZ001
        (Time(), date(2026, 6, 1), datetime(2026, 6, 1)),  # noqa: DTZ001
        (DateTime(timezone=True), NOON, datetime(2026, 6, 1, 12, tzinfo=UTC)),
        (Text(), None, None),
    ],
    ids=str,
)
def test_a_value_becomes_that_of_its_fact(
    type_: TypeEngine[Any], given: object, expected: object
) -> None:
    assert of(type_).read([given]) == (expected,)


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        (Boolean(), "?"),
        (BigInteger(), "many"),
        (BigInteger(), 2**63),
        (Numeric(), "NaN"),
        (Uuid(), "7"),
        (Date(), "soon"),
        (Time(), "soon"),
        (PersonId(), "D-7"),
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_makes_its_row_unreadable(
    type_: TypeEngine[Any], given: object
) -> None:
    assert of(type_).read([given]) is None


def test_only_a_text_of_any_case_is_folded_and_only_if_its_server_folds() -> None:
    assert of(AnyCase(), folds=True).read(["Open  "]) == ("open",)
    assert of(AnyCase()).read(["Open  "]) == ("Open  ",)
    assert of(Text(), folds=True).read(["Open  "]) == ("Open  ",)


def test_a_person_s_id_is_the_crm_s_own_until_it_gets_our_number() -> None:
    reader = of(PersonId(), numbered="uuid")
    assert reader.read([NAMED]) == (str(NAMED),)
    assert reader.persons([(str(NAMED),), (None,)]) == {str(NAMED)}
    assert reader.with_numbers((str(NAMED),), {str(NAMED): 7}) == (7,)
    assert reader.with_numbers(("another",), {str(NAMED): 7}) is None
    assert of(PersonId(), numbered="text").read(["007"]) == ("007",)
    assert of(PersonId()).read(["007"]) == (7,)
