"""API tokens: created, listed, revoked and checked. Only the hash of a secret is stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from assignment_workers.errors import UsageError
from assignment_workers.gateway.auth.audit import record
from assignment_workers.schema.tables import AccessKind, ApiToken, TokenRole

PREFIX = "aw"
SECRET_BYTES = 32
"""The number of random bytes of a token's secret: enough that a fast hash is as safe as a slow one.
"""
_LONGEST = 200


@dataclass(frozen=True)
class Token:
    """An entry in the list of API tokens. The token's secret is not included."""

    id: str
    role: str
    agent_id: int | None
    note: str | None
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None
    last_used_at: datetime | None
    """The time of the last use, accurate to about a minute."""


@dataclass(frozen=True)
class StoredToken:
    """The stored hash and rights of a token, against which a caller's token is checked."""

    id: str
    hash: bytes
    role: TokenRole | None
    """The role of the token. None for the token that `assignment-workers up` made for the processes
    that it runs: everything is allowed.
    """
    agent_id: int | None


def of_stack(token: str | None) -> StoredToken | None:
    """Return a `StoredToken` for the token that `assignment-workers up` made for its processes.

    `token`: the text of that token. Returns None if `token` is None or does not have the form of a
    token. The database does not have this token.
    """
    named = parts(token or "")
    return named and StoredToken(named[0], _hash(named[1]), None, None)


def create(
    connection: Connection,
    role: str,
    *,
    agent_id: int | None = None,
    note: str | None = None,
    lasts: timedelta | None = None,
    by: str | None = None,
) -> str:
    """Create a token and return its text, which cannot be read again.

    `lasts`: the time until the token expires; None: it is valid until it is revoked. `by` names its
    creator for the access log. The caller commits. Raises `UsageError` for an unknown role, for a
    token of role agent without `agent_id`, and for another role with `agent_id`.
    """
    if role not in set(TokenRole):
        raise UsageError(f"no role {role!r}; there are {', '.join(TokenRole)}")
    if role == TokenRole.AGENT and agent_id is None:
        raise UsageError("an agent's token names its agent: --agent")
    if role != TokenRole.AGENT and agent_id is not None:
        raise UsageError(f"a token of role {role} is nobody's own: leave --agent out")
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
    connection.execute(
        insert(ApiToken).values(
            id=name,
            hash=_hash(secret),
            role=role,
            agent_id=agent_id,
            note=note,
            created_at=func.clock_timestamp(),
            expires_at=None if lasts is None else func.clock_timestamp() + lasts,
        )
    )
    record(connection, AccessKind.TOKEN_CREATED, who=by, subject=name)
    return f"{PREFIX}_{name}_{secret}"


def listed(connection: Connection) -> list[Token]:
    """Return the newest tokens, at most a thousand, newest first."""
    columns = [getattr(ApiToken, name) for name in Token.__dataclass_fields__]
    rows = connection.execute(
        select(*columns).order_by(ApiToken.created_at.desc(), ApiToken.id).limit(1_000)
    )
    return [Token(*row) for row in rows]


def revoke(connection: Connection, name: str, *, by: str | None = None) -> bool:
    """Revoke a token.

    Return False if it does not exist or is already revoked. The caller commits.
    """
    done = connection.execute(
        update(ApiToken)
        .where(ApiToken.id == name, ApiToken.revoked_at.is_(None))
        .values(revoked_at=func.clock_timestamp())
        .returning(ApiToken.id)
    )
    if done.scalar_one_or_none() is None:
        return False
    record(connection, AccessKind.TOKEN_REVOKED, who=by, subject=name)
    return True


def find(connection: Connection, name: str) -> StoredToken | None:
    """Return the token with this name; None if there is none, or it is not valid."""
    row = connection.execute(_FIND, {"name": name}).one_or_none()
    if row is None:
        return None
    return StoredToken(row.id, bytes(row.hash), TokenRole(row.role), row.agent_id)


def in_force() -> ColumnElement[bool]:
    """Return the SQL condition that a token is neither revoked nor expired."""
    return and_(
        ApiToken.revoked_at.is_(None),
        or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > func.clock_timestamp()),
    )


def parts(token: str) -> tuple[str, str] | None:
    """Return the name and the secret in a token's text; None if the text is not of that form."""
    match token.split("_", 2):
        case [prefix, name, secret] if prefix == PREFIX and len(token) <= _LONGEST:
            return (name, secret) if name.isascii() and name.isalnum() else None
        case _:
            return None


def matches(kept: StoredToken | None, secret: str) -> bool:
    """Return True if `secret` is the secret of the stored token `kept`.

    The check takes as long for a wrong secret, or for None as `kept`, as for the right secret. So
    the time of the check reveals nothing.
    """
    against = kept.hash if kept else bytes(hashlib.sha256().digest_size)
    return hmac.compare_digest(_hash(secret), against) and kept is not None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


_FIND = select(ApiToken.id, ApiToken.hash, ApiToken.role, ApiToken.agent_id).where(
    ApiToken.id == bindparam("name"), in_force()
)
