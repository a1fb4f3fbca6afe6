"""A dialer's world for a test: agents, users, generations and holds, at an instant that it chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine, text

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import (
    Assigned,
    CommandAnswer,
    FinishAnswer,
    Held,
    RequestAnswer,
)
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Move, Owner, Release, Skip
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.assignment.reports.explain import explain
from assignment_workers.assignment.reports.explanation import Explanation, QueueVerdict
from assignment_workers.assignment.reports.status import Status, status
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.crm import Claim as CrmClaim
from assignment_workers.schema.crm import ClaimRequirement, CrmUser
from assignment_workers.schema.dialer import Agent, UserCallScore
from assignment_workers.schema.engine import connect
from assignment_workers.schema.tables import UNMARKED
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from tests.support.external_crm import OtherCrm

P = ParamSpec("P")
T = TypeVar("T")

UNSIGNED, OUTSTANDING = "unsigned_users", "outstanding_requests"
BOTH = (UNSIGNED, OUTSTANDING)
EVENTS = (
    "SELECT e.*, e.details || coalesce(t.texts, '{}') AS details FROM assignment.events e"
    " LEFT JOIN assignment.event_texts t ON t.event_id = e.id ORDER BY e.id"
)
"""Events with what was typed into them."""
FREE = "ALTER TABLE assignment.events DISABLE TRIGGER append_only"
"""For the rest of a transaction that is rolled back, or puts the trigger on again."""
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Requirement:
    """What a claim needs from its user."""

    type: str | None = "payslip"
    status: str | None = "PENDING"
    reason: str | None = "asked by the lender"


@dataclass(frozen=True)
class Claim:
    """A claim of a user."""

    status: str | None = "open"
    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class User:
    """A user by what the CRM and their score row say; as it stands: unsigned and eligible."""

    id: int
    score: int = 0
    queue: str | None = UNSIGNED
    is_enabled: bool | None = True
    signature: str | None = None
    claims: tuple[Claim, ...] = (Claim(),)
    is_active: bool = True
    next_call_after: datetime | None = None
    last_outcome: str | None = None
    created_at: datetime | None = None
    """Of the score row. None: a day before the world's instant."""
    in_crm: bool = True
    has_score_row: bool = True
    phone: str | None = None


def outstanding(user: int, score: int = 0) -> User:
    """A user who is eligible for `outstanding_requests`."""
    return User(
        user,
        score,
        queue=OUTSTANDING,
        signature="file",
        claims=(Claim(requirements=(Requirement(),)),),
    )


@dataclass(frozen=True)
class Place:
    """An entry as a test compares it."""

    user_id: int
    rank: int
    state: str
    available_from: datetime | None = None
    reason: str | None = None


