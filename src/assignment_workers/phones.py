"""Phone identity: the numbers that a text means, read in the same way everywhere.

Suppressions (bans on calls), calling hours and missed calls use the identities read here, not the
text. There is one exception: a suppression whose text is no phone number is compared by its text
(`plain`). One `Reader` always gives the same identity for the same text, if the country and the
time zone that the CRM has for the person are also the same.
"""

from __future__ import annotations

import hmac
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import phonenumbers
from phonenumbers import (
    CountryCodeSource,
    PhoneNumber,
    PhoneNumberFormat,
    PhoneNumberType,
    shortnumberinfo,
)
from phonenumbers import timezone as number_zones

KEYED = "hmac:"
"""The prefix of a keyed hash that is stored in place of a phone number."""
RULES = 1
"""The version of the rules in this module. Increase it with each change of the rules: the
stored normal forms of phone numbers are then made again from the original texts.
"""
READ_AT_MOST = 250
"""The number of characters, at the beginning of a text, that are searched for phone numbers.

The library phonenumbers has the same limit. The rest of a longer text is not searched, but it may
contain a phone number. Therefore, the last 7 digits (`REACH`) of each part of the rest that has at
least 7 digits are stored in `Identity.unread`.
"""
REACH = 7
"""The number of last digits that are compared if one of two phone numbers cannot be read."""
_SHORTEST_CODE = 3
_SHORTEST = 5
"""The least number of digits in a part of a text for the part to be read as a number."""
_TOKENS_AT_MOST = 8
"""The greatest number of groups of digits in a text that is split into several phone numbers.

All combinations of the groups are tried, so a text with more groups is not split.
"""
_REMEMBERED = 50_000

KINDS = {
    PhoneNumberType.MOBILE: "mobile",
    PhoneNumberType.FIXED_LINE: "fixed",
    PhoneNumberType.FIXED_LINE_OR_MOBILE: "fixed_or_mobile",
    PhoneNumberType.TOLL_FREE: "toll_free",
    PhoneNumberType.PREMIUM_RATE: "premium",
    PhoneNumberType.SHARED_COST: "shared_cost",
    PhoneNumberType.VOIP: "voip",
    PhoneNumberType.PERSONAL_NUMBER: "personal",
    PhoneNumberType.PAGER: "pager",
    PhoneNumberType.UAN: "company",
    PhoneNumberType.VOICEMAIL: "voicemail",
}
"""The kind of line of a phone number (mobile, fixed, ...), by the type in the library phonenumbers.

Any other number has the kind `unknown`: its length is possible, but it is in no allocated range.
"""


@dataclass(frozen=True)
class Number:
    """A phone number in a text, in E.164 without its extension."""

    e164: str
    kind: str
    valid: bool
    """True if the number is in an allocated range. False: only its length is possible."""
    sure: bool
    """True if the number is valid, and not so short that it may be the end of another number."""
    region: str | None
    zones: tuple[str, ...]
    extension: str | None = None


@dataclass(frozen=True)
class Identity:
    """The phone numbers in a person's phone text, and the parts that could not be read for certain.

    `unread` has the last 7 digits (`REACH`) of each doubtful part of the text. A part is doubtful
    if it has at least 7 digits but cannot be read as a phone number. A number in `numbers` may be
    doubtful too: perhaps it was mistyped or cut short, and another number is meant (`Number.sure`
    is False). Then `unread` also has the last 7 digits of this number.

    `zones` are the time zones where the person may be; calling hours must be open in all of them.
    `country` is the person's country, or a part of a country if the CRM names one, as in `AU-WA`.
    """

    numbers: tuple[Number, ...] = ()
    unread: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    country: str | None = None
    short: str | None = None
    """The text if it is a short number such as 999. No user is called at such a number."""

    @property
    def readable(self) -> bool:
        """True if at least one phone number was read in the CRM's text."""
        return bool(self.numbers)

    @property
    def e164(self) -> list[str]:
        """The distinct phone numbers, in the order of the text."""
        return list(dict.fromkeys(each.e164 for each in self.numbers))

    @property
    def kinds(self) -> list[str]:
        """The kind of line (`mobile`, `fixed`, ...) of each number in `e164`, in the same order."""
        return list({each.e164: each.kind for each in self.numbers}.values())

    @property
    def tails(self) -> list[str]:
        """The last 7 digits (`REACH`) of each number, and of each part that could not be read.

        They are compared with the last digits of other phone texts, because an unreadable number
        with the same last digits may be the same number.
        """
        return sorted({*(reach(each.e164) for each in self.numbers), *self.unread})


