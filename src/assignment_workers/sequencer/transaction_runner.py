"""Fenced transactions: each proves the term, and no two transactions of a lane run in parallel.

The proof locks the lane's row in the table `sequencer`. So the transactions of a lane run one after
the other, whatever the broker does. Once the term is over, the proof finds no row. So a former
leader that was paused, and then continues, commits nothing (guarantee 9 in docs/how-it-works.md).

The proof locks the row but does not update it. Each update would make a new version of the row.
While a reader of an old snapshot is active, such as a backup, PostgreSQL keeps all versions of the
row, and every later proof would have to scan all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from random import Random
from threading import Event
from time import monotonic
from typing import TypeVar
from uuid import UUID

import structlog
from psycopg.errors import UniqueViolation
from sqlalchemy import (
    ARRAY,
    Connection,
    Engine,
    Text,
    any_,
    bindparam,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from tenacity import RetryCallState

from assignment_workers.assignment.claims.idempotency import CommandIdentity, looking_for, once
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.transaction import FencedTransaction, OtherLanes
from assignment_workers.errors import DatabaseUnavailable, StaleTerm
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.pipeline import Statement, commit, run_statements
from assignment_workers.schema.retry import constraint_of, patiently
from assignment_workers.schema.tables import DEFAULT_LANE, UNMARKED, LaneTerm, SequencerSign
from assignment_workers.sequencer.races import tell_race
from assignment_workers.sequencer.timekeeping import Reading, stepped
from assignment_workers.telemetry import TURN_RETRIES, TURN_SECONDS

T = TypeVar("T")

log = structlog.get_logger()

PATIENCE = timedelta(seconds=5)
"""The time for which a failed transaction is retried if it has no deadline.

Also used if this process has not read the database's clock yet, because deadlines are times of that
clock.
"""
LONGEST_PATIENCE = timedelta(seconds=60)
"""The longest time for which a failed transaction is retried, however late its deadline is."""

SIGN_SECONDS = 1.0
"""The minimum interval, in seconds, at which the lane's transactions record a sign of life."""
SEEN_SECONDS = 3.0
"""The minimum interval, in seconds, between two updates of the column `sequencer.seen_at`.

The updates are for standbys of release 0.1, which consider the leader dead if the time in this
column is more than 8 seconds old. They must be few, because each makes a new version of the row
that every transaction locks to prove its term. While a reader of an old snapshot is active, such as
a backup, PostgreSQL keeps all these versions, and each proof has to scan them.
"""

# PostgreSQL reads the locked row again if it was changed meanwhile, so the settings are those of
# the last change before this transaction.
_proved = (
    select(LaneTerm.settings_id)
    .where(
        LaneTerm.lane == bindparam("of_lane"),
        LaneTerm.term == bindparam("of_term"),
        LaneTerm.term_id == bindparam("of_id"),
    )
    .with_for_update()
    .subquery("proved")
)
# The clock is read in the outer query. The subquery would read it before waiting for the lock.
_PROVE = select(func.clock_timestamp(), _proved.c.settings_id)
_SIGN = (
    update(SequencerSign)
    .where(SequencerSign.lane == bindparam("of_lane"))
    .values(last_turn_at=func.clock_timestamp())
)
_SEEN = (
    update(LaneTerm)
    .where(LaneTerm.lane == bindparam("of_lane"))
    .values(seen_at=func.clock_timestamp())
)


