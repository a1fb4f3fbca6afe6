"""Callers and their rights, by the role of their token; an agent's token acts for one agent."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi import Request
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.gateway.auth import sessions, tokens
from assignment_workers.gateway.auth.tokens import StoredToken
from assignment_workers.gateway.events.feed import EventFilter
from assignment_workers.gateway.limits import TokenBucket
from assignment_workers.gateway.problems import Problem, refused, unavailable
from assignment_workers.schema.tables import TokenRole

KNOWN_SECONDS = 3.0
"""Seconds for which the result of a token's look-up is used, before the token is looked up again.

A revoked token is accepted for at most this time. While the database is unavailable, a revoked
token may be accepted for longer (see `REMEMBERED_SECONDS`).
"""
KNOWN_AT_MOST = 10_000
LOOK_UP_SECONDS = 2.0
"""The most seconds to wait for the look-up of a token in the database."""
REMEMBERED_SECONDS = 3600.0
"""Seconds for which a dashboard session is still accepted while the database is unavailable.

The session must have been valid at its last look-up. The seconds begin when the result of that
look-up expires (see `KNOWN_SECONDS`). The same holds for a token, but only at the paths of metrics
and health (`OUTLIVES_DATABASE`). An operator can then find out what is wrong.
"""
OUTLIVES_DATABASE = frozenset({"/metrics", "/v1/health"})
"""The paths at which a token is still accepted while the database is unavailable.

The token must have been valid at its last look-up. It is accepted until `REMEMBERED_SECONDS` after
the result of that look-up has expired.
"""

ACTING = frozenset({TokenRole.AGENT, TokenRole.FRONTEND})
"""The roles whose tokens may send requests and commands for agents."""
WATCHING = frozenset({TokenRole.SUPERVISOR, TokenRole.OPERATOR})
"""The roles that may see the data of all agents and dialer queues. Free text is shown to operators
only.
"""
OPERATING = frozenset({TokenRole.OPERATOR})
ANYBODY = frozenset(TokenRole)

AGENT_EVENTS = frozenset(
    {
        EventKind.ASSIGNED,
        EventKind.COMPLETED,
        EventKind.SKIPPED,
        EventKind.DEFERRED,
        EventKind.CLOSED,
        EventKind.ACCEPTED,
        EventKind.OFFER_LAPSED,
        EventKind.AGENT_STATE,
        EventKind.RELEASED,
        EventKind.RENEWED,
        EventKind.EXPIRED,
        EventKind.CALLBACK_PROMISED,
        EventKind.CALLBACK_KEPT,
        EventKind.CALLBACK_POSTPONED,
        EventKind.CALLBACK_CANCELLED,
        EventKind.CALLBACK_SUPERSEDED,
        EventKind.CALLBACK_ENDED_ELSEWHERE,
        EventKind.MISSED_CALL_FOLLOWED_UP,
    }
)
"""The kinds of events about agents and their assignments, which an agent or a frontend may see. The
event of a refused command is not included, because it names the agent who holds the user.
"""


@dataclass(frozen=True)
class Caller:
    """A caller of the gateway: the name, the role and the agent of the caller's token.

    `token` None: tokens are off. `role` None: everything is allowed, because tokens are off, or
    because the token is the one that `assignment-workers up` made for the processes that it runs.
    `agent_id`: the only agent for whom the token acts; None: the token belongs to no agent.
    """

    token: str | None
    role: TokenRole | None
    agent_id: int | None

    @property
    def name(self) -> str:
        """The name that is recorded with an operator's action."""
        return f"token {self.token}" if self.token else "anybody"

    @property
    def sender(self) -> str | None:
        """The name to record with commands for agents, such as `token 0a12`.

        None without a token, or with an agent's own token.
        """
        return self.name if self.token and self.role != TokenRole.AGENT else None

    @property
    def sees_text(self) -> bool:
        """True if the caller may read free text and phone numbers (`gateway.redaction`)."""
        return self.role is None or self.role in OPERATING

    def must_be(self, roles: frozenset[TokenRole]) -> None:
        """Raise `Problem` 403 if the caller's role is not one of `roles`."""
        if self.role is not None and self.role not in roles:
            raise _forbidden(
                f"a token of role {self.role} may not do this: {' or '.join(sorted(roles))} may"
            )

    def must_act_for(self, agent_id: int) -> None:
        """Raise `Problem` 403 if the token is that of another agent."""
        if self.role == TokenRole.AGENT and self.agent_id != agent_id:
            raise _forbidden(f"this token acts for agent {self.agent_id} alone")

    def sees(self, agent_id: int | None) -> EventFilter:
        """Return the filter for the events that the caller may follow.

        `agent_id` limits the filter to one agent. An agent's token is always limited to its agent.
        Agents and frontends see only the events about agents and their assignments; supervisors and
        operators see all events. Raises `Problem` 403 if the token is that of another agent.
        """
        if agent_id is not None:
            self.must_act_for(agent_id)
        if self.role is None or self.role in WATCHING:
            return EventFilter(agent_id)
        return EventFilter(self.agent_id or agent_id, AGENT_EVENTS)