@dataclass(frozen=True)
class Reader:
    """A reader of phone numbers, with the settings of an installation.

    `region` is the region of a number without a country code, if the country of the person is not
    known. Each pair in `zones` is a prefix, which is the first digits of phone numbers without +,
    and the time zone that an operator chose for the numbers with this prefix. The longest prefix
    comes first.
    """

    region: str = "GB"
    zones: tuple[tuple[str, ZoneInfo], ...] = ()
    key: str | None = field(default=None, repr=False)
    """The secret key of the hashes that are stored in place of erased users' phone numbers.

    The method `keyed` makes the hashes. None: no hashes can be made.
    """
    tag: str = field(init=False, default="", compare=False)
    """The version of this reader, which is stored with the numbers that it reads.

    It depends on all that affects the reading of a number: the rules, the library phonenumbers, the
    region, the time zones and the key. If a stored number has another tag, its text is read again.
    """

    def __post_init__(self) -> None:
        """Compute `tag` from the rules, the version of phonenumbers, and this reader's fields."""
        said = ",".join(f"{prefix}={zone.key}" for prefix, zone in self.zones)
        version = phonenumbers.__version__.replace(".", "_")
        sum_of = f"_{zlib.crc32(said.encode()):08x}" if said else ""
        of_key = "" if self.key is None else f"_k{self._key_id}"
        object.__setattr__(self, "tag", f"{RULES}_{version}_{self.region}{sum_of}{of_key}")

    @property
    def _key_id(self) -> str:
        return self._hmac("key")[:8]

    def _hmac(self, said: str) -> str:
        return hmac.digest((self.key or "").encode(), said.encode(), "sha256").hex()

    @property
    def keyed_prefix(self) -> str | None:
        """The prefix of each hash that the method `keyed` returns; it identifies the secret key.

        None: this reader has no key.
        """
        return None if self.key is None else f"{KEYED}{self._key_id}:"

    def keyed(self, number: str) -> str:
        """Return the keyed hash of a phone number in E.164, or of a text normalised by `plain`.

        With one key, the same number always gives the same hash. Raises `ValueError` without a key.
        """
        if self.key is None:
            raise ValueError("there is no key for phone numbers")
        return f"{self.keyed_prefix}{self._hmac(f'number {number}')}"

    def read(
        self, text: str | None, country: str | None = None, zone: str | None = None
    ) -> Identity:
        """Return the identity that a text means: its numbers, and the parts that cannot be read.

        `country` and `zone` are the CRM's facts about the person, or None. Never raises. Cost:
        about 60 µs for a usual number, up to some milliseconds for a text in which several numbers
        must be separated.
        """
        of = _country(country)
        region = of.partition("-")[0] if of else self.region
        numbers, unread, short = _read_text(text or "", region)
        regions = {each.region for each in numbers}
        home = of or (next(iter(regions)) if len(regions) == 1 else None)
        return Identity(numbers, unread, self._zones(numbers, zone), home, short)

    def numbers(self, text: str) -> list[str]:
        """Return the numbers of a text in E.164 if all of the text can be read; else an empty list.

        It is meant for long lists, because it costs about a third of `read`.
        """
        cleaned = _clean(text)
        if len(cleaned) > READ_AT_MOST:
            return []
        found, unread = _find(_of_uri(cleaned), self.region)
        if unread:
            return []
        made = (phonenumbers.format_number(each, PhoneNumberFormat.E164) for each in found)
        return list(dict.fromkeys(made))

    def _zones(self, numbers: Iterable[Number], said: str | None) -> tuple[str, ...]:
        if said and _is_zone(said.strip()):
            return (said.strip(),)
        zones: dict[str, None] = {}
        for each in numbers:
            own = next((z.key for first, z in self.zones if each.e164[1:].startswith(first)), None)
            zones |= dict.fromkeys([own] if own else each.zones)
        return tuple(zones)


