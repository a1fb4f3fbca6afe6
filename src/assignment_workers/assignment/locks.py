"""Advisory locks by name, held for a transaction: two runs of one job cannot overlap."""

from __future__ import annotations

from hashlib import blake2b

from sqlalchemy import BigInteger, Connection, bindparam, func, select

_TRY = select(func.pg_try_advisory_xact_lock(bindparam("key", type_=BigInteger)))


def key(name: str) -> int:
    """Return the 64-bit key of the PostgreSQL advisory lock with this name."""
    digest = blake2b(f"assignment-workers {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def try_lock(connection: Connection, name: str) -> bool:
    """Try to take the advisory lock of this name, without waiting; return True if it was taken.

    The lock is released when the connection's transaction ends.
    """
    return bool(connection.execute(_TRY, {"key": key(name)}).scalar_one())
