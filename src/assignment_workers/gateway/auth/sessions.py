"""Sessions of the dashboard: begun by a token or a one-time link, ended by time or by signing out.

A cookie is no token: it opens nothing but the dashboard, and a session that has ended stays so.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from sqlalchemy import Connection, and_, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from assignment_workers.gateway.auth.audit import record
from assignment_workers.gateway.auth.tokens import StoredToken, in_force
from assignment_workers.schema.tables import AccessKind, ApiToken, DashboardSession, TokenRole

LASTS = timedelta(hours=12)
_LONGEST = 200


def begin(
    connection: Connection,
    *,
    token: str | None = None,
    stack: str | None = None,
    link: str | None = None,
    address: str | None = None,
) -> str | None:
    """A new session's cookie; None where another session has used the link.

    Opened by the token of that name, or by the stack's own secret, whose digest is `stack`. The
    caller commits.
    """
    cookie = secrets.token_urlsafe(32)
    now = func.clock_timestamp()
    made = connection.execute(
        insert(DashboardSession)
        .values(
            hash=digest(cookie),
            token_id=token,
            stack=stack,
            link=link,
            created_at=now,
            expires_at=now + LASTS,
        )
        .on_conflict_do_nothing(index_elements=[DashboardSession.link])
        .returning(DashboardSession.hash)
    )
    if made.scalar_one_or_none() is None:
        return None
    record(connection, AccessKind.SIGNED_IN, who=token or STACK.id, address=address)
    return cookie


def find(connection: Connection, cookie: bytes, *, stack: str | None) -> StoredToken | None:
    """Who opened the session of a cookie with this digest; None: it is not in force.

    A session that a stack's own secret opened counts for a gateway of that stack alone.
    """
    row = connection.execute(_FIND, {"hash": cookie}).one_or_none()
    if row is None:
        return None
    if row.stack is not None:
        return STACK if row.stack == stack else None
    return StoredToken(row.id, b"", TokenRole(row.role), row.agent_id)


def end(connection: Connection, cookie: bytes, *, address: str | None = None) -> None:
    """End the session of a cookie with this digest. The caller commits."""
    ended = connection.execute(
        update(DashboardSession)
        .where(DashboardSession.hash == cookie, DashboardSession.ended_at.is_(None))
        .values(ended_at=func.clock_timestamp())
        .returning(DashboardSession.token_id)
    ).one_or_none()
    if ended is not None:
        who = ended.token_id or STACK.id
        record(connection, AccessKind.SIGNED_OUT, who=who, address=address)


def digest(cookie: str) -> bytes:
    """What is stored of a cookie."""
    return hashlib.sha256(cookie[:_LONGEST].encode("utf-8", "surrogatepass")).digest()


STACK = StoredToken("stack", b"", None, None)
"""The bearer of the secret that `up` made: everything on that stack."""

_FIND = (
    select(ApiToken.id, ApiToken.role, ApiToken.agent_id, DashboardSession.stack)
    .select_from(DashboardSession)
    .outerjoin(
        ApiToken,
        and_(ApiToken.id == DashboardSession.token_id, in_force()),
    )
    .where(
        DashboardSession.hash == bindparam("hash"),
        DashboardSession.ended_at.is_(None),
        DashboardSession.expires_at > func.clock_timestamp(),
        (DashboardSession.stack.is_not(None)) | (ApiToken.id.is_not(None)),
    )
)
