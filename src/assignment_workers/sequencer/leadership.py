"""A Celery boot step: a worker consumes its lane's assignment queue only while it leads the lane.

A worker that does not lead stands by. To lead, it takes the lane's advisory lock in PostgreSQL and
begins a term. With Redis, it then puts back into the assignment queue the messages that earlier
leaders took and did not acknowledge. Only after that does it consume messages. If a leader's
connection to Redis is replaced, the leader puts back such messages again before it consumes any. It
then also puts back the messages that it took itself and did not acknowledge.

A thread watches the leader. If the leader has lost the lock, or no longer runs transactions, the
thread ends the process, and the process's supervisor starts it again as a standby.
"""

from __future__ import annotations

import contextlib
import os
import threading
from time import monotonic
from typing import Any

import psycopg
import structlog
from celery import bootsteps
from celery.worker import state
from psycopg.errors import LockNotAvailable, QueryCanceled
from redis.exceptions import ResponseError

from assignment_workers.schema.deadline import NoAnswer
from assignment_workers.sequencer.redis_refusals import WRITE_REFUSALS, refused
from assignment_workers.sequencer.sequencer import Sequencer
from assignment_workers.sequencer.suspects import Suspects
from assignment_workers.sequencer.term import SILENCE, CommitsWait, Sign
from assignment_workers.sequencer.transport import Consumption, OrderedChannel

log = structlog.get_logger()

TRY_SECONDS = 0.25
WATCH_SECONDS = 1.0
LOOKS = 4
"""The number of failed checks in a row after which the leader gives up. One check is made a second.

A check fails if the leader's last transaction is more than 8 seconds old. One failed check is not
enough, because this process or the database may only have paused. After a pause, the next
transaction makes the checks succeed again, and the process need not be restarted.
"""
EXCUSE_SECONDS = 1.0
"""The most seconds that this process, before it exits, waits for a last write to Redis.

The write records that the current message did not cause the exit.
"""
TOLD_SECONDS = 10.0
"""The minimum interval, in seconds, between two log lines with the same text.

Each of these lines gives the reason for which this process cannot lead now.
"""
LEAVE_SECONDS = 5.0
"""The most seconds that a process waits for its running task to end, after it lost leadership.

Then the process exits, even if the task is still running.
"""
IDLE_SECONDS = 1.0
"""The most seconds that a process that lost leadership waits for Celery to stop it.

After the loss, the process waits for three things, one after the other:

1. Its running task, if any, ends.
2. Celery stops the process in an orderly way. This wait takes at most `IDLE_SECONDS`.
3. A last write to Redis ends. The write records that the current message did not cause the exit.
   This wait takes at most `EXCUSE_SECONDS`.

The first two waits together take at most `LEAVE_SECONDS`, or half a second if PostgreSQL does not
answer. After the third wait, the process exits at once.
"""