Line = tuple[int, str, datetime | None]
"""A line of an imported suppression list: line number, phone text, end of the suppression."""
Read = tuple[int, str, list[str], int]
"""The result of `read_chunk`, a tuple of four values.

The first is the number of lines. The second is the rows for PostgreSQL's COPY. The third is a note
on each line without a readable number. The fourth is the count of phone numbers that are not in the
rows, because they are erased users' numbers that are suppressed already.
"""


def read_chunk(
    reader: Reader,
    lines: Sequence[Line],
    *,
    forgotten: Mapping[str, datetime | None] | None = None,
    expires_at: datetime | None = None,
) -> Read:
    """Read the phone numbers in some lines of an imported list of numbers that must not be called.

    `forgotten` has the phone numbers of erased users that are suppressed already. It maps the hash
    of each number to the time at which the number's suppression ends. A time of None means that the
    suppression never ends. A number in `forgotten` is left out of the result, unless the list
    suppresses the number for longer. `expires_at`: the time at which the whole list expires. The
    function is in this module because a worker process that reads lists loads no other module.
    """
    made = []
    unread = []
    left_out = 0
    for line, said, until in lines:
        numbers = reader.numbers(said)
        if not numbers:
            unread.append(f"line {line}: {said[:40]!r}")
        if forgotten:
            ends = min((each for each in (until, expires_at) if each), default=None)
            kept = [each for each in numbers if not _outlasts(forgotten, reader.keyed(each), ends)]
            left_out += len(numbers) - len(kept)
            numbers = kept
        made += [f"{each}\t{until.isoformat() if until else NULL}\n" for each in numbers]
    return len(lines), "".join(made), unread, left_out


def _outlasts(forgotten: Mapping[str, datetime | None], keyed: str, ends: datetime | None) -> bool:
    """Return True if an erased user's phone number is already suppressed until `ends` or longer.

    `keyed`: the hash of the number. `forgotten`: the time at which the suppression (ban on calls)
    of each erased user's number ends, by the number's hash. A time of None means never.
    """
    if keyed not in forgotten:
        return False
    until = forgotten[keyed]
    return until is None or (ends is not None and until >= ends)


