"""This project as a dialer in the replay, with the operations and transactions of a sequencer.

Each agent's thread runs its own fenced transactions. A fenced transaction first proves its term,
which is the fencing token of a sequencer. It commits only if that term is the current one. All
threads share two connections. While the transaction on one connection holds the lane's row lock and
works, the transaction on the other connection waits for the lock. On the real stack, the assignment
queue puts the transactions in order instead.
"""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from random import Random

from sqlalchemy import text

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Assigned, CommandAnswer, Empty, Finished, Held
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations.levels import low
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete, Owner
from assignment_workers.dialers.claims import dialer
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.lab.incident.dialer import Given
from assignment_workers.policy.process_dialer import use
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings

QUEUE = "unsigned_users"
LEASE = timedelta(seconds=4)
"""The lease in the replay: longer than any simulated call.

Therefore only agents who went away lose an assignment.
"""


class Surprise(AssignmentWorkersError):
    """An answer that should not occur under this load."""


class Ours:
    """This project as a way to hand out users in the replay.

    A claim is one transaction, as in the sequencer; the publication of a rebuild is another.
    """

    def __init__(
        self, database_url: str, *, agents: int, validation: timedelta, randomness: Random
    ) -> None:
        """Connect to the database, and build and publish the first generation of the queue.

        `agents` and `validation` (the time of a read on another database) are not used: two
        connections serve any number of agents, and a claim reads the facts in its own statement.
        """
        use(dialer)
        self.settings = Settings.from_environment({}).model_copy(update={"lease": LEASE})
        self.engine, self._sequencer = (
            connect(
                database_url,
                name="replay",
                statement_timeout=timedelta(seconds=30),
                lock_timeout=timedelta(seconds=30),
                pool_size=size,
                index_plans_only=not whole,
            )
            for size, whole in ((4, True), (2, False))
        )
        self.runner = TransactionRunner(
            self._sequencer, term=0, dialer=dialer, randomness=randomness
        )
        self._numbers = itertools.count(1)
        self._rebuilds = 0
        self.rebuild()

    def ask(self, agent: int) -> Given | None:
        """Claim a user for this agent in one transaction; None if the queue is empty."""
        request = ClaimRequest(agent, f"replay-{next(self._numbers)}", QUEUE)
        (answer,) = self.runner.run(
            lambda transaction: claim(
                transaction, [request], policies=dialer.policies, settings=self.settings
            )
        )
        match answer:
            case Assigned(assignment=held):
                return Given(held.user_number, held)
            case Empty():
                return None
            case other:
                raise Surprise(f"agent {agent} asked and was told: {other}")

    def finish(self, agent: int, given: Given) -> bool:
        """Complete the assignment with the outcome `no_answer`.

        All calls of the replay end with this outcome. The score, the queue entry and the assignment
        change in one transaction. Return False if the assignment was no longer active.
        """
        held = given.token
        if not isinstance(held, Held):
            raise TypeError(f"not given by this dialer: {given}")
        owner = Owner(held.id, agent, held.version)
        answer = self.runner.run(
            lambda transaction: finish(transaction, [Complete(owner, "no_answer")])[0]
        )
        return isinstance(answer, Finished)

    def check_level(self) -> None:
        """Rebuild if few claimable users are left and the last build is not recent."""
        with self.engine.connect() as connection:
            if not low(connection, [QUEUE], settings=self.settings):
                return
        self.rebuild()

    def rebuild(self) -> None:
        """Build a generation beside the one in use, then publish it in a transaction of its own."""
        self._rebuilds += 1
        number = self.build()
        if number is not None:
            self.publish(number)

    def build(self) -> int | None:
        """Build a generation beside the one in use and return its number.

        Returns None if another build was running.
        """

        def work(given: jobs.Work) -> jobs.Counts:
            number, _ = regenerate(given, dialer, None, dialer.policies[QUEUE], trigger="hand")
            return {"generation": number}

        job = jobs.Job("queue.regenerate", "hand", QUEUE)
        return jobs.run(self.engine, job, work).counts.get("generation")

    def publish(self, generation: int) -> CommandAnswer:
        """Publish the generation: claims take users from it from now on."""
        return self.runner.run(lambda transaction: publish(transaction, generation))

    def rebuilds(self) -> int:
        """Return the number of rebuilds."""
        return self._rebuilds

    def settle(self) -> None:
        """Wait until the leases of the agents who went away have expired."""
        ends = time.monotonic() + LEASE.total_seconds() + 1
        while self.stuck() and time.monotonic() < ends:
            time.sleep(0.05)
            self.runner.run(lambda transaction: expire(transaction, settings=self.settings))

    def stuck(self) -> int:
        """Return the number of active assignments in the tables.

        Each active assignment holds a user. Users who are held after all agents have left are lost.
        """
        counted = text("SELECT count(*) FROM assignment.assignments WHERE state = 'active'")
        with self.engine.connect() as connection:
            return int(connection.execute(counted).scalar_one())

    def holders(self, user: int) -> list[int]:
        """Return the agents to whom the tables assign this user."""
        found = text(
            "SELECT agent_id FROM assignment.assignments WHERE user_id = :u AND state = 'active'"
        )
        with self.engine.connect() as connection:
            return list(connection.execute(found, {"u": user}).scalars())

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()
        self._sequencer.dispose()