class TransactionRunner:
    """Runs the fenced transactions of one lane, each of which first proves this process's term."""

    def __init__(
        self,
        engine: Engine,
        *,
        term: int,
        dialer: Dialer,
        crm: Crm | None = None,
        term_id: UUID = UNMARKED,
        lane: str = DEFAULT_LANE,
        lanes: Lanes = ONE_LANE,
        randomness: Random | None = None,
    ) -> None:
        self.engine = engine
        self.term = term
        self.dialer = dialer
        self.crm = crm
        self.term_id = term_id
        self.lane = lane
        self.lanes = lanes
        self._randomness = randomness or Random()
        self._seen: tuple[datetime, float] | None = None
        """The last reading of the database's clock, and the time of this process's monotonic clock,
        in seconds, when that reading arrived. Each transaction reads the database's clock when it
        proves the term, whether or not it commits later. None: no transaction has proved the term.
        """
        self._reading: Reading | None = None
        """The reading of the database's clock in the last committed transaction."""
        self._signed = self._seen_signed = monotonic()
        self._trouble: tuple[str, float] | None = None
        """The reason of the last transient failure, and its time by this process's monotonic clock,
        in seconds. None: no transaction has failed, or one has succeeded since the last failure.
        """
        self._revoked = Event()

    def revoke(self) -> None:
        """End the term in this process: from now on no transaction begins or commits. Thread-safe.

        A transaction that is being retried ends as well.
        """
        self._revoked.set()

    @contextmanager
    def transaction(
        self, others: Collection[str] = (), *, first: Sequence[Statement] = ()
    ) -> Iterator[FencedTransaction]:
        """Run one fenced transaction: commit at the end, roll back on any error.

        The transaction first proves this process's term. Raises `StaleTerm` if the term is over.
        Races (conflicts of two writers) that the transaction records are logged after the commit.

        `others`: further lanes. Their rows in the table `sequencer` are locked too, so that no
        transaction of these lanes runs meanwhile. The rows are locked in the order of the lanes'
        names, so that two transactions that lock several lanes cannot deadlock. `first`: statements
        that share a round trip with the proof of the term. The rows that these statements return
        are in the field `first` of the yielded `FencedTransaction`.
        """
        self._check()
        began = monotonic()
        locked = frozenset({self.lane, *others})
        with self.engine.begin() as connection:
            if others:
                _lock(connection, sorted(locked))
            # This comes before every read of the operation, so each of them sees what is committed
            # now.
            asked_at = monotonic()
            proof = {"of_lane": self.lane, "of_term": self.term, "of_id": self.term_id}
            proved, *found = run_statements(connection, Statement(_PROVE, proof), *first)
            if not proved:
                current = connection.execute(
                    select(LaneTerm.term).where(LaneTerm.lane == self.lane)
                ).scalar_one_or_none()
                raise StaleTerm(held=self.term, current=current)
            now: datetime = proved[0][0]
            settings_id: UUID | None = proved[0][1]
            self._seen = now, monotonic()
            reading = Reading(now, asked_at, self._seen[1])
            step = reading.step_since(self._reading)
            last: list[Statement] = []
            transaction = FencedTransaction(
                connection,
                now,
                self.term,
                self.dialer,
                self._randomness,
                crm=self.crm,
                lanes=self.lanes,
                locked=locked,
                last=last,
                first=found,
                settings_id=settings_id,
            )
            if step is not None:
                transaction.record(stepped(step, self.lane))
            yield transaction
            self._check()
            signed = monotonic()
            if signed - self._signed >= SIGN_SECONDS:
                last.append(Statement(_SIGN, {"of_lane": self.lane}))
                self._signed = signed
            if signed - self._seen_signed >= SEEN_SECONDS:
                last.append(Statement(_SEEN, {"of_lane": self.lane}))
                self._seen_signed = signed
            commit(connection, *last)
        self._reading = reading
        self._trouble = None
        if step is not None:
            log.warning("clock_stepped", seconds=round(step.total_seconds(), 3))
        TURN_SECONDS.observe(monotonic() - began)
        for race in transaction.races:
            tell_race(race, term=self.term)

    def _check(self) -> None:
        if self._revoked.is_set():
            raise StaleTerm(held=self.term, current=None)

    def run(
        self,
        operation: Callable[[FencedTransaction], T],
        *,
        until: datetime | None = None,
        command: CommandIdentity | None = None,
    ) -> T:
        """Run `operation` in a transaction that proves the term; retry after a transient failure.

        The retries run here, because sending the message back to its queue would lose the order.
        They end at the deadline `until`, but after a minute at the latest; without a deadline they
        end after five seconds. `DatabaseUnavailable` is then raised.

        A conflict with another lane over a user or an agent is retried as well, and the transaction
        that resolves it records a race (a conflict of two writers). If the operation turns out to
        concern another lane, it starts again, with the row of that lane locked, too.

        A `command` is carried out once: if it has a stored answer, for example from a try whose
        COMMIT was not confirmed, that answer is returned and `operation` is not called.
        """
        met: list[str] = []
        others: set[str] = set()
        seconds = self._until(until).total_seconds()

        def attempt() -> T:
            while True:
                try:
                    return alone()
                except OtherLanes as more:
                    others.update(more.lanes)

        first = [looking_for(command)] if command else []

        def alone() -> T:
            with self.transaction(others, first=first) as transaction:
                for constraint in met:
                    transaction.race(
                        "conflict",
                        done="tried again",
                        constraint=constraint,
                        error_code=UniqueViolation.sqlstate,
                    )
                return (
                    once(transaction, command, transaction.first[0], operation)
                    if command
                    else operation(transaction)
                )

        def remember(state: RetryCallState) -> None:
            TURN_RETRIES.inc()
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, IntegrityError):
                met.append(constraint_of(error) or "unknown")
            elif error is not None:
                text = str(getattr(error, "orig", None) or error).strip().splitlines()
                reason = text[0] if text else type(error).__name__
                self._trouble = reason, monotonic()
                log.warning("turn_tried_again", reason=reason)

        try:
            return patiently(attempt, seconds=seconds, before_sleep=remember)
        except DatabaseUnavailable as error:
            self._trouble = str(error).removeprefix(f"{error.general}: "), monotonic()
            raise

    def trouble_since(self, steady: float) -> str | None:
        """Return the reason of the last transient failure of the database after `steady`.

        `steady` is a time of the monotonic clock. None if no transaction failed after it, or if one
        has succeeded since the failure.
        """
        return self._trouble[0] if self._trouble and self._trouble[1] > steady else None

    def ran_since(self, steady: float) -> bool:
        """Return True if a transaction of this runner proved this process's term after `steady`.

        `steady` is a time of the monotonic clock.
        """
        return self._seen is not None and self._seen[1] > steady

    def _until(self, until: datetime | None) -> timedelta:
        """Return the time for which a failed transaction may be retried.

        It is the time left until the deadline `until`, by the database's clock as last read, but at
        least zero and at most a minute (`LONGEST_PATIENCE`). If there is no deadline, or the clock
        has not been read yet, it is five seconds (`PATIENCE`).
        """
        if until is None or self._seen is None:
            return PATIENCE
        now, at = self._seen
        left = until - now - timedelta(seconds=monotonic() - at)
        return min(max(left, timedelta()), LONGEST_PATIENCE)


def _lock(connection: Connection, lanes: Sequence[str]) -> None:
    """Lock the rows of these lanes in the order of the names; first insert the missing rows."""
    parameters = {"lanes": list(lanes)}
    if len(connection.execute(_LOCK, parameters).all()) < len(lanes):
        connection.execute(
            insert(LaneTerm).on_conflict_do_nothing(), [{"lane": each} for each in lanes]
        )
        connection.execute(_LOCK, parameters)


_LOCK = (
    select(LaneTerm.lane)
    .where(LaneTerm.lane == any_(bindparam("lanes", type_=ARRAY(Text))))
    .order_by(LaneTerm.lane)
    .with_for_update()
)