class World:
    """A database with our schema and a CRM. Nothing happens in it but what a test does.

    `now` is the instant of every turn and every build: it begins at the database's and is moved on
    by hand.
    """

    def __init__(self, engine: Engine, crm: OtherCrm | None = None) -> None:
        self.engine = engine
        self.crm = crm
        """The CRM's rows, in a database of its own or in this one."""
        self.external_crm: Crm | None = None
        """The access to a CRM in another database; see `read_crm`."""
        self.settings = Settings.from_environment({})
        self.randomness = Random(7)
        self.term = 1
        self.term_id = UNMARKED
        self._requests = itertools.count(1)
        self.execute("CREATE SCHEMA IF NOT EXISTS crm")
        with engine.begin() as connection:
            CrmBase.metadata.create_all(connection)
        self.execute("UPDATE assignment.sequencer SET term = 1")
        self.now: datetime = self.value("SELECT date_trunc('milliseconds', clock_timestamp())")

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies under the calling rules of its settings."""
        return policies_of(loaded(), self.settings)

    def set(self, **settings: Any) -> None:
        """Go on with these settings."""
        self.settings = self.settings.model_copy(update=settings)

    def add_facts(self, model: type[CrmBase], rows: Sequence[dict[str, Any]]) -> None:
        """Rows of the CRM, wherever it is."""
        if self.crm is not None:
            self.crm.add(model, rows)
            return
        if rows:
            columns = [getattr(model, name) for name in rows[0]]
            with self.engine.begin() as connection:
                connection.execute(insert_rows(model, *columns), {"rows": list(rows)})

    def execute(self, sql: str, **parameters: Any) -> int:
        """Run one statement by itself; returns how many rows it changed."""
        with self.engine.begin() as connection:
            return connection.execute(text(sql), parameters).rowcount

    def tamper(self, sql: str, **parameters: Any) -> int:
        """Change events, which no process may: as the owner of their table."""
        with self.engine.begin() as connection:
            connection.execute(text(FREE))
            changed = connection.execute(text(sql), parameters).rowcount
            connection.execute(text(FREE.replace("DISABLE", "ENABLE")))
            return changed

    def rows(self, sql: str, **parameters: Any) -> list[Any]:
        with self.engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text(sql), parameters)]

    def column(self, sql: str, **parameters: Any) -> list[Any]:
        """The first column of what a query gives."""
        return [row[0] for row in self.rows(sql, **parameters)]

    def value(self, sql: str, **parameters: Any) -> Any:
        """The one value that a query gives."""
        (value,) = self.column(sql, **parameters)
        return value

    def add_agents(
        self,
        *agents: int,
        is_active: bool = True,
        allowed_queues: object = BOTH,
    ) -> None:
        rows = [
            {
                "id": agent,
                "email": f"agent{agent}@example.com",
                "allowed_queues": allowed_queues,
                "is_active": is_active,
            }
            for agent in agents
        ]
        columns = (Agent.id, Agent.email, Agent.allowed_queues, Agent.is_active)
        with self.engine.begin() as connection:
            connection.execute(insert_rows(Agent, *columns), {"rows": rows})

    def add_users(self, users: Iterable[User]) -> None:
        """All of them with one statement for each table. A user's claims are numbered from their id."""
        people = list(users)
        claims = [
            (user.id * 10 + number, user.id, each)
            for user in people
            for number, each in enumerate(user.claims)
        ]
        self.add_facts(
            CrmUser,
            [
                {
                    "id": user.id,
                    "is_enabled": user.is_enabled,
                    "current_signature_file_id": user.signature,
                    "phone_number": user.phone,
                }
                for user in people
                if user.in_crm
            ],
        )
        self.add_facts(
            CrmClaim,
            [
                {"id": number, "user_id": user, "status": each.status}
                for number, user, each in claims
            ],
        )
        self.add_facts(
            ClaimRequirement,
            [
                {
                    "id": f"{number}-{place}",
                    "claim_id": number,
                    "type": requirement.type,
                    "status": requirement.status,
                    "claim_requirement_reason": requirement.reason,
                }
                for number, _, each in claims
                for place, requirement in enumerate(each.requirements)
            ],
        )
        self.add_scores(user for user in people if user.has_score_row)

    def add_scores(self, users: Iterable[User]) -> None:
        """The score rows alone, for a CRM of another shape."""
        with self.engine.begin() as connection:
            connection.execute(
                insert_rows(
                    UserCallScore,
                    UserCallScore.user_id,
                    UserCallScore.current_score,
                    UserCallScore.current_queue_type,
                    UserCallScore.is_active,
                    UserCallScore.next_call_after,
                    UserCallScore.last_outcome,
                    UserCallScore.created_at,
                ),
                {
                    "rows": [
                        {
                            "user_id": user.id,
                            "current_score": user.score,
                            "current_queue_type": user.queue,
                            "is_active": user.is_active,
                            "next_call_after": user.next_call_after,
                            "last_outcome": user.last_outcome,
                            "created_at": user.created_at or self.now - DAY,
                        }
                        for user in users
                    ]
                },
            )

    @contextmanager
    def transaction(self) -> Iterator[FencedTransaction]:
        """A turn of the real line, at the world's instant."""
        with TransactionRunner(
            self.engine,
            dialer=loaded(),
            crm=self.external_crm,
            term=self.term,
            term_id=self.term_id,
        ).transaction() as transaction:
            yield replace(transaction, now=self.now, randomness=self.randomness)

    def read_crm(self, crm: Crm | None) -> None:
        """Read the CRM through this access from now on; None: in the world's database."""
        self.external_crm = crm
        use_fact_schema(self.engine, loaded(), crm)

    def run(
        self,
        operation: Callable[Concatenate[FencedTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """One operation in a turn of its own."""
        with self.transaction() as transaction:
            return operation(transaction, *args, **kwargs)

    def build(self, queue: str = UNSIGNED) -> int:
        """Build a generation, unpublished: its number."""
        built: list[int] = []

        def work(given: Work) -> Counts:
            number, size = regenerate(
                replace(given, now=self.now),
                loaded(),
                self.external_crm,
                self.policies[queue],
                trigger="hand",
            )
            built.append(number)
            return {"generation": number, "size": size}

        ran = jobs.run(self.engine, Job("queue.regenerate", "hand", queue=queue), work)
        assert ran.skipped is None, ran
        return built[0]

    def publish(self, generation: int) -> CommandAnswer:
        return self.run(publish, generation)

    def regenerate(self, *queues: str) -> None:
        """Build and publish these dialer queues, or both."""
        for queue in queues or BOTH:
            self.publish(self.build(queue))

    def request(
        self,
        agent: int,
        queue: str | None = UNSIGNED,
        *,
        request_id: str | None = None,
        deadline: datetime | None = None,
    ) -> ClaimRequest:
        """A request, with an id of its own unless it is given one."""
        return ClaimRequest(agent, request_id or f"request {next(self._requests)}", queue, deadline)

    def status(self, application: str = "test") -> Status:
        """What `status` says; sequencers are looked for under the application's name."""
        with self.engine.connect() as connection:
            return status(
                connection,
                loaded(),
                self.external_crm,
                application=application,
                settings=self.settings,
            )

    def explained(self, user: int, queue: str = UNSIGNED) -> QueueVerdict:
        """What is explained of a known user in this dialer queue."""
        return next(each for each in self.explanation(user).queues if each.queue == queue)

    def explanation(self, user: int) -> Explanation:
        """What is explained of a known user."""
        with self.engine.connect() as connection:
            found = explain(
                connection,
                loaded(),
                self.external_crm,
                user,
                policies=self.policies,
                settings=self.settings,
                now=self.now,
            )
        assert found is not None
        return found

    def answer(self, *requests: ClaimRequest) -> list[RequestAnswer]:
        """The answers, in as few turns as it takes."""
        answers: dict[int, RequestAnswer] = {}
        while open_places := [place for place in range(len(requests)) if place not in answers]:
            asked = [requests[place] for place in open_places]
            with self.transaction() as transaction:
                given = claim(transaction, asked, policies=self.policies, settings=self.settings)
            answers |= {
                place: each
                for place, each in zip(open_places, given, strict=True)
                if each is not None
            }
        return [answers[place] for place in range(len(requests))]

    def ask(self, agent: int, queue: str | None = UNSIGNED, **said: Any) -> RequestAnswer:
        """The answer to one request by itself."""
        (given,) = self.answer(self.request(agent, queue, **said))
        return given

    def held(self, agent: int, queue: str | None = UNSIGNED) -> Held:
        """The new hold of an agent for whom there is a user."""
        given = self.ask(agent, queue)
        assert isinstance(given, Assigned), given
        assert not given.replayed
        return given.assignment

    def move(self, move: Move) -> FinishAnswer:
        """The answer to one move, in a turn of its own."""
        return self.run(finish, [move])[0]

    def complete(self, hold: Held, outcome: str = "no_answer", **said: Any) -> FinishAnswer:
        return self.move(Complete(owner(hold), outcome, **said))

    def skip(self, hold: Held) -> FinishAnswer:
        return self.move(Skip(owner(hold), self.settings.skip_everyone))

    def release(self, hold: Held) -> FinishAnswer:
        return self.move(Release(owner(hold)))

    def expire(self) -> int:
        """End the lapsed holds: how many there were."""
        return len(self.run(expire, settings=self.settings).ended)

    def places(self, generation: int) -> list[Place]:
        """The entries of a generation in the order of their rank."""
        return [
            Place(*row)
            for row in self.rows(
                "SELECT user_id, rank, state, available_from, reason FROM assignment.entries"
                " WHERE generation_id = :generation ORDER BY rank",
                generation=generation,
            )
        ]

    def states(self, queue: str = UNSIGNED) -> dict[int, str]:
        """By user, in the order of their rank: the state of each entry of what is published."""
        return dict(
            self.rows(
                "SELECT e.user_id, e.state FROM assignment.entries e"
                " JOIN assignment.generations g ON g.id = e.generation_id"
                " WHERE g.queue = :queue AND g.state = 'published' ORDER BY e.rank",
                queue=queue,
            )
        )

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The events, or those of these kinds, in their order."""
        with self.engine.connect() as connection:
            found = connection.execute(text(EVENTS))
            return [dict(row) for row in found.mappings() if not kinds or row["kind"] in kinds]

    def unhealthy(self) -> list[str]:
        """The checks of the doctor that find something."""
        with self.engine.connect() as connection:
            return [each.check for each in examine(connection, loaded()) if not each.ok]


def owner(hold: Held, *, agent: int | None = None, version: int | None = None) -> Owner:
    """Who a word about this hold comes from: its agent with its version, unless said otherwise."""
    return Owner(hold.id, agent or hold.agent_id, version or hold.version)


@contextmanager
def opened(database_url: str, crm: OtherCrm | None = None) -> Iterator[World]:
    """A world in this database, with its CRM there or elsewhere; turns plan as a sequencer's do."""
    limit = timedelta(seconds=30)
    engine = connect(
        database_url, name="test", statement_timeout=limit, pool_size=6, index_plans_only=True
    )
    try:
        yield World(engine, crm)
    finally:
        engine.dispose()
