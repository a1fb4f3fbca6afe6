"""The environment of the agents: users sign, requirements appear, and jobs run at their times.

A requirement is a document that a user has to send. It is a row in the CRM's table
`claim_requirements`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.client import Client
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import AgentActivity, Recorder, Sample

REBUILD = timedelta(minutes=15)
"""The simulated time between two requests to rebuild all dialer queues.

The value is taken from the original dialer (original-dialer section 5). There it was intended as
the shortest time between two rebuilds of a queue with few users. It had no effect there.
"""
CLEANUP = timedelta(minutes=10)
SHORTEST = 4.0
"""The least real seconds between two runs of a job, however fast the simulated time runs."""
JOBS = ("queue.clean_conversions", "queue.check_levels", "generation.tend")

SIGN = """
UPDATE crm.users SET current_signature_file_id = 'signed-' || id
WHERE id = ANY(:users) AND coalesce(current_signature_file_id, '') = '' RETURNING id
"""
NEXT = """
SELECT e.user_id FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id
WHERE g.state = 'published' AND g.queue = 'unsigned_users' AND e.state IN ('ready', 'held')
ORDER BY e.rank OFFSET :offset LIMIT :many
"""
"""The query for users whom the simulation lets sign, besides those who sign after a call.

It finds users near the front of the queue of unsigned users. They will be handed out soon
(`ready`), or an agent has them (`held`). So a signature may coincide with a claim or a call of the
same user.
"""
APPEARS = """
INSERT INTO crm.claim_requirements
  (id, claim_id, type, status, claim_requirement_reason, created_at)
SELECT :name, :user * 10, 'payslip', 'PENDING', 'asked by the lender', timezone('UTC', now())
WHERE EXISTS (SELECT 1 FROM crm.claims WHERE id = :user * 10)
"""
CLAIMABLE = """
SELECT count(*) FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id
WHERE g.state = 'published' AND e.state = 'ready'
"""


@dataclass
class Environment:
    """Simulates the events around the agents until `over` is set.

    For example, it stores users' signatures in the CRM, and it requests rebuilds of the queues.
    """

    plan: Plan
    engine: Engine
    client: Client
    recorder: Recorder
    over: asyncio.Event
    signed_at: dict[int, datetime] = field(default_factory=dict)
    """Maps each user who signed to a time just after the signature was stored in the CRM.

    The time is by the database's clock. After that time, no claim may take the user from
    the queue of unsigned users.
    """
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _to_sign: list[int] = field(default_factory=list)

    def signs(self, user: int) -> None:
        """Simulate a signature by this user: the method `users` soon stores it in the CRM.

        Simulated agents call this method after a call with the outcome `completed_form`. The method
        `users` stores the signatures once a second. A signature may be lost if the database is
        unavailable at that time.
        """
        self._to_sign.append(user)

    async def users(self) -> None:
        """Change facts of some users in the CRM each second, until the simulated day is over.

        For some users, a signature is stored in the CRM's table of users. For others, a requirement
        appears: a row in the CRM's table `claim_requirements`, for a document that the user has to
        send.
        """
        chance = Random(f"{self.plan.seed} users")
        while await self._after(1.0):
            many = max(1, round(self.plan.speed / 20))
            ready, self._to_sign = self._to_sign, []
            await self._attempt(partial(self._some_sign, chance, many, ready))
            await self._attempt(partial(self._some_appear, chance, many))

    async def jobs(self) -> None:
        """Request a rebuild of all dialer queues every 15 minutes of simulated time."""
        while await self._after(max(self.plan.wall(REBUILD), SHORTEST)):
            if isinstance(await asyncio.to_thread(self.client.regenerate), str):
                self.recorder.counts["rebuilds asked for"] += 1

    async def cleanups(self) -> None:
        """Send the messages that start the clean-up jobs, every 10 minutes of simulated time.

        For example, the jobs remove converted users from the dialer queues and end the assignments
        whose lease has expired.
        """
        while await self._after(max(self.plan.wall(CLEANUP), SHORTEST)):
            for job in JOBS:
                await asyncio.to_thread(self._send, job, "maintenance")
            await asyncio.to_thread(self._send, "assignment.expire", "assignment")

    async def watch(self, show: Callable[[Sample], None]) -> None:
        """Record the figures of the run each second as a `Sample`; pass the sample to `show`."""
        while await self._after(1.0):
            claimable = await self._attempt(self._claimable)
            states = dict.fromkeys(AgentActivity, 0)
            for state in self.recorder.states.values():
                states[state] += 1
            sample = Sample(self.recorder.now, states, len(self.recorder.assignments), claimable)
            self.recorder.samples.append(sample)
            show(sample)

    def _some_sign(self, chance: Random, many: int, ready: list[int]) -> None:
        with self.engine.begin() as connection:
            head = {"offset": chance.randrange(30), "many": many}
            found = connection.execute(text(NEXT), head).scalars().all()
            signing = {"users": [*found, *ready]}
            signed = connection.execute(text(SIGN), signing).scalars().all()
        with self.engine.connect() as connection:
            now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        self.signed_at.update(dict.fromkeys(signed, now))

    def _some_appear(self, chance: Random, many: int) -> None:
        with self.engine.begin() as connection:
            for _ in range(many):
                user = 2 * chance.randrange(self.plan.users) + 1
                name = f"demo-{self.plan.seed}-{self.recorder.began:.6f}-{next(self._numbers)}"
                connection.execute(text(APPEARS), {"user": user, "name": name})
                self.recorder.counts["requirements appeared"] += 1

    def _claimable(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text(CLAIMABLE)).scalar_one())

    def _send(self, job: str, celery_queue: str) -> None:
        try:
            self.client.send_again(job, [], {}, celery_queue)
        except BrokerUnavailable:
            self.recorder.counts["jobs not sent"] += 1

    async def _attempt(self, what: Callable[[], Any]) -> Any:  # noqa: ANN401 - what it gives
        """Call `what` in a thread and return its result; None if the database is unavailable."""
        try:
            return await asyncio.to_thread(what)
        except SQLAlchemyError:
            self.recorder.counts["database away"] += 1
            return None

    async def _after(self, seconds: float) -> bool:
        """Wait for `seconds` and return True; return False as soon as the day is over."""
        try:
            await asyncio.wait_for(self.over.wait(), seconds)
        except TimeoutError:
            return True
        return False
