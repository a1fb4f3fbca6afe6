"""The load of the replay: simulated agents, and their own records of the users whom they call.

The records (`Truth`) do not use the tables of the dialer, because these tables may be wrong.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from sqlalchemy import Engine, exists, select
from sqlalchemy.exc import SQLAlchemyError

from assignment_workers.dialers.claims import dialer
from assignment_workers.errors import AssignmentWorkersError
from assignment_workers.lab.incident.dialer import Contender, RecordNotFound
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import Phone

LEVEL_CHECK = timedelta(minutes=5)
HOURLY = timedelta(hours=1)
HOURLY_FROM = timedelta(minutes=10)
"""The simulated time from the start of a run to the first hourly job.

The simulated clock starts at 20 minutes past the hour, and the job runs at 30 minutes past
(original-dialer section 5).
"""
TALK_MEDIAN = timedelta(minutes=3)
TALK_SPREAD = 0.6
TALK_AT_MOST = timedelta(minutes=10)
PAUSE = timedelta(seconds=15)
"""The simulated time between the end of a call and the agent's next request."""
EMPTY_PAUSE = timedelta(seconds=30)
"""The simulated time from an answer 'empty' to the agent's next request."""
WALKS_AWAY = 0.02
"""The share of calls after which the agent closes the tab without telling the dialer."""
AWAY = timedelta(minutes=10)


@dataclass(frozen=True)
class LoadPlan:
    """The parameters of the load, such as the number of agents and the length of the run.

    The load is the same for every way to hand out users. Simulated time runs `speed` times as fast
    as real time.
    """

    agents: int
    seconds: float
    speed: float
    seed: int
    validation: timedelta
    """The median real time that the original dialer needs to check a user in another database."""

    @property
    def users(self) -> int:
        """The number of users: more than can be called, so that every answer 'empty' is wrong."""
        calls = self.agents * self.seconds * self.speed / TALK_MEDIAN.total_seconds()
        return round(1000 + 2 * calls)

    def wall(self, span: timedelta) -> float:
        """Return the real seconds that a span of simulated time takes."""
        return span.total_seconds() / self.speed


