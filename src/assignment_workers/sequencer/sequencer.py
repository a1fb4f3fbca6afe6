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
from assignment_workers.assignment.turn import raced
from assignment_workers.errors import DatabaseUnavailable, StaleTerm
from assignment_workers.schema.tables import Event
from assignment_workers.sequencer.line import Line
from assignment_workers.sequencer.races import tell_race
from assignment_workers.sequencer.refused import REFUSING, refused
from assignment_workers.sequencer.term import SILENCE, Candidacy
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
        self._line: Line | None = None
        self._probed = 0.0

    @property
    def leads(self) -> bool:
        """Whether a term was begun and not given up, as far as this process knows."""
        return self._line is not None

    @property
    def term(self) -> int:
        """The term being led; 0 while standing by."""
        return self._line.term if self._line else 0

    @property
    def line(self) -> Line:
        """Where turns are taken; raises `StaleTerm` while this process does not lead."""
        if self._line is None:
            raise StaleTerm(held=0, current=None)
        return self._line

    def stand(self) -> int | None:
        """Lead if the place is free, or if its holder is silent.

        The term, or None to stand by on.
        """
        term = self.candidacy.try_to_lead()
        if term is None:
            sign = self.candidacy.sign()
            if sign is not None and sign.silent > SILENCE.total_seconds():
                log.warning("deposing", term=sign.term, silent=round(sign.silent, 1))
                self.candidacy.depose()
            return None
        self._line = Line(self.engine, term=term, lane=self.candidacy.lane, lanes=self.lanes)
        TERM.set(term)
        return term

    def lose(self) -> None:
        """The place is gone: lead no more, and say so by the exit code."""
        self.lost = True
        self.resign()

    def resign(self) -> None:
        """Lead no more; the lock is free at once."""
        self._line = None
        TERM.set(0)
        self.candidacy.close()

    def overtaken(self, error: StaleTerm) -> None:
        """A turn found its term over: leave a race of kind `stale_term`, and lead no more.

        Its event names both terms in the details and none in its column, which says under which
        term a change was made. A turn asked for after this process gave its place up tried nothing.
        """
        if error.held == 0:
            return
        race = raced(
            "stale_term",
            done="rolled back",
            held=error.held,
            current=error.current,
            host=self.candidacy.host,
            pid=self.candidacy.pid,
        )
        with self.engine.begin() as connection:
            connection.execute(insert(Event).values(at=func.clock_timestamp(), **race))
        tell_race(race, term=error.held)
        self.lose()

    def take_an_empty_turn(self) -> None:
        """Give a sign of life where nothing comes along the line: its broker refuses writes."""
        with contextlib.suppress(DatabaseUnavailable, StaleTerm, DBAPIError):
            self.line.run(lambda _: None)

    def probe(self) -> None:
        """Send a probe down the line now and then: its turn is an idle leader's sign of life."""
        if monotonic() - self._probed >= PROBE_SECONDS:
            self._probed = monotonic()
            try:
                self._send_probe()
            except (OperationalError, ResponseError) as error:
                if (why := refused(error)) is None:
                    raise
                REFUSING.note(why)
