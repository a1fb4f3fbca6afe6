"""Advisory locks by name, held for a transaction: two runs of one job cannot overlap."""

from __future__ import annotations

from hashlib import blake2b

from sqlalchemy import BigInteger, Connection, bindparam, func, select

_TRY = select(func.pg_try_advisory_xact_lock(bindparam("key", type_=BigInteger)))


def key(name: str) -> int:
    """Return the 64-bit key that stands for `name` in this project."""
    digest = blake2b(f"assignment-workers {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def try_lock(connection: Connection, name: str) -> bool:
    """Return True if this transaction now holds the lock.

    The lock is released with the transaction, however the transaction ends.
    """
    return bool(connection.execute(_TRY, {"key": key(name)}).scalar_one())
