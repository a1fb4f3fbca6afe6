"""Load a PostgreSQL time outside the range of Python as the nearest time inside of the range."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestampLoader, TimestamptzLoader

EARLIEST = datetime(100, 1, 1, tzinfo=UTC)
LATEST = datetime(9900, 1, 1, tzinfo=UTC)
"""The latest time that is read, with room for adding to a time. PostgreSQL's range is 4713 BC to
infinity."""


class Timestamp(TimestampLoader):
    """A psycopg loader of `timestamp`: times outside `EARLIEST` and `LATEST` become these."""

    def load(self, data: Buffer) -> datetime:
        """Return the time, or the bound that it lies beyond."""
        try:
            found = super().load(data)
        except psycopg.DataError:
            return _end(data).replace(tzinfo=None)
        if EARLIEST.year <= found.year < LATEST.year:
            return found
        return (EARLIEST if found.year < EARLIEST.year else LATEST).replace(tzinfo=None)


class Timestamptz(TimestamptzLoader):
    """A psycopg loader of `timestamptz`: times outside `EARLIEST` and `LATEST` become these."""

    def load(self, data: Buffer) -> datetime:
        """Return the time, or the bound that it lies beyond."""
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
    """Make the connection read `infinity` and times out of bounds as `EARLIEST` or `LATEST`.

    Applies to text results. The session needs the DateStyle ISO.
    """
    connection.adapters.register_loader("timestamp", Timestamp)
    connection.adapters.register_loader("timestamptz", Timestamptz)
