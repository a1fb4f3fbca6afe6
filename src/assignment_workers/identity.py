"""The type of users' ids in the CRM, and new UUIDv7 ids made from a time and random bits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

UserId = int | str
"""The CRM's id of a user: a number, or a string where the CRM's ids are no integers."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(now: datetime, randomness: Random) -> UUID:
    """Return a UUIDv7 (RFC 9562 section 5.7): ids sort by `now`, to the millisecond.

    74 random bits follow the time. The standard library has `uuid.uuid7` only from Python 3.14, and
    it accepts neither a clock nor a source of randomness.
    """
    milliseconds = (now - _EPOCH) // timedelta(milliseconds=1)
    value = milliseconds << 80 | randomness.getrandbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