@dataclass
class Truth:
    """The agents' own records of who calls whom, independent of the dialer's tables."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    """Seconds from each request to its answer, including empty answers and errors."""
    errors: Counter[str] = field(default_factory=Counter)
    _talking: dict[int, set[int]] = field(default_factory=dict)
    _twice: set[int] = field(default_factory=set)

    def answered(self, what: str, seconds: float) -> None:
        """Record the result of a request, and the seconds from the request to its answer.

        `what` is the result: `assigned`, `empty`, `not_found` (the request raised
        `RecordNotFound`), or `failed` (it raised another error).
        """
        with self.lock:
            self.counts["requests"] += 1
            self.counts[what] += 1
            self.waits.append(seconds)

    def begins(self, agent: int, user: int) -> None:
        """Record that the agent was handed this user."""
        with self.lock:
            self._talking.setdefault(user, set()).add(agent)
            if len(self._talking[user]) > 1:
                self._twice.add(user)

    def ends(self, agent: int, user: int) -> None:
        """Record that the agent has finished with this user, or has gone away."""
        with self.lock:
            self._talking[user].discard(agent)

    def talked_to(self) -> list[int]:
        """Return the users whom at least one agent has now."""
        with self.lock:
            return [user for user, agents in self._talking.items() if agents]

    @property
    def held_twice(self) -> int:
        """The number of users whom two agents had at the same time."""
        return len(self._twice)


def run(dialer: Contender, plan: LoadPlan, looking: Engine) -> Truth:
    """Let simulated agents call users of this dialer while the dialer's jobs rebuild the queue.

    The run lasts for `plan.seconds` of real time. After that, the agents' own records of the run
    are returned. `looking` is an engine on the dialer's database. After each answer 'empty' and
    each error, an agent's thread uses the engine to check whether a user was waiting.
    """
    truth = Truth()
    stop = threading.Event()
    jobs = [
        _every(ScheduledJob(LEVEL_CHECK, LEVEL_CHECK, dialer.check_level), plan, truth, stop),
        _every(ScheduledJob(HOURLY_FROM, HOURLY, dialer.rebuild), plan, truth, stop),
    ]
    agents = [
        threading.Thread(
            target=_Agent(number, dialer, plan, truth, stop, looking).work,
            name=f"agent-{number}",
            daemon=True,
        )
        for number in range(1, plan.agents + 1)
    ]
    try:
        for thread in (*jobs, *agents):
            thread.start()
        stop.wait(plan.seconds)
    finally:
        stop.set()
        for thread in (*agents, *jobs):
            thread.join(60)
    return truth


@dataclass(frozen=True)
class ScheduledJob:
    """A job of the dialer, the time of its first run, and the interval between runs."""

    first: timedelta
    every: timedelta
    job: Callable[[], None]


def _every(
    schedule: ScheduledJob, plan: LoadPlan, truth: Truth, stop: threading.Event
) -> threading.Thread:
    """Return a thread that runs the job at its times until `stop` is set.

    If a run takes too long, the job skips the times that have passed.
    """

    def work() -> None:
        due = time.monotonic() + plan.wall(schedule.first)
        while not stop.wait(max(0.0, due - time.monotonic())):
            try:
                schedule.job()
            except (SQLAlchemyError, AssignmentWorkersError) as error:
                with truth.lock:
                    truth.errors[_named(error)] += 1
            while due <= time.monotonic():
                due += plan.wall(schedule.every)

    return threading.Thread(target=work, name="job", daemon=True)


@dataclass
class _Agent:
    number: int
    dialer: Contender
    plan: LoadPlan
    truth: Truth
    stop: threading.Event
    looking: Engine

    def work(self) -> None:
        chance = Random(f"{self.plan.seed} {self.number}")
        self.stop.wait(chance.random() * self.plan.wall(TALK_MEDIAN))
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                given = self.dialer.ask(self.number)
            except RecordNotFound:
                self.truth.answered("not_found", time.monotonic() - began)
                self._told_empty()
                continue
            except (SQLAlchemyError, AssignmentWorkersError) as error:
                self.truth.answered("failed", time.monotonic() - began)
                with self.truth.lock:
                    self.truth.errors[_named(error)] += 1
                self._told_empty()
                continue
            took = time.monotonic() - began
            if given is None:
                self.truth.answered("empty", took)
                self._told_empty()
                continue
            self.truth.begins(self.number, given.user_id)
            self.truth.answered("assigned", took)
            talk = TALK_MEDIAN * chance.lognormvariate(0, TALK_SPREAD)
            time.sleep(self.plan.wall(min(talk, TALK_AT_MOST)))
            self.truth.ends(self.number, given.user_id)
            if chance.random() < WALKS_AWAY:
                self.stop.wait(self.plan.wall(AWAY))
                continue
            if not self.dialer.finish(self.number, given):
                with self.truth.lock:
                    self.truth.counts["destroyed"] += 1
            self.stop.wait(self.plan.wall(PAUSE))

    def _told_empty(self) -> None:
        """Pause after the agent was shown 'empty', because of an empty answer or an error.

        Count the 'empty' as wrong if an eligible user was waiting.
        """
        if self._somebody_waits():
            with self.truth.lock:
                self.truth.counts["false_empty"] += 1
        self.stop.wait(self.plan.wall(EMPTY_PAUSE))

    def _somebody_waits(self) -> bool:
        """Return True if there is an eligible user whom no agent has now."""
        policy = dialer.policies["unsigned_users"]
        waiting = (
            select(UserCallScore.user_id)
            .join(CrmUser, CrmUser.id == UserCallScore.user_id)
            .outerjoin(Phone, Phone.user_id == UserCallScore.user_id)
            .where(policy.eligible(), UserCallScore.user_id.not_in(self.truth.talked_to()))
        )
        with self.looking.connect() as connection:
            found = connection.execute(select(exists(waiting)), {"now": datetime.now(UTC)})
            return bool(found.scalar_one())


def _named(error: Exception) -> str:
    orig = getattr(error, "orig", None)
    return type(orig or error).__name__