def end_with_parent() -> None:
    """Start a thread that ends this process as soon as its parent process has ended."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if (parent := parent_process()) is not None:
        Thread(target=watch, args=(parent,), daemon=True).start()


NULL = "\\N"


def reach(number: str) -> str:
    """Return the last 7 digits (`REACH`) of a number, for comparison with the end of another."""
    return number[-REACH:]


def plain(text: str) -> str:
    """Return the form of a text for comparison, in small letters.

    Spaces and invisible characters are removed. It is meant for a text that is not a phone number.
    """
    return "".join(_clean(text).casefold().split())


def tails(text: str) -> list[str]:
    """Return the last 7 digits (`REACH`) of each part of `text`, which need not be a phone number.

    The parts are the whole text, the pieces between separators (such as commas, slashes, line
    breaks, and the word `or`), and each group of digits with the spaces, dots, dashes and brackets
    in it. A part with fewer than 7 digits is left out. The result is compared with the last digits
    of phone numbers: a phone number that ends with the same digits may be the one in the text.
    """
    return sorted(set(_tails(_clean(text))))


@lru_cache(_REMEMBERED)
def _read_text(given: str, region: str) -> tuple[tuple[Number, ...], tuple[str, ...], str | None]:
    text = _clean(given[:READ_AT_MOST])
    beyond = tuple(_tails(_clean(given[READ_AT_MOST:]))) if len(given) > READ_AT_MOST else ()
    found, unread = _find(_of_uri(text), region)
    numbers = tuple({each.e164: each for each in map(_number, found)}.values())
    short = None if numbers else _short(text, region)
    unsure = {reach(each.e164) for each in numbers if not each.sure}
    left = () if short else tuple(sorted({*unread, *beyond, *unsure}))
    return numbers, left, short


def _find(text: str, region: str) -> tuple[list[PhoneNumber], set[str]]:
    """Return the phone numbers in a text, and the last 7 digits (`REACH`) of each unread part.

    The first of these cases that fits decides:

    - The text has several parts, and each part is a valid number. These numbers are returned.
    - The whole text is one valid number. This number is returned.
    - The library phonenumbers finds no valid number in the text, but the whole text has a possible
      length for a number. The whole text is returned as a number.
    - None of the above. The numbers that the library finds are returned, and also the numbers that
      are read in the rest of the text. A part of the rest in which no number is read is an unread
      part, if it has at least 7 digits. Only in this case there are unread parts.
    """
    parts = [part for part in _SEPARATOR.split(text) if len(_digits(part)) >= _SHORTEST]
    if len(parts) > 1:
        each_read = [_read(part, region) for part in parts]
        if all(is_valid for _, is_valid in each_read):
            return [each for each, _ in each_read if each], set()
    whole, is_valid = _read(text, region)
    if whole and is_valid:
        return [whole], set()
    matched = [(m.start, m.end, m.number) for m in phonenumbers.PhoneNumberMatcher(text, region)]
    rest = text
    for start, end, _ in reversed(matched):
        rest = f"{rest[:start]}|{rest[end:]}"
    found = [number for _, _, number in matched]
    unread: set[str] = set()
    if not found and whole:
        return [whole], set()
    for part in _SEPARATOR.split(rest):
        if len(_digits(part)) < _SHORTEST:
            continue
        one, _ = _read(part, region)
        several = [one] if one else _apart(part, region)
        found += several
        if not several:
            unread |= set(_tails(part))
    return found, unread


def _read(text: str, region: str) -> tuple[PhoneNumber | None, bool]:
    """Read a text as one number; return the number or None, and True if the number is valid.

    If there are several readings, the first valid one is returned, or else the first possible one.
    """
    if len(_digits(text)) < _SHORTEST and not phonenumbers.is_alpha_number(text.strip()):
        return None, False
    possible = None
    for way, is_guess in _ways(text):
        try:
            number = phonenumbers.parse(way, region, keep_raw_input=True)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            return number, True
        if possible is None and not is_guess and _is_possible(number):
            possible = number
    return possible, False


def _is_possible(number: PhoneNumber) -> bool:
    """Return True if a complete number, with its area code, may have the length of this number.

    False for a length that only a local number without its area code can have, because such a
    number does not identify a subscriber.
    """
    found = phonenumbers.is_possible_number_with_reason(number)
    return bool(found == phonenumbers.ValidationResult.IS_POSSIBLE)


def _ways(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the text, and other readings of it for spellings that the library does not expect.

    Each reading comes with True if it is a guess, which counts only if it gives a valid number.
    """
    yield text, False
    without = _TRUNK.sub(r"\1 ", text)
    if without != text:
        yield without, False
    international = _INTERNATIONAL.sub("+", without)
    if international != without:
        yield international, False
    if _LETTERS.search(text):
        read = _LETTERS.sub(lambda each: "0" if each[0] in "oO" else "1", international)
        yield read, True
    if not international.lstrip(" (").startswith("+") and not _digits(text).startswith("0"):
        yield f"+{international.strip()}", True


def _apart(text: str, region: str) -> list[PhoneNumber]:
    """Return the numbers of a text in which several numbers are separated only by spaces.

    These are the fewest numbers that together use every group of digits. The list is empty if no
    such numbers are found. It is also empty if the text has only one group, or more than 8 groups
    (`_TOKENS_AT_MOST`).
    """
    tokens = text.split()
    if not 1 < len(tokens) <= _TOKENS_AT_MOST:
        return []
    best: list[list[PhoneNumber] | None] = [[], *[None] * len(tokens)]
    for end in range(1, len(tokens) + 1):
        for start in range(end):
            before, shortest = best[start], best[end]
            if before is None or (shortest is not None and len(before) + 1 >= len(shortest)):
                continue
            number, _ = _read(" ".join(tokens[start:end]), region)
            if number:
                best[end] = [*before, number]
    return best[-1] or []


def _number(number: PhoneNumber) -> Number:
    kind = phonenumbers.number_type(number)
    found = (
        number_zones.time_zones_for_number(number)
        if kind in KINDS
        else number_zones.time_zones_for_geographical_number(number)
    )
    is_local = (
        number.country_code_source == CountryCodeSource.FROM_DEFAULT_COUNTRY
        and len(phonenumbers.national_significant_number(number)) <= REACH
    )
    return Number(
        sure=kind in KINDS and not is_local,
        e164=phonenumbers.format_number(number, PhoneNumberFormat.E164),
        kind=KINDS.get(kind, "unknown"),
        valid=kind in KINDS,
        region=_region(number),
        zones=tuple(zone for zone in found if _is_zone(zone)),
        extension=number.extension,
    )


