"""Dashboard sessions, begun by a token or a one-time link, ended by time or by signing out.

A cookie opens nothing but the dashboard. A session that has ended cannot be opened again.
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
    """Begin a dashboard session and return its cookie; None if `link` was used before.

    A session is opened by an API token, or by the secret that `assignment-workers up` made for its
    processes. The secret may be presented directly or by a sign-in link. A sign-in link is signed
    with the secret and works once.

    `token`: the name of the API token; None if the secret opens the session. `stack`: the digest
    of the secret; None if an API token opens the session. `link`: the identifier of the sign-in
    link that was used; None: no link was used. `address`: the address of the browser, for the
    access log. The caller commits.
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
    """Return the token that opened a dashboard session; None if the session is over.

    `cookie`: the digest of the session's cookie. `stack`: the digest of the secret that
    `assignment-workers up` made for this gateway, or None. A session that such a secret opened is
    valid only at gateways that have the same secret.
    """
    row = connection.execute(_FIND, {"hash": cookie}).one_or_none()
    if row is None:
        return None
    if row.stack is not None:
        return STACK if row.stack == stack else None
    return StoredToken(row.id, b"", TokenRole(row.role), row.agent_id)


def end(connection: Connection, cookie: bytes, *, address: str | None = None) -> None:
    """End the dashboard session whose cookie has the digest `cookie`. The caller commits.

    `address`: the address of the browser, for the access log.
    """
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
    """Return the digest of a cookie. Only the digest is stored."""
    return hashlib.sha256(cookie[:_LONGEST].encode("utf-8", "surrogatepass")).digest()


STACK = StoredToken("stack", b"", None, None)
"""The token of each session that was opened with the secret of `assignment-workers up`. It allows
everything. The database does not have this token.
"""

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
