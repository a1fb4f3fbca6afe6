"""Fenced transactions: each proves the term, and no two of one lane ever run side by side.

The proof locks the lane's row in `sequencer`, so turns follow one another whatever the queue did;
it finds no row once the term is over, so a predecessor that woke up commits nothing (guarantee 9).
It writes no new version of the row: a reader of an old snapshot, a backup's, would keep each of
them, and every later proof would go through all of them.
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
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.transaction import FencedTransaction, OtherLanes
from assignment_workers.errors import StaleTerm
from assignment_workers.schema.pipeline import Statement, commit, run_statements
from assignment_workers.schema.retry import constraint_of, patiently
from assignment_workers.schema.tables import DEFAULT_LANE, UNMARKED, LaneTerm, SequencerSign
from assignment_workers.sequencer.races import tell_race
from assignment_workers.sequencer.timekeeping import Reading, stepped
from assignment_workers.telemetry import TURN_RETRIES, TURN_SECONDS

T = TypeVar("T")

log = structlog.get_logger()

PATIENCE = timedelta(seconds=5)
"""How long a turn is tried again where the request names no deadline."""
LONGEST_PATIENCE = timedelta(seconds=60)
"""And where it names a far one."""

SIGN_SECONDS = 1.0
"""A leader leaves no sign of life in a turn that follows the last sign sooner."""

_PROVE = select(func.clock_timestamp()).select_from(
    # The clock is read outside: in here it would be read before the wait for the lock.
    select(LaneTerm.lane)
    .where(
        LaneTerm.lane == bindparam("of_lane"),
        LaneTerm.term == bindparam("of_term"),
        LaneTerm.term_id == bindparam("of_id"),
    )
    .with_for_update()
    .subquery("proved")
)
_SIGN = (
    update(SequencerSign)
    .where(SequencerSign.lane == bindparam("of_lane"))
    .values(last_turn_at=func.clock_timestamp())
)


class TransactionRunner:
    """The assignment queue's side of the database, for as long as a term lasts."""

    def __init__(
        self,
        engine: Engine,
        *,
        term: int,
        term_id: UUID = UNMARKED,
        lane: str = DEFAULT_LANE,
        lanes: Lanes = ONE_LANE,
        randomness: Random | None = None,
    ) -> None:
        self.engine = engine
        self.term = term
        self.term_id = term_id
        self.lane = lane
        self.lanes = lanes
        self._randomness = randomness or Random()
        self._seen: tuple[datetime, float] | None = None
        """The last turn's time, and this process's monotonic clock then."""
        self._reading: Reading | None = None
        """What the last turn that committed made of the database's clock."""
        self._signed = monotonic()
        self._revoked = Event()

    def revoke(self) -> None:
        """End the term here: from now on no turn begins or commits, though one is being retried.

        May be called by any thread.
        """
        self._revoked.set()

    @contextmanager
    def transaction(
        self, others: Collection[str] = (), *, first: Sequence[Statement] = ()
    ) -> Iterator[FencedTransaction]:
        """One transaction; commits at the end, rolls back on any error. Raises `StaleTerm`.

        `others`: lanes whose rows it locks beside its own, so that nothing of theirs runs either.
        Always all in the order of their names, so two such turns never wait in a ring. Races that
        were left in it are told in the log once it has committed. `first`: statements that go in
        one trip with the proof of the term; their rows are `FencedTransaction.first`.
        """
        self._check()
        began = monotonic()
        locked = frozenset({self.lane, *others})
        with self.engine.begin() as connection:
            if others:
                _lock(connection, sorted(locked))
            # Nothing comes before this statement, so every later one reads what is committed now.
            asked_at = monotonic()
            proof = {"of_lane": self.lane, "of_term": self.term, "of_id": self.term_id}
            proved, *found = run_statements(connection, Statement(_PROVE, proof), *first)
            if not proved:
                current = connection.execute(
                    select(LaneTerm.term).where(LaneTerm.lane == self.lane)
                ).scalar_one_or_none()
                raise StaleTerm(held=self.term, current=current)
            now: datetime = proved[0][0]
            self._seen = now, monotonic()
            reading = Reading(now, asked_at, self._seen[1])
            step = reading.step_since(self._reading)
            last: list[Statement] = []
            transaction = FencedTransaction(
                connection,
                now,
                self.term,
                self._randomness,
                lanes=self.lanes,
                locked=locked,
                last=last,
                first=found,
            )
            if step is not None:
                transaction.record(stepped(step, self.lane))
            yield transaction
            self._check()
            signed = monotonic()
            if signed - self._signed >= SIGN_SECONDS:
                last.append(Statement(_SIGN, {"of_lane": self.lane}))
                self._signed = signed
            commit(connection, *last)
        self._reading = reading
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
        """Do `operation` in a turn, again from its start when the database fails in a passing way.

        Again in place, never by a message sent back: that would lose the order. Bounded by `until`,
        or `PATIENCE`; then `DatabaseUnavailable`. A conflict with another lane over a user or an
        agent is tried again too, and recorded as a race by the turn that resolves it. An operation
        that turns out to concern what is another lane's begins anew with that lane's row locked.
        A `command` is carried out once: where it has an answer, of a try whose COMMIT was not
        answered, say, that is returned and nothing is done.
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
                log.warning("turn_tried_again", reason=text[0] if text else type(error).__name__)

        return patiently(attempt, seconds=seconds, before_sleep=remember)

    def had_turn_since(self, steady: float) -> bool:
        """Whether a turn was begun since this instant of the process's steady clock."""
        return self._seen is not None and self._seen[1] > steady

    def _until(self, until: datetime | None) -> timedelta:
        """How long from now, by the database's clock as the last turn read it."""
        if until is None or self._seen is None:
            return PATIENCE
        now, at = self._seen
        left = until - now - timedelta(seconds=monotonic() - at)
        return min(max(left, timedelta()), LONGEST_PATIENCE)


def _lock(connection: Connection, lanes: Sequence[str]) -> None:
    """Lock the rows of these lanes, in their order; one that nobody has led yet gets its row."""
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