EVERYBODY = Caller(None, None, None)


@dataclass
class Callers:
    """Finds the caller of each request by its token or cookie.

    The result of a look-up is used for `KNOWN_SECONDS`.
    """

    engine: Engine
    required: bool
    per_token: TokenBucket
    per_agent: TokenBucket
    stack: StoredToken | None = None
    """The token that `assignment-workers up` made, if this gateway is one of its processes."""
    used: Callable[[str], object] = lambda _: None
    """A function that is called with a token's name at each use of the token."""
    acted: Callable[[str, int], object] = lambda *_: None
    """A function that is called with a token's name and an agent for each command for that agent,
    unless the token is the agent's own.
    """
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[str | bytes, tuple[float, StoredToken | None]] = field(
        default_factory=OrderedDict
    )

    async def caller(self, request: Request) -> Caller:
        """Return the caller, and store it in the state of the request.

        Raises `Problem` 401 without a valid token, 429 for too many calls, and 503 if the token
        cannot be looked up because the database is unavailable.
        """
        found = await self.bearer(
            bearer_of(request.headers.get("authorization", "")),
            outlives=request.scope["path"] in OUTLIVES_DATABASE,
        )
        request.state.caller = found
        return found

    async def bearer(self, token: str, *, outlives: bool = False) -> Caller:
        """Return the caller who has this token.

        `outlives` True: while the database is unavailable, a token is still accepted if it was
        valid at its last look-up. The result of a look-up expires after `KNOWN_SECONDS`. The token
        is then accepted for `REMEMBERED_SECONDS` more. Raises `Problem` 401 if the token is not
        valid, 429 for too many calls, and 503 if the token cannot be looked up because the
        database is unavailable.
        """
        if not self.required:
            return EVERYBODY
        named = tokens.parts(token)
        if named is None:
            raise _unauthorised("a token is needed: Authorization: Bearer ...")
        name, secret = named
        kept = await self._token(name, outlives=outlives)
        if not tokens.matches(kept, secret) or kept is None:
            raise _unauthorised("this token is not in force")
        return self._paced(kept)

    async def session(self, cookie: str) -> Caller:
        """Return the caller who signed in to the dashboard session with this cookie.

        Raises `Problem` 401 if there is no such session or it has ended, 429 for too many calls,
        and 503 if the session cannot be looked up because the database is unavailable.
        """
        if not self.required:
            return EVERYBODY
        if not cookie:
            raise _unauthorised("nobody has signed in here")
        digest = sessions.digest(cookie)
        kept = await self._find(
            digest,
            lambda connection: sessions.find(connection, digest, stack=self.stack_digest),
            outlives=True,
        )
        if kept is None:
            raise _unauthorised("this session has ended")
        return self._paced(kept)

    @property
    def stack_digest(self) -> str | None:
        """The digest of the token that `assignment-workers up` made; None without such a token.

        It is stored with each dashboard session that was opened with that token.
        """
        return self.stack.hash.hex() if self.stack else None

    def forget(self, cookie: str) -> None:
        """Drop the cached session of this cookie, so that its next use is looked up."""
        self._known.pop(sessions.digest(cookie), None)

    def knows(self, authorization: str, cookie: str) -> bool:
        """Return True if the token in `authorization`, or `cookie`, was valid at its last look-up.

        This method makes no look-up of its own: it uses the cached results of earlier ones.
        """
        _, in_session = self._known.get(sessions.digest(cookie), (0.0, None))
        named = tokens.parts(bearer_of(authorization))
        if cookie and in_session is not None:
            return True
        if named is None:
            return False
        name, secret = named
        is_stack = self.stack is not None and name == self.stack.id
        kept = self.stack if is_stack else self._known.get(name, (0.0, None))[1]
        return tokens.matches(kept, secret)

    def _paced(self, kept: StoredToken) -> Caller:
        self.used(kept.id)
        _hold_back(self.per_token.wait(kept.id), "this token is used")
        return Caller(kept.id, kept.role, kept.agent_id)

    def let(self, caller: Caller, agent_id: int) -> None:
        """Check that the caller may send a command for this agent now.

        Raises `Problem` 403 if the caller's token belongs to another agent. Raises `Problem` 429 if
        there are too many calls for this agent. A token that belongs to no agent, such as a
        frontend's, may send commands for every agent. For such a token the function `acted` is
        called, so that the access log shows the use of the token.
        """
        caller.must_act_for(agent_id)
        _hold_back(self.per_agent.wait(agent_id), f"agent {agent_id} asks")
        if caller.token is not None and caller.sender is not None:
            self.acted(caller.token, agent_id)

    async def _token(self, name: str, *, outlives: bool) -> StoredToken | None:
        if self.stack is not None and name == self.stack.id:
            return self.stack
        return await self._find(
            name, lambda connection: tokens.find(connection, name), outlives=outlives
        )

    async def _find(
        self,
        key: str | bytes,
        look_up: Callable[[Connection], StoredToken | None],
        *,
        outlives: bool,
    ) -> StoredToken | None:
        """Return the token with this key from the cache or the database; None if there is none.

        `key` is the token's name, or the digest of the cookie of a session that the token opened.
        `look_up` reads the token from the database. The result is cached. For `KNOWN_SECONDS` the
        cached result is returned, and the database is not needed. After that the result has
        expired, and the token is looked up again.

        If the database fails or does not answer within `LOOK_UP_SECONDS`, there are two cases. If
        `outlives` is True and the expired result is a token, this token is returned, until
        `REMEMBERED_SECONDS` after the result expired. Otherwise `Problem` 503 is raised.
        """
        now = self.clock()
        until, kept = self._known.get(key, (0.0, None))
        if until > now:
            return kept
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                kept = await asyncio.to_thread(self._look_up, look_up)
        except (DBAPIError, PoolTimeout, TimeoutError) as error:
            if outlives and kept is not None and now - until < REMEMBERED_SECONDS:
                return kept
            raise unavailable("the database cannot be reached to check the token") from error
        self._known.pop(key, None)
        self._known[key] = (now + KNOWN_SECONDS, kept)
        if len(self._known) > KNOWN_AT_MOST:
            self._known.popitem(last=False)
        return kept

    def _look_up(self, look_up: Callable[[Connection], StoredToken | None]) -> StoredToken | None:
        with self.engine.connect() as connection:
            return look_up(connection)


def bearer_of(authorization: str) -> str:
    """Return the token in the value of an `Authorization` header; empty if there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _unauthorised(detail: str) -> Problem:
    return refused(
        HTTPStatus.UNAUTHORIZED,
        Code.UNAUTHENTICATED,
        detail,
        headers={"WWW-Authenticate": "Bearer"},
    )


def _forbidden(detail: str) -> Problem:
    return refused(HTTPStatus.FORBIDDEN, Code.FORBIDDEN, detail)


def _hold_back(seconds: float, what: str) -> None:
    if seconds > 0:
        raise unavailable(
            f"{what} too often",
            status=HTTPStatus.TOO_MANY_REQUESTS,
            retry_after=round(seconds, 3),
        )
