"""The state of one sequencer process: its place and its line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError
from sqlalchemy import Engine, func, insert
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.transaction import raced
from assignment_workers.errors import DatabaseUnavailable, StaleTerm
from assignment_workers.schema.tables import Event
from assignment_workers.sequencer.races import tell_race
from assignment_workers.sequencer.redis_refusals import REFUSING, refused
from assignment_workers.sequencer.term import SILENCE, Candidacy, Term
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.telemetry import TERM

log = structlog.get_logger()

PROBE_SECONDS = 2.0


class Sequencer:
    """One process of those that may lead a lane. It stands by until `stand` says otherwise."""

    def __init__(
        self,
        engine: Engine,
        candidacy: Candidacy,
        *,
        queue: str,
        lanes: Lanes = ONE_LANE,
        send_probe: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.candidacy = candidacy
        self.queue = queue
        self.lanes = lanes
        self._send_probe = send_probe
        self.lost = False
        self.deposed: Term | None = None
        """The term that this process has ended last, of a leader that lives, if any."""
        self._runner: TransactionRunner | None = None
        self._probed = 0.0
        self._probe_waits = False

    @property
    def leads(self) -> bool:
        """Whether a term was begun and not given up, as far as this process knows."""
        return self._runner is not None

    @property
    def term(self) -> int:
        """The term being led; 0 while standing by."""
        return self._runner.term if self._runner else 0

    @property
    def runner(self) -> TransactionRunner:
        """Where turns are taken; raises `StaleTerm` while this process does not lead."""
        if self._runner is None:
            raise StaleTerm(held=0, current=None)
        return self._runner

    @property
    def mark(self) -> str:
        """The term being led, by number and id."""
        return Term(self._runner.term, self._runner.term_id).mark if self._runner else "0"

    def stand(self) -> Term | None:
        """Lead if the place is free, or if its holder is silent.

        The term, or None to stand by on.
        """
        term = self.candidacy.try_to_lead()
        if term is None:
            sign = self.candidacy.sign()
            if sign is not None and sign.silent > SILENCE.total_seconds():
                log.warning("deposing", term=sign.term.number, silent=round(sign.silent, 1))
                self.candidacy.depose()
                self.deposed = sign.term
            return None
        self._runner = TransactionRunner(
            self.engine,
            term=term.number,
            term_id=term.id,
            lane=self.candidacy.lane,
            lanes=self.lanes,
        )
        TERM.set(term.number)
        return term

    def lose(self) -> None:
        """The place is gone: lead no more, and say so by the exit code."""
        self.lost = True
        self.resign()

    def resign(self) -> None:
        """Lead no more; the lock is free at once. A turn that is being retried does not commit."""
        if self._runner is not None:
            self._runner.revoke()
        self._runner = None
        TERM.set(0)
        self.candidacy.close()

    def overtaken(self, error: StaleTerm) -> None:
        """A turn found its term over: leave a race, and lead no more.

        Of kind `stale_term`, or `term_begun_twice` where another has begun a term of its number.
        A turn asked for, or tried again, after this process gave its place up tried nothing.
        """
        if error.held == 0 or error.current is None:
            return
        kind = "term_begun_twice" if error.held == error.current else "stale_term"
        self._record_event(kind, done="rolled back", held=error.held, current=error.current)
        self.lose()

    def follows(self, last: str) -> None:
        """Leave a race of kind `term_begun_twice` where this term's number is not a new one.

        `last` is the mark of the leader before, as Redis has it. The database has moved back to a
        copy of its past, and terms that had begun since then are none of its own any more.
        """
        number = int(last.partition(".")[0])
        if number >= self.term:
            self._record_event("term_begun_twice", done="went on", held=number, current=self.term)

    def _record_event(self, kind: str, **facts: object) -> None:
        """Leave the event of a race between terms.

        It names both in the details and none in its column, which says under which term a change
        was made.
        """
        race = raced(kind, host=self.candidacy.host, pid=self.candidacy.pid, **facts)
        with self.engine.begin() as connection:
            connection.execute(insert(Event).values(at=func.clock_timestamp(), **race))
        tell_race(race, term=self.term)

    def take_an_empty_turn(self) -> None:
        """Give a sign of life where nothing comes along the line: its broker refuses writes."""
        with contextlib.suppress(DatabaseUnavailable, StaleTerm, DBAPIError):
            self.runner.run(lambda _: None)

    def probe_came(self) -> None:
        """The probe has come to its turn: another may be sent."""
        self._probe_waits = False

    def probe(self) -> None:
        """Send a probe down the line now and then: its turn is an idle leader's sign of life."""
        now = monotonic()
        if now - self._probed < PROBE_SECONDS:
            return
        # One behind many messages tells how long the line is; more would only make it longer.
        if not (self._probe_waits and self.runner.had_turn_since(now - PROBE_SECONDS)):
            self._probed, self._probe_waits = now, True
            try:
                self._send_probe()
            except (OperationalError, ResponseError) as error:
                if (why := refused(error)) is None:
                    raise
                REFUSING.note(why)
