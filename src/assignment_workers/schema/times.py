"""Load a PostgreSQL time outside the range of Python as the nearest time inside of the range."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.pq import Format

EARLIEST = datetime(100, 1, 1, tzinfo=UTC)
LATEST = datetime(9900, 1, 1, tzinfo=UTC)
"""The latest value of a loaded time. A later time in the database is loaded as this value.

There are later times, because PostgreSQL's range is from 4713 BC to infinity. The value is earlier
than the end of Python's range (the year 9999), so that code can still add durations to it.
"""


class Timestamptz:
    """A psycopg loader of `timestamptz` that limits times to the years 100 to 9900.

    An earlier or later time becomes the nearer bound (`EARLIEST` or `LATEST`). The time itself is
    read by psycopg's own loader. That loader may be written in C, and then has no subclasses, so it
    is called here.
    """

    format = Format.TEXT
    type_name: ClassVar[str] = "timestamptz"
    earliest: ClassVar[datetime] = EARLIEST
    latest: ClassVar[datetime] = LATEST

    def __init__(self, oid: int, connection: AdaptContext | None = None) -> None:
        found = psycopg.adapters.get_loader(psycopg.adapters.types[self.type_name].oid, self.format)
        if found is None:
            raise LookupError(f"psycopg has no loader of {self.type_name}")
        self._load = found(oid, connection).load

    def load(self, data: Buffer) -> datetime:
        """Return the time in `data`, or the nearer bound if it is outside the years 100 to 9900."""
        try:
            found: datetime = self._load(data)
        except psycopg.DataError:
            written = bytes(data)
            is_early = written.startswith(b"-") or written.endswith(b"BC")
            return self.earliest if is_early else self.latest
        if EARLIEST.year <= found.year < LATEST.year:
            return found
        return self.earliest if found.year < EARLIEST.year else self.latest


class Timestamp(Timestamptz):
    """The same for `timestamp`, which is loaded without a time zone."""

    type_name = "timestamp"
    earliest = EARLIEST.replace(tzinfo=None)
    latest = LATEST.replace(tzinfo=None)


def clamp(connection: psycopg.Connection[Any]) -> None:
    """Make the connection load a time outside the years 100 to 9900 as the nearer bound.

    PostgreSQL has times that Python cannot represent, such as `infinity`. The limit applies to
    results in text format; the session must use the DateStyle ISO.
    """
    for each in (Timestamptz, Timestamp):
        connection.adapters.register_loader(each.type_name, each)