class Leadership(bootsteps.StartStopStep):
    """A Celery boot step by which only one of several workers consumes the assignment queue.

    Needs the attributes `sequencer`, `suspects` and `consumption` of the Celery application.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.sequencer: Sequencer = consumer.app.sequencer
        self._suspects: Suspects = consumer.app.suspects
        self._consumption: Consumption = consumer.app.consumption
        self._timers: list[Any] = []
        self._watching = False
        self._told = "", 0.0
        self._begins = False
        """True from the start of a term until the messages that sequencers of other terms had taken
        are back in the assignment queue.
        """
        self._consumes = False
        """True once the messages that earlier sequencers had taken are back in the assignment
        queue. Only then are messages taken from it.
        """

    def start(self, consumer: Any) -> None:
        """Start the timers for a new broker connection, before any message is consumed.

        One timer tries four times a second to become the leader, until this process leads. With
        Redis, a leader then puts back taken messages that were not acknowledged, before it consumes
        any. Earlier leaders have taken such messages. If this process led already when its
        connection was replaced, this process has taken such messages too, through the earlier
        connection.

        The other timer acts once a second while the leader consumes. With Redis, it puts back the
        messages that an earlier leader took after the end of that leader's term. It also sends a
        probe, at most every two seconds.
        """
        # A leader goes on in the worker's loop: RabbitMQ delivers at once what waits, and only the
        # loop gives the consumer a handler.
        self._consumes = False
        consumer.cancel_task_queue(self.sequencer.queue)
        if self.sequencer.leads:
            consumer.timer.call_after(0, self._try, (consumer,))
        else:
            log.info("standing_by", queue=self.sequencer.queue)
        every = consumer.timer.call_repeatedly
        self._timers = [
            every(TRY_SECONDS, self._try, (consumer,)),
            every(WATCH_SECONDS, self._sweep, (consumer,)),
        ]

    def stop(self, consumer: Any) -> None:
        """Stop the timers that `start` started, when the broker connection or the worker ends.

        With Redis, also remove messages from the list of taken messages: those whose handling has
        ended and that are still in the list.
        """
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        channel = consumer.task_consumer.channel if consumer.task_consumer else None
        if isinstance(channel, OrderedChannel):
            with contextlib.suppress(*channel.connection_errors):
                channel.settle()

    def shutdown(self, consumer: Any) -> None:
        """Give up leadership in an orderly stop, so that a standby can lead at once."""
        self.stop(consumer)
        self.sequencer.resign()

    def _try(self, consumer: Any) -> None:
        if self.sequencer.leads:
            if not self._consumes:
                self._take_up(consumer)
            return
        try:
            term = self.sequencer.stand()
        except psycopg.Error as error:
            self._tell(str(error).strip())
            self.sequencer.candidacy.close()
            return
        if term is None:
            return
        log.info("leading", term=term.number, queue=self.sequencer.queue)
        self._begins = True
        self._take_up(consumer)
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="leadership", daemon=True).start()

    def _tell(self, why: str) -> None:
        """Log the reason why this process cannot lead now.

        If the reason stays the same, it is logged again only every ten seconds.
        """
        said, at = self._told
        if why != said or monotonic() - at > TOLD_SECONDS:
            log.warning("cannot_lead", reason=why)
            self._told = why, monotonic()

    def _take_up(self, consumer: Any) -> None:
        self._consumption.mark = self.sequencer.mark
        self._consumption.earlier.update(self.sequencer.candidacy.earlier)
        deposed = self.sequencer.deposed
        self._consumption.spared = deposed.mark if deposed else None
        self._consumes = False
        if self._begins and not self.sequencer.begin():
            return
        try:
            self._put_back(consumer, own=True, begins=self._begins)
            channel = consumer.task_consumer.channel
            if isinstance(channel, OrderedChannel):
                last = channel.take_up(self.sequencer.queue)
                if last is not None and self._begins:
                    self.sequencer.follows(last)
        except ResponseError as error:
            if (why := refused(error)) is None:
                raise
            WRITE_REFUSALS.note(why)
            return  # the next try may find that Redis accepts writes again
        self._begins = False
        consumer.add_task_queue(self.sequencer.queue)
        self._consumes = True

    def _put_back(self, consumer: Any, *, own: bool = False, begins: bool = False) -> None:
        channel = consumer.task_consumer.channel
        if isinstance(channel, OrderedChannel):
            count = channel.put_back(self.sequencer.queue, own=own, begins=begins)
            if count:
                log.info("put_back", messages=count, queue=self.sequencer.queue)

    def _sweep(self, consumer: Any) -> None:
        """Put back messages that a former leader took after its term was over, and send a probe.

        The messages go back to the assignment queue. A probe is a message of this sequencer to
        itself. A handled probe shows that the sequencer works.
        """
        if not self._consumes or consumer.task_consumer is None:
            return
        try:
            self._put_back(consumer)
        except ResponseError as error:
            if (why := refused(error)) is None:
                raise
            WRITE_REFUSALS.note(why)
        self.sequencer.probe()

    def _watch(self) -> None:
        """Check every second that this process still leads and works; if not, end the process.

        The first check that finds the leadership lost ends the process; a running task first gets
        at most five seconds to end. The process also ends if its last transaction is more than
        eight seconds old at four checks in a row. The checks run in a thread of their own, because
        the worker's event loop may hang.
        """
        pause = threading.Event()
        silent_looks = 0
        while not pause.wait(WATCH_SECONDS):
            try:
                held = self.sequencer.candidacy.holds_lock()
                sign = self.sequencer.candidacy.sign()
                is_excused = sign is not None and self._is_excused(sign)
            except psycopg.Error as error:
                if not self.sequencer.leads and not self.sequencer.lost:
                    return None  # resigned in an orderly way
                if isinstance(error, NoAnswer):
                    # The current transaction gets no answer either, so it cannot end in an orderly
                    # way.
                    return self._leave(f"the lock's connection: {error}", seconds=0.5)
                if isinstance(error, (QueryCanceled, LockNotAvailable)):
                    why = "the lane's row cannot be read, another session has locked the table"
                    return self._leave(f"{why}: {error}".strip())
                return self._leave(f"the connection that held the lock is gone: {error}".strip())
            if not held:
                return self._leave("the lock is gone")
            if sign is None or sign.term.mark != self.sequencer.mark:
                return self._leave("another leads")
            if is_excused:
                silent_looks = 0
                continue
            silent_looks = silent_looks + 1 if sign.silent > SILENCE.total_seconds() else 0
            if silent_looks >= LOOKS:
                return self._leave(f"no turn for {sign.silent:.0f} s: {self._cause(sign.silent)}")
        return None

    def _cause(self, silent: float) -> str:
        """Return the likely reason why this leader ran no transaction for `silent` seconds.

        The reason is a text for the log.
        """
        trouble = self.sequencer.trouble_since(monotonic() - silent)
        if trouble is not None:
            return f"the database refuses transactions: {trouble}"
        if task := next((each.name for each in list(state.active_requests)), None):
            return f"the message in hand, {task}, does not end"
        return "nothing comes from the broker"

    def _is_excused(self, sign: Sign) -> bool:
        """Return True if this process, the leader, is silent for a reason that excuses its silence.

        `sign`: the last sign of life of the lane's leader. A leader is silent if it shows no sign
        of life; each transaction is a sign of life. The silence is excused if a standby that led in
        place of this process would be silent too. There are two such reasons:

        - Redis has refused a write of this process in the last eight seconds, and the sign of life
          is more than four seconds old. While Redis refuses writes, this process cannot send itself
          a probe, the message whose handling is a sign of life. So this method runs an empty
          transaction in place of the probe. If that transaction succeeds, it is a new sign of life.
        - COMMITs wait for a synchronous replica of PostgreSQL, and the sign of life is more than
          eight seconds old. This method then runs no transaction; it only logs the reason.
        """
        limit = SILENCE.total_seconds()
        if sign.silent > limit / 2 and WRITE_REFUSALS.within(limit):
            # A broker that refuses writes carries no probe, but the leader is alive.
            self.sequencer.run_empty_transaction()
            return True
        if sign.silent > limit and self.sequencer.candidacy.commits_wait():
            self._tell(str(CommitsWait()))
            return True
        return False

    def _leave(self, why: str, *, seconds: float = LEAVE_SECONDS) -> None:
        log.error("leaving", term=self.sequencer.term, reason=why)
        self.sequencer.lose()
        state.should_stop = os.EX_TEMPFAIL  # type: ignore[assignment]
        excusing = threading.Thread(target=self._suspects.excuse, name="excuse", daemon=True)
        excusing.start()
        ends, pause = monotonic() + seconds, threading.Event()
        while state.active_requests and monotonic() < ends:
            pause.wait(0.05)
        pause.wait(max(0.0, min(IDLE_SECONDS, ends - monotonic())))
        excusing.join(EXCUSE_SECONDS)
        os._exit(os.EX_TEMPFAIL)