def _region(number: PhoneNumber) -> str | None:
    """Return the region of a number; None if the number belongs to no region.

    For a number that is not allocated, the main region of its country code is returned.
    """
    found = phonenumbers.region_code_for_number(number)
    if found is None and number.country_code is not None:
        found = phonenumbers.region_code_for_country_code(number.country_code)
    return found if found in phonenumbers.SUPPORTED_REGIONS else None


def _short(text: str, region: str) -> str | None:
    digits = _digits(text)
    if not _SHORTEST_CODE <= len(digits) < REACH or len(text.strip()) > len(digits):
        return None
    number = PhoneNumber(
        country_code=phonenumbers.country_code_for_region(region), national_number=int(digits)
    )
    return digits if shortnumberinfo.is_possible_short_number(number) else None


@lru_cache(1_000)
def _is_zone(name: str) -> bool:
    if name == number_zones.UNKNOWN_TIMEZONE:
        return False
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@lru_cache(1_000)
def _country(said: str | None) -> str | None:
    """Normalise a country such as `GB` or `au_wa`; None for any other text."""
    match = _COUNTRY.fullmatch((said or "").strip())
    if match is None or match[1].upper() not in phonenumbers.SUPPORTED_REGIONS:
        return None
    return match[1].upper() + (f"-{match[2].upper()}" if match[2] else "")


def _clean(text: str) -> str:
    """Return the text with ASCII digits and hyphens, and without invisible characters."""
    made = []
    for char in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(char)
        if category in {"Cf", "Cn", "Co", "Mn", "Me"}:
            continue
        if category == "Nd":
            made.append(str(unicodedata.digit(char)))
        elif category == "Pd" or char == "\u2212":
            made.append("-")
        elif category in {"Zs", "Cc", "Zl", "Zp"}:
            made.append("\n" if char in "\r\n\u2028\u2029" else " ")
        else:
            made.append(char)
    return "".join(made)


def _of_uri(text: str) -> str:
    """Replace each `tel:` or `sip:` URI in the text by its number and extension."""
    return _URI.sub(_said_by_uri, text)


def _said_by_uri(match: re.Match[str]) -> str:
    user, *parameters = unquote(match[2]).partition("@")[0].split(";")
    named = dict(each.lower().partition("=")[::2] for each in parameters)
    context = named.get("phone-context", "")
    if context.startswith("+") and not user.startswith("+"):
        user = f"{context}{user}"
    extension = named.get("ext", "")
    host = "" if "@" not in unquote(match[2]) else unquote(match[2]).partition("@")[2]
    for each in host.split(";")[1:]:
        name, _, value = each.lower().partition("=")
        extension = value if name == "ext" else extension
    return f" {user}{f' ext. {extension}' if extension.isdigit() else ''} "


def _digits(text: str) -> str:
    return "".join(char for char in text if char in "0123456789")


def _tails(text: str) -> Iterator[str]:
    """Yield the last 7 digits (`REACH`) of the whole text, and of each smaller piece of the text.

    The pieces are those between separators such as commas, and those that consist of digits, spaces
    and signs such as dashes. A piece with fewer digits is left out.
    """
    for part in (text, *_SEPARATOR.split(text), *_GROUP.findall(text)):
        digits = _digits(part)
        if len(digits) >= REACH:
            yield digits[-REACH:]


_SEPARATOR = re.compile(
    r"[,|\n\t&/]+|;(?!\s*(?:ext|isub|phone-context)=)|\s+(?:or|and|oder|und|ou|et|o|y|u)\s+",
    re.IGNORECASE,
)
_TRUNK = re.compile(r"(\+?\d{1,4})\s*[(\[]\s*0\s*[)\]]\s*")
_INTERNATIONAL = re.compile(r"^[\s(]*(?:\+[\s+]*(?:0\s*0)?|0\s*0)[\s)]*")
_LETTERS = re.compile(r"(?<=[\d ])[oOlI](?=[\d ]|$)")
_GROUP = re.compile(r"\d[\d .()-]*")
_URI = re.compile(
    r"\b(tel|sips?|callto|fax|modem|sms|whatsapp):(?://)?([^\s<>\",|]+)", re.IGNORECASE
)
_COUNTRY = re.compile(r"([A-Za-z]{2})(?:[-_]([A-Za-z0-9]{1,3}))?")
