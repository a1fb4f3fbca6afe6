"""Who calls, and what they may do: roles, and an agent's token for that agent alone."""

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

from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.gateway.auth import sessions, tokens
from assignment_workers.gateway.auth.tokens import StoredToken
from assignment_workers.gateway.events.feed import EventFilter
from assignment_workers.gateway.limits import TokenBucket
from assignment_workers.gateway.problems import Problem, refused, unavailable
from assignment_workers.schema.tables import TokenRole

KNOWN_SECONDS = 3.0
"""How long a token is not looked up again: a revoked one is refused after that."""
KNOWN_AT_MOST = 10_000

ACTING = frozenset({TokenRole.AGENT, TokenRole.FRONTEND})
"""Who makes agents' moves."""
WATCHING = frozenset({TokenRole.SUPERVISOR, TokenRole.OPERATOR})
"""Who sees everything."""
OPERATING = frozenset({TokenRole.OPERATOR})
ANYBODY = frozenset(TokenRole)

OF_AGENTS = frozenset(
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
"""What happens to an agent and their assignments.

A refused move is not among them: it names the holder.
"""


@dataclass(frozen=True)
class Caller:
    """The bearer of this token.

    `role` None: tokens are off, or it is the stack's own token; everything may be done then.
    """

    token: str | None
    role: TokenRole | None
    agent_id: int | None

    @property
    def name(self) -> str:
        """Who acts, as it is kept with what an operator did."""
        return f"token {self.token}" if self.token else "anybody"

    @property
    def sees_text(self) -> bool:
        """Whether the caller reads what people typed, and phone numbers (`gateway.redaction`)."""
        return self.role is None or self.role in OPERATING

    def must_be(self, roles: frozenset[TokenRole]) -> None:
        """Raise `Problem` 403 for a role that is not one of these."""
        if self.role is not None and self.role not in roles:
            raise _forbidden(
                f"a token of role {self.role} may not do this: {' or '.join(sorted(roles))} may"
            )

    def must_act_for(self, agent_id: int) -> None:
        """Raise `Problem` 403 if this is another agent's token."""
        if self.role == TokenRole.AGENT and self.agent_id != agent_id:
            raise _forbidden(f"this token acts for agent {self.agent_id} alone")

    def sees(self, agent_id: int | None) -> EventFilter:
        """Which events they may follow, of one agent or of all. Raises `Problem` 403.

        Whoever makes agents' moves sees what becomes of them; whoever watches sees everything.
        """
        if agent_id is not None:
            self.must_act_for(agent_id)
        if self.role is None or self.role in WATCHING:
            return EventFilter(agent_id)
        return EventFilter(self.agent_id or agent_id, OF_AGENTS)


EVERYBODY = Caller(None, None, None)


@dataclass
class Callers:
    """Checks tokens, and remembers each for `KNOWN_SECONDS`."""

    engine: Engine
    required: bool
    per_token: TokenBucket
    per_agent: TokenBucket
    stack: StoredToken | None = None
    """The token that `up` made, where this gateway is its stack's."""
    used: Callable[[str], object] = lambda _: None
    """Told of each use of a token, by its name."""
    acted: Callable[[str, int], object] = lambda *_: None
    """Told of each move of an agent by a token that is not their own."""
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[str | bytes, tuple[float, StoredToken | None]] = field(
        default_factory=OrderedDict
    )

    async def caller(self, request: Request) -> Caller:
        """Who calls. Raises `Problem` 401 without a token in force, 429 for one that hurries.

        The caller is left in the request's state for what comes after the route.
        """
        found = await self.bearer(bearer_of(request.headers.get("authorization", "")))
        request.state.caller = found
        return found

    async def bearer(self, token: str) -> Caller:
        """Who bears this token. Raises `Problem` 401 unless it is in force, 429 if it hurries."""
        if not self.required:
            return EVERYBODY
        named = tokens.parts(token)
        if named is None:
            raise _unauthorised("a token is needed: Authorization: Bearer ...")
        name, secret = named
        kept = await self._token(name)
        if not tokens.matches(kept, secret) or kept is None:
            raise _unauthorised("this token is not in force")
        return self._paced(kept)

    async def session(self, cookie: str) -> Caller:
        """Who signed in with this cookie. Raises `Problem` as `bearer` does."""
        if not self.required:
            return EVERYBODY
        if not cookie:
            raise _unauthorised("nobody has signed in here")
        digest = sessions.digest(cookie)
        kept = await self._find(
            digest, lambda connection: sessions.find(connection, digest, stack=self.stack_digest)
        )
        if kept is None:
            raise _unauthorised("this session has ended")
        return self._paced(kept)

    @property
    def stack_digest(self) -> str | None:
        """By which a session that the stack's own secret opened is known as this stack's."""
        return self.stack.hash.hex() if self.stack else None

    def forget(self, cookie: str) -> None:
        """Look the session of this cookie up anew."""
        self._known.pop(sessions.digest(cookie), None)

    def knows(self, authorization: str, cookie: str) -> bool:
        """Whether one of these was good when it was looked up last; nothing is looked up."""
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
        """Let the caller act for this agent now, or raise `Problem` 403 or 429."""
        caller.must_act_for(agent_id)
        _hold_back(self.per_agent.wait(agent_id), f"agent {agent_id} asks")
        if caller.token is not None and caller.role != TokenRole.AGENT:
            self.acted(caller.token, agent_id)

    async def _token(self, name: str) -> StoredToken | None:
        if self.stack is not None and name == self.stack.id:
            return self.stack
        return await self._find(name, lambda connection: tokens.find(connection, name))

    async def _find(
        self, key: str | bytes, look_up: Callable[[Connection], StoredToken | None]
    ) -> StoredToken | None:
        now = self.clock()
        until, kept = self._known.get(key, (0.0, None))
        if until > now:
            return kept
        try:
            kept = await asyncio.to_thread(self._look_up, look_up)
        except DBAPIError as error:
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
    """The token in this header; empty: none."""
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
