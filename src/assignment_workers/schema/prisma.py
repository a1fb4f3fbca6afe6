"""Translate the parameters that Prisma adds to a database address into those of libpq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assignment_workers.errors import UsageError
from assignment_workers.schema.dialer_schema import checked

ITS_POOLS = frozenset(
    {
        "connection_limit",
        "pool_timeout",
        "socket_timeout",
        "statement_cache_size",
        "single_use_connections",
        "pgbouncer",
    }
)
"""Parameters of Prisma's own connection pool, which do not concern the database and are dropped."""
ACCEPTS = {"strict": "verify-full", "accept_invalid_certs": "require"}
"""Maps a value of Prisma's `sslaccept` to the value of libpq's `sslmode`."""


def in_words_of_libpq(query: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the parameters of a Prisma address to libpq's, without those of Prisma's pool.

    `schema` is dropped, because libpq has no such parameter; `schema_named` reads it. Raises
    `UsageError`, with one line that names the parameter and the remedy, for a parameter that cannot
    be converted.
    """
    kept = {name: value for name, value in query.items() if name not in ITS_POOLS}
    kept.pop("schema", None)
    if "sslidentity" in kept:
        raise UsageError(
            "the database's address: sslidentity: give the certificate and its key as PEM files,"
            " by sslcert and sslkey"
        )
    accepts = kept.pop("sslaccept", None)
    if accepts is not None:
        if accepts not in ACCEPTS:
            raise UsageError(
                f"the database's address: sslaccept={accepts}: it is one of {', '.join(ACCEPTS)}"
            )
        kept.setdefault("sslmode", ACCEPTS[accepts])
    return kept


def schema_named(query: Mapping[str, Any]) -> str | None:
    """Return the schema of the dialer's tables from the parameters of a database address.

    None if the parameters do not name it. Raises `UsageError` if the name cannot be used.
    """
    given = query.get("schema")
    return None if given is None else checked(str(given))
