"""Codes of sign-in links: good for one purpose, one secret and a while."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from assignment_workers import links

NOW = datetime(2026, 1, 5, 9, 5, tzinfo=UTC)
SECRET = "a secret"
CODE = links.make(SECRET, links.DASHBOARD, now=NOW)


def read(code: str, *, secret: str = SECRET, purpose: str = links.DASHBOARD) -> object:
    return links.read(secret, purpose, code, now=NOW)


def test_a_code_is_read_until_it_is_over() -> None:
    found = read(CODE)
    assert isinstance(found, links.SignInCode)
    assert found.expires_at == NOW + links.LINK_LASTS
    for left, good in ((timedelta(seconds=1), True), (timedelta(0), False)):
        at = NOW + links.LINK_LASTS - left
        assert bool(links.read(SECRET, links.DASHBOARD, CODE, now=at)) == good


def test_another_secret_or_purpose_reads_nothing() -> None:
    assert read(CODE, secret="another") is None
    assert read(CODE, purpose=links.FLOWER) is None
    assert links.make(SECRET, links.DASHBOARD, now=NOW) != CODE


@given(st.integers(0, len(CODE) - 1), st.characters())
def test_a_changed_code_is_none(place: int, letter: str) -> None:
    changed = CODE[:place] + letter + CODE[place + 1 :]
    assert changed == CODE or read(changed) is None


@given(st.text(max_size=300))
def test_what_is_no_code_is_none(said: str) -> None:
    assert read(said) is None
