"""One phone number in every form that phonenumbers can format and people type."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import phonenumbers
from phonenumbers import PhoneNumberFormat as Format

NUMBERS = {
    "+16502530002": "US",
    "+442079460123": "GB",
    "+447400123456": "GB",
    "+61894000000": "AU",
    "+493012345678": "DE",
    "+390612345678": "IT",
    "+919876543210": "IN",
    "+33612345678": "FR",
}
"""Each with the region of the installation in which it is written."""
ZEROS = (0x0660, 0x06F0, 0x0966, 0xFF10, 0x1D7CE)
"""Arabic-Indic, Persian, Devanagari, full-width and bold digits: the code point of nought."""
INVISIBLE = ("\u200b", "\u00ad", "\u200e", "\u2060", "\ufeff", "\u202c")
EXTENSIONS = (" x9", " ext. 9", ";ext=9", " #9", " extension 9", ",,9#")
UNPARSABLE = {"letter", "too long", "cut short"}
"""The kinds of form that nobody can read for sure."""


class Form(NamedTuple):
    """One way to write a number; `several`: another number stands beside it."""

    kind: str
    text: str
    several: bool = False


def forms(e164: str, region: str, seed: int = 7) -> Iterator[Form]:
    """Every form of a number as it is written in `region`, where it is from."""
    number = phonenumbers.parse(e164)
    formatted = {
        "e164": e164,
        "international": phonenumbers.format_number(number, Format.INTERNATIONAL),
        "national": phonenumbers.format_number(number, Format.NATIONAL),
        "tel uri": phonenumbers.format_number(number, Format.RFC3966),
    }
    out_of = phonenumbers.format_out_of_country_calling_number(number, "SE")
    formatted["from abroad"] = out_of
    for kind, text in formatted.items():
        yield Form(kind, text)
    for kind in ("international", "national"):
        text = formatted[kind].replace("-", " ")
        for separator in ("", ".", "-", "/", "  ", "\u00a0", "\u2013"):
            yield Form(f"separators {kind}", text.replace(" ", separator))
        for extension in EXTENSIONS:
            yield Form("extension", formatted[kind] + extension)
        for zero in ZEROS:
            script = text.translate({ord("0") + value: zero + value for value in range(10)})
            yield Form("digit script", script)
            yield Form("digit script", f"{script} x{chr(zero + 9)}")
        for mark in INVISIBLE:
            yield Form("invisible", mark.join(text))
    country = str(number.country_code)
    own = formatted["international"].removeprefix(f"+{country}").strip()
    yield Form("00", f"00{country} {own}")
    yield Form("00", f"(00{country}) {own}")
    yield Form("00", f"+00{country}{own.replace(' ', '')}")
    yield Form("no plus", f"{country} {own}")
    if region not in {"US", "IT"}:
        for trunk in ("(0)", " (0) ", "(0) ", "[0]"):
            yield Form("(0)", f"+{country}{trunk}{own}")
        yield Form("(0)", f"00{country}(0){own.replace(' ', '')}")
    uri = formatted["tel uri"]
    yield Form("uri", uri.replace("tel:", "TEL:"))
    yield Form("uri", f"{uri};ext=9")
    yield Form("uri", f"tel:{own.replace(' ', '-')};phone-context=+{country}")
    yield Form("uri", f"tel:%2B{e164[1:]}")
    yield Form("uri", f"sip:{e164}@ims.example.org;user=phone")
    yield Form("uri", f"sips:{e164};ext=9@10.0.0.1:5061")
    yield Form("uri", f"<sip:{e164}@ims.example.org>")
    yield Form("in words", f"mobile: {formatted['international']} (evenings)")
    other = "+442071838750" if e164 != "+442071838750" else "+442071838751"
    for beside in (" / ", "/", ", ", "; ", " or ", "\n", " | ", " & "):
        yield Form("two in a cell", f"{formatted['international']}{beside}{other}", several=True)
        yield Form("two in a cell", f"{other}{beside}{formatted['national']}", several=True)
    yield Form("two in a cell", f"{e164} {other}", several=True)
    chance = random.Random(seed)
    place = chance.randrange(1, len(own.replace(" ", "").replace("-", "")) - 7)
    bare = own.replace(" ", "").replace("-", "")
    yield Form("letter", f"{bare[:place]}?{bare[place + 1 :]} maybe {bare[-7:]}")
    yield Form("too long", f"+{country}{country}{country}{country}99{bare}")
    yield Form("cut short", bare[-7:])
