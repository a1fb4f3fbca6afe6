"""Identifiers: their form, their order, and what they are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from random import Random
from uuid import RFC_4122

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assignment_workers.identity import new_id

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

instants = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001 - hypothesis wants bounds without a zone
    max_value=datetime(2038, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


class Bits(Random):
    """A source that gives the bits it was told."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def getrandbits(self, k: int, /) -> int:
        assert self.bits.bit_length() <= k
        return self.bits


@given(instants, st.integers(0, 2**80 - 1))
def test_an_id_is_a_uuid_of_version_7_that_holds_its_millisecond(now: datetime, bits: int) -> None:
    made = new_id(now, Bits(bits))
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 == (now - EPOCH) // MILLISECOND


def test_the_rfc_s_own_example_comes_out() -> None:
    """RFC 9562 appendix A.6; the six bits of version and variant are set over what was random."""
    at = datetime(2022, 2, 22, 14, 22, 22, tzinfo=timezone(timedelta(hours=-5)))
    made = new_id(at, Bits(0xFCC3_D8C4_DC0C_0C07_398F))
    assert str(made) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(instants, st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1))
def test_a_later_millisecond_sorts_behind_whatever_is_random(
    now: datetime, first: int, second: int
) -> None:
    earlier, later = new_id(now, Bits(first)), new_id(now + MILLISECOND, Bits(second))
    assert earlier < later
    assert str(earlier) < str(later)


def test_ids_of_one_instant_differ() -> None:
    randomness = Random(7)
    assert len({new_id(NOW, randomness) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "bit", [each for each in range(80) if each not in {62, 63, *range(76, 80)}]
)
def test_every_bit_that_is_free_is_random(bit: int) -> None:
    assert new_id(NOW, Bits(1 << bit)) != new_id(NOW, Bits(0))


def test_the_same_source_gives_the_same_ids() -> None:
    first, second = Random(2064), Random(2064)
    assert [new_id(NOW, first) for _ in range(3)] == [new_id(NOW, second) for _ in range(3)]
