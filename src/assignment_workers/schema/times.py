"""Load a PostgreSQL time outside the range of Python as the nearest time inside of the range."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader

EARLIEST = datetime(100, 1, 1, tzinfo=UTC)
LATEST = datetime(9900, 1, 1, tzinfo=UTC)
"""The latest value of a loaded time. A later time in the database is loaded as this value.

There are later times, because PostgreSQL's range is from 4713 BC to infinity. The value is earlier
than the end of Python's range (the year 9999), so that code can still add durations to it.
"""


class Timestamp(TimestampLoader):
    """A psycopg loader of `timestamp` that limits times to the years 100 to 9900.

    An earlier or later time becomes the nearer bound (`EARLIEST` or `LATEST`).
    """

    def load(self, data: Buffer) -> datetime:
        """Return the time in `data`, or the nearer bound if it is outside the years 100 to 9900."""
        try:
            found = super().load(data)
        except psycopg.DataError:
            return _end(data).replace(tzinfo=None)
        if EARLIEST.year <= found.year < LATEST.year:
            return found
        return (EARLIEST if found.year < EARLIEST.year else LATEST).replace(tzinfo=None)


class Timestamptz(TimestamptzLoader):
    """A psycopg loader of `timestamptz` that limits times to the years 100 to 9900.

    An earlier or later time becomes the nearer bound (`EARLIEST` or `LATEST`).
    """

    def load(self, data: Buffer) -> datetime:
        """Return the time in `data`, or the nearer bound if it is outside the years 100 to 9900."""
        try:
            found = super().load(data)
        except psycopg.DataError:
            return _end(data)
        if EARLIEST.year <= found.year < LATEST.year:
            return found
        return EARLIEST if found.year < EARLIEST.year else LATEST


def _end(data: Buffer) -> datetime:
    written = bytes(data)
    return EARLIEST if written.startswith(b"-") or written.endswith(b"BC") else LATEST


def clamp(connection: psycopg.Connection[Any]) -> None:
    """Make the connection load a time outside the years 100 to 9900 as the nearer bound.

    PostgreSQL has times that Python cannot represent, such as `infinity`. The limit applies to
    results in text format; the session must use the DateStyle ISO.
    """
    connection.adapters.register_loader("timestamp", Timestamp)
    connection.adapters.register_loader("timestamptz", Timestamptz)
