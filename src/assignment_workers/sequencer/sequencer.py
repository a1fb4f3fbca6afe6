"""The state of one sequencer process: its candidacy and its transaction runner.

The candidacy is the database connection that tries to take the lane's lock. The runner, which
exists while this process leads, runs its transactions.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import monotonic

import structlog
from sqlalchemy import Engine, func, insert
from sqlalchemy.exc import DBAPIError

from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.transaction import raced
from assignment_workers.errors import DatabaseUnavailable, StaleTerm
from assignment_workers.schema.retry import one_line
from assignment_workers.schema.tables import Event
from assignment_workers.sequencer.races import tell_race
from assignment_workers.sequencer.redis_refusals import WRITE_REFUSALS, refused
from assignment_workers.sequencer.term import SILENCE, Candidacy, CommitsWait, Term
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.telemetry import TERM

log = structlog.get_logger()

PROBE_SECONDS = 2.0


class Sequencer:
    """A process that leads a lane, or stands by to lead it.

    A lane is a group of dialer queues with one writer.
    """

    def __init__(
        self,
        engine: Engine,
        candidacy: Candidacy,
        *,
        crm: Crm | None,
        queue: str,
        lanes: Lanes = ONE_LANE,
        send_probe: Callable[[], None],
        begin: Callable[[TransactionRunner], object] = lambda _: None,
    ) -> None:
        """Prepare the process; `stand` tries to lead.

        `engine`: the database in which the transactions run. `candidacy`: the connection that takes
        the lane's lock. `crm`: the external CRM; None if the CRM is in our own database. `queue`:
        the name of the lane's assignment queue. `lanes`: the lanes of this installation.
        `send_probe` sends this sequencer a message to itself. `begin` is called at the start of
        each term, before a message is taken, to run the transactions that prepare the term.
        """
        self.engine = engine
        self.candidacy = candidacy
        self.crm = crm
        self.queue = queue
        self.lanes = lanes
        self._send_probe = send_probe
        self._begin = begin
        self.lost = False
        self.deposed: Term | None = None
        """The term of the silent leader that this process replaced last; None if there was none."""
        self._runner: TransactionRunner | None = None
        self._probed = 0.0
        self._probe_waits = False
        self._probing: threading.Thread | None = None
        self._compared = False

    @property
    def leads(self) -> bool:
        """True from the start of a term until this process gives up leadership."""
        return self._runner is not None

    @property
    def term(self) -> int:
        """The number of this process's term; 0 while it stands by."""
        return self._runner.term if self._runner else 0

    @property
    def runner(self) -> TransactionRunner:
        """The runner of fenced transactions. Raises `StaleTerm` unless this process leads."""
        if self._runner is None:
            raise StaleTerm(held=0, current=None)
        return self._runner

    @property
    def mark(self) -> str:
        """The number and the id of this process's term in one text; "0" while it stands by."""
        return Term(self._runner.term, self._runner.term_id).mark if self._runner else "0"

    def stand(self) -> Term | None:
        """Try to lead: return a new term if the lane's lock is free, otherwise None.

        If the holder of the lock shows no sign of life, its database session is terminated, so that
        a later try finds the lock free. Raises `CommitsWait` instead of leading or terminating
        while COMMITs wait for a synchronous standby.
        """
        term = self.candidacy.try_to_lead()
        self._compare_dialers(leads=term is not None)
        if term is None:
            sign = self.candidacy.sign()
            if sign is not None and sign.silent > SILENCE.total_seconds():
                if self.candidacy.commits_wait():
                    raise CommitsWait
                log.warning("deposing", term=sign.term.number, silent=round(sign.silent, 1))
                self.candidacy.depose()
                self.deposed = sign.term
            return None
        self._runner = TransactionRunner(
            self.engine,
            term=term.number,
            dialer=self.candidacy.dialer,
            crm=self.crm,
            term_id=term.id,
            lane=self.candidacy.lane,
            lanes=self.lanes,
        )
        TERM.set(term.number)
        return term

    def _compare_dialers(self, *, leads: bool) -> None:
        """Log a warning for each lane whose last leader had another dialer file than this process.

        A dialer file defines the dialer queues, their rules and the outcomes. The files are
        compared at the first try to lead, and when a term begins. `leads`: True if a term has just
        begun.
        """
        if not leads and self._compared:
            return
        if not leads:
            self.candidacy.compare()
        self._compared = True
        for line in self.candidacy.differing:
            log.warning("dialer_differs", why=line)

    def begin(self) -> bool:
        """Run the first transaction of a new term, before the first message is taken.

        The transaction is run by the function that the constructor got as its argument `begin`. In
        production, that function stores the first values of operational settings that have none
        yet. Returns True if the function succeeds. Returns False if the database is unavailable;
        the caller tries again later. Also returns False if the term is over; this process has then
        given up leadership (`overtaken`).
        """
        try:
            self._begin(self.runner)
        except DatabaseUnavailable as error:
            log.warning("term_not_begun", reason=str(error))
            return False
        except StaleTerm as error:
            self.overtaken(error)
            return False
        return True

    def lose(self) -> None:
        """Give up leadership because of a failure, and set `lost` to True.

        In an orderly stop, `resign` is called instead, and `lost` stays False.
        """
        self.lost = True
        self.resign()

    def resign(self) -> None:
        """Give up leadership and free the lane's lock at once.

        A transaction that is being retried fails.
        """
        if self._runner is not None:
            self._runner.revoke()
        self._runner = None
        TERM.set(0)
        self.candidacy.close()

    def overtaken(self, error: StaleTerm) -> None:
        """Record a race and give up leadership, because a transaction found that its term is over.

        `error` is that transaction's error. The race is of kind `stale_term`, or `term_begun_twice`
        if another process has begun a term with the same number. An error of a transaction that ran
        after this process had given up leadership is ignored.
        """
        if error.held == 0 or error.current is None:
            return
        kind = "term_begun_twice" if error.held == error.current else "stale_term"
        self._record_event(kind, done="rolled back", held=error.held, current=error.current)
        self.lose()

    def follows(self, last: str) -> None:
        """Check that this term's number is above that of the previous term; if not, record a race.

        `last` is the mark (number and id) of the previous leader's term, read from Redis. Term
        numbers only grow. So a previous number that is the same or higher shows that the database
        was replaced by an older copy of itself and has lost the latest terms. The name of the race
        is `term_begun_twice`.
        """
        number = int(last.partition(".")[0])
        if number >= self.term:
            self._record_event("term_begun_twice", done="went on", held=number, current=self.term)

    def _record_event(self, kind: str, **facts: object) -> None:
        """Commit and log the event of a race (conflict) between the processes of two terms.

        `kind`: the name of the race. `facts`: the details of the event, by name. The event's column
        `term` stays empty, because that column is for the term under which a change was made, and
        this event records no change.
        """
        race = raced(kind, host=self.candidacy.host, pid=self.candidacy.pid, **facts)
        with self.engine.begin() as connection:
            connection.execute(insert(Event).values(at=func.clock_timestamp(), **race))
        tell_race(race, term=self.term)

    def trouble_since(self, steady: float) -> str | None:
        """Return the reason for which the database refused transactions since `steady`, or None.

        `steady` is a time of the monotonic clock. None: no transaction has failed since then, one
        has succeeded since the last failure, or this process stands by.
        """
        return self._runner.trouble_since(steady) if self._runner else None

    def run_empty_transaction(self) -> None:
        """Run an empty transaction, which renews the leader's sign of life.

        This replaces the probe while the broker refuses writes. Failures are ignored.
        """
        with contextlib.suppress(DatabaseUnavailable, StaleTerm, DBAPIError):
            self.runner.run(lambda _: None)

    def probe_came(self) -> None:
        """Record that the probe, this sequencer's message to itself, was handled.

        The next probe may then be sent.
        """
        self._probe_waits = False

    def probe(self) -> None:
        """Send a probe message to the lane's assignment queue, at most every two seconds.

        A leader that gets no other message shows a sign of life by handling the probe. While a
        probe waits behind other messages, no second one is sent as long as transactions run,
        because the transactions of the other messages are signs of life, too.

        A thread sends the probe, because the worker must go on handling messages meanwhile: when
        the leading replica of a RabbitMQ queue is lost, a message to the queue is not confirmed for
        seconds. No second probe is sent before the first has been sent or has failed.
        """
        now = monotonic()
        is_sending = self._probing is not None and self._probing.is_alive()
        if is_sending or now - self._probed < PROBE_SECONDS:
            return
        # One probe behind many messages measures the delay; more would only increase it.
        if not (self._probe_waits and self.runner.ran_since(now - PROBE_SECONDS)):
            self._probed, self._probe_waits = now, True
            self._probing = threading.Thread(target=self._try_probe, name="probe", daemon=True)
            self._probing.start()

    def _try_probe(self) -> None:
        """Send a probe; if that fails, log a warning, or record that Redis refused the write.

        No error is raised. A leader that can send no probe, and gets no other message, shows no
        sign of life, so a standby takes the lead from it. While Redis refuses writes, the leader
        runs empty transactions in place of the probes (`run_empty_transaction`).
        """
        try:
            self._send_probe()
        except Exception as error:  # noqa: BLE001 - of the broker's client, whichever it is
            if (why := refused(error)) is None:
                log.warning("probe_not_sent", reason=one_line(error))
            else:
                WRITE_REFUSALS.note(why)
