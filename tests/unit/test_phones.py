"""The one identity of phone numbers: every form of a number is that number, and no other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from assignment_workers.phones import REACH, Reader, plain
from tests.support.phone_forms import NUMBERS, UNPARSABLE, forms

EVERY = [(e164, region, form) for e164, region in NUMBERS.items() for form in forms(e164, region)]


def test_every_form_of_a_number_is_that_number_and_what_cannot_be_read_is_near_it() -> None:
    counts: Counter[tuple[str, str]] = Counter()
    missed = []
    for e164, region, form in EVERY:
        read = Reader(region).read(form.text)
        if form.kind in UNPARSABLE and e164[-REACH:] in read.unread:
            found = "waits"
        elif e164 in read.e164:
            found = "matched"
        else:
            found = "missed"
            missed.append((region, form, read.e164))
        if found == "matched" and len(read.e164) > 1 + form.several:
            found = "matched wrongly"
            missed.append((region, form, read.e164))
        counts[form.kind, found] += 1
    for kind in dict.fromkeys(form.kind for _, _, form in EVERY):
        told = ", ".join(f"{n} {how}" for (of, how), n in sorted(counts.items()) if of == kind)
        print(f"{kind}: {told}")
    assert missed == []
    readable = {kind for kind, how in counts if how == "waits"}
    assert readable <= UNPARSABLE


@pytest.mark.parametrize(("e164", "region"), NUMBERS.items())
def test_every_form_has_the_same_zones_and_its_extension_apart(e164: str, region: str) -> None:
    reader = Reader(region)
    (alone,) = reader.read(e164).numbers
    for form in forms(e164, region):
        own = [each for each in reader.read(form.text).numbers if each.e164 == e164]
        assert {each.zones for each in own} <= {alone.zones}, form
        if form.kind == "extension":
            assert [each.extension for each in own] == ["9"], form
    assert alone.valid
    assert alone.zones


@settings(max_examples=200, database=None)
@given(some.sampled_from(list(NUMBERS.items())), some.integers(1, 9_999_999))
def test_another_number_is_never_taken_for_it(number: tuple[str, str], more: int) -> None:
    e164, region = number
    other = f"{e164[:-REACH]}{(int(e164[-REACH:]) + more) % 10**REACH:07d}"
    reader = Reader(region)
    if other != e164:
        for text in (other, f"{other} x9", f"tel:{other};ext={e164[-4:]}", f"00{other[1:]}"):
            assert e164 not in reader.read(text).e164


@settings(max_examples=300, database=None)
@given(some.text(max_size=300))
def test_whatever_stands_there_is_read_without_an_error(text: str) -> None:
    read = Reader("GB").read(text, country=text[:7], zone=text[:20])
    assert read.readable == bool(read.e164)
    assert len(read.kinds) == len(read.e164)
    assert plain(text) == plain(f"  {text}\u200b ")


@pytest.mark.parametrize(
    ("text", "country", "zone", "zones", "home"),
    [
        ("(08) 9400 0000", "AU", None, ("Australia/Adelaide", "Australia/Perth"), "AU"),
        ("(08) 9400 0000", "AU-WA", "Australia/Perth", ("Australia/Perth",), "AU-WA"),
        ("+44 20 7946 0000", None, "no/where", ("Europe/London",), "GB"),
        ("+44 20 7946 0000", "neverland", None, ("Europe/London",), "GB"),
        ("999", None, None, (), None),
        ("+44 20 7946 0000 or +1 212 555 0123", None, None, None, None),
    ],
)
def test_zones_and_country_are_the_crm_s_else_the_number_s(
    text: str, country: str | None, zone: str | None, zones: tuple[str, ...] | None, home: str
) -> None:
    read = Reader("GB").read(text, country, zone)
    assert read.country == home
    if zones is None:
        zones = ("Europe/London", "America/New_York")
    assert read.zones == zones


def test_a_short_number_is_nobody_s() -> None:
    read = Reader("GB").read("999")
    assert (read.readable, read.short, read.unread) == (False, "999", ())
