"""Tasks of the maintenance queue: everything slow. Heartbeats have a queue of their own.

A change to the set of claimable users is sent to the assignment queue as a command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Annotated, Any, Literal, TypeVar

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import Engine, func, select

from assignment_workers.assignment import audit, jobs, phones, suppression_lists, user_ids
from assignment_workers.assignment.agents.heartbeats import beat
from assignment_workers.assignment.answer_counts import CountedHour
from assignment_workers.assignment.answer_counts import store as store_counts
from assignment_workers.assignment.answers import Code, HeartbeatAnswer, Refused
from assignment_workers.assignment.callbacks.missed_calls import match
from assignment_workers.assignment.calling import numbers_of, policies_of
from assignment_workers.assignment.crm import fact_views, mirror
from assignment_workers.assignment.generations import levels, purge
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.jobs import Counts, Job, Made, Ran, Work
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.pools import convert
from assignment_workers.assignment.pools.age import age_scores
from assignment_workers.assignment.pools.discover import discover, reconcile
from assignment_workers.assignment.reports import doctor
from assignment_workers.assignment.settings_versions import current, version_of
from assignment_workers.errors import no_queue
from assignment_workers.identity import UserId
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.retry import patiently
from assignment_workers.settings import Settings
from assignment_workers.tasks.arguments import MANY, AgentId, Word
from assignment_workers.tasks.task_handler import App, TaskRun, one_line, task_handler

log = structlog.get_logger()

T = TypeVar("T")

Trigger = Literal["hourly", "level", "hand", "settings"]

PATIENCE = timedelta(seconds=30)
"""The time for which a job is retried: longer than a restart of a database server takes."""

DAYS_MADE_UP_FOR = 7
"""The greatest number of days, including today, for which one run of `age` raises scores.

Each user's score rises once a week, on the weekday on which the user's score row was created. So
seven days include each user's weekday exactly once. Missed days before these seven are left out.
"""


def regenerate_queue(run: TaskRun, queue: Word | None = None, trigger: Trigger = "hand") -> Any:
    """Build a new generation of one dialer queue, or of each, and send the command to publish it.

    Returns, per dialer queue, the generation's number and size, or why the build was skipped.
    `queue` None: every dialer queue. `trigger`: the cause of the build, such as `hourly`; it is
    stored with the run of the job and with the generation.
    """
    queues = list(run.of.dialer.policies)
    if queue is not None and queue not in queues:
        return Refused(
            code=Code.UNKNOWN_QUEUE,
            reason=no_queue(queue, queues),
        )
    names = [queue] if queue else queues
    return {name: _build(run, name, trigger) for name in names}


def _build(run: TaskRun, queue: str, trigger: Trigger) -> dict[str, Any]:
    engine = run.of.engine

    def work(given: Work) -> Counts:
        settings = _in_force(run, given)
        number, size = regenerate(
            given,
            run.of.dialer,
            run.of.crm,
            policies_of(run.of.dialer, settings)[queue],
            trigger=trigger,
            settings_version=version_of(settings),
        )
        return {"generation": number, "size": size}

    slot = _hour(engine) if trigger == "hourly" else None
    job = Job("queue.regenerate", trigger, queue=queue, slot=slot, task_id=run.request.id)
    ran = _run(run, job, work)
    if ran.skipped is None:
        send_publish(run.of, ran.counts["generation"], queue)
    return {"skipped": ran.skipped} if ran.skipped else dict(ran.counts)


def send_publish(app: App, generation: int, dialer_queue: str) -> None:
    """Send the command to publish generation number `generation` of `dialer_queue`.

    If the command is lost, the job `tend` sends it again.
    """
    queue = app.lanes.way_to(dialer_queue)
    app.send_task("generation.publish", [generation], queue=queue, ignore_result=True)


def check_levels(run: TaskRun) -> Any:
    """Rebuild each dialer queue that has too few claimable users and was not built recently."""

    def work(given: Work) -> Made[list[str]]:
        settings = _in_force(run, given)
        low = levels.low(given.connection, list(run.of.dialer.policies), settings=settings)
        return Made({"low": len(low)}, low)

    job = _job_of(run, "queue.check_levels")
    ran, low = _patiently(lambda: jobs.run_for(run.of.engine, job, work))
    built = {queue: _build(run, queue, "level") for queue in low or []}
    return _as_dict(ran) | {"built": built}


def tend(run: TaskRun) -> Any:
    """Send the publish command again for each generation that is built but not published.

    Also drops the rows of failed generations, of generations that were replaced longer ago than the
    setting `generation_retention`, and of retired lists of numbers that must not be called.
    """

    def work(given: Work) -> Counts:
        waiting = levels.unpublished(given.connection)
        for number, queue in waiting.items():
            send_publish(run.of, number, queue)
        return {"publications": len(waiting)}

    ran = _as_dict(_job(run, "generation.tend", work))
    if "skipped" in ran:
        return ran
    # Not in the job's transaction: a detachment waits for every older snapshot, also its own.
    autocommit = run.of.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with autocommit as connection:
        purged = purge.purge_generations(connection, settings=run.of.settings)
        lists = suppression_lists.purge_lists(connection)
    counts = {"purged" if name == "generations" else name: n for name, n in purged.items()}
    counts["purged_lists"] = lists
    return ran | counts


def heartbeats(run: TaskRun, requests: Annotated[list[Any], Field(max_length=MANY)]) -> list[Any]:
    """Store many agents' heartbeats in one transaction. Each answer has the agent's state.

    A heartbeat counts from the time at which the agent sent it, even if the message arrives late.
    """
    read: list[HeartbeatMessage | Refused] = []
    for each in requests:
        try:
            read.append(_HEARTBEAT.validate_python(each))
        except ValidationError as error:
            read.append(Refused(code=Code.MALFORMED, reason=one_line(error)))
    beats: dict[int, datetime | None] = {}
    for body in read:
        if isinstance(body, HeartbeatMessage):
            beats[body.agent_id] = body.sent_at

    def work() -> dict[int, HeartbeatAnswer]:
        with run.of.engine.begin() as connection:
            return beat(connection, beats, dialer=run.of.dialer, settings=run.of.settings)

    kept = patiently(work, seconds=PATIENCE.total_seconds())
    return [body if isinstance(body, Refused) else kept[body.agent_id] for body in read]


class HeartbeatMessage(BaseModel):
    """One agent's heartbeat in a batch message."""

    model_config = ConfigDict(extra="forbid")

    agent_id: AgentId
    sent_at: AwareDatetime | None = None
    deadline: AwareDatetime | None = None


_HEARTBEAT = TypeAdapter(HeartbeatMessage)


def count_answers(
    run: TaskRun, hours: Annotated[list[CountedHour], Field(max_length=MANY)]
) -> None:
    """Add a Python client's counts of answers to the counts in the database.

    There are Python clients that call the gateway over HTTP, and Python clients that send Celery
    messages without the gateway. Each client of the second kind counts the answers to its requests
    for users, and sends the counts once a minute. The service levels are computed from these
    counts. `hours`: an element for each hour and kind of answer, such as `assigned`, with the
    number of these answers in each minute of the hour.
    """

    def work() -> None:
        with run.of.engine.begin() as connection:
            store_counts(connection, hours)

    patiently(work, seconds=PATIENCE.total_seconds())


def tend_agents(run: TaskRun) -> Any:
    """Send the command that ends the sessions of agents who have been silent for hours."""

    def work(given: Work) -> Counts:
        found = agent_status.silent(given.connection, given.now)
        if found:
            said = {"agent_ids": found, "silent_at": given.now.isoformat()}
            run.of.send_task(
                "agent.end_sessions", kwargs=said, queue="assignment", ignore_result=True
            )
        return {"silent": len(found)}

    return _as_dict(_job(run, "agent.tend", work))


def match_missed_calls(run: TaskRun) -> Any:
    """Find the user of each missed call that has no user yet, by the caller's phone number.

    If the number is invalid, or is the number of no user or of several, the call is left to an
    operator.
    """

    def work(given: Work) -> Counts:
        return match(given, run.of.dialer, run.of.crm, run.of.settings)

    return _as_dict(_job(run, "missed_calls.match", work))


def read_phones(run: TaskRun) -> Any:
    """Parse users' phone numbers that are new or have changed, and store them in E.164 form."""

    def work(given: Work) -> Counts:
        return phones.read(given, numbers_of(run.of.settings))

    return _as_dict(_job(run, "phones.read", work))


def mirror_crm(run: TaskRun) -> Any:
    """Update the mirror, the copy of an external CRM's facts in our database.

    If no external CRM is configured any more, only delete the record of the mirror's last update.
    """
    crm = run.of.crm
    if crm is None:
        with run.of.engine.begin() as connection:
            mirror.forget(connection)
        return {}
    reading = partial(mirror.read_whole, dialer=run.of.dialer, crm=crm)
    return _as_dict(_job(run, mirror.READING, reading))


def clean_conversions(run: TaskRun) -> Any:
    """Find the users who have reached a dialer queue's goal; send commands that remove them."""

    def work(given: Work) -> Counts:
        mirror.freshen(run.of.engine, run.of.dialer, run.of.crm)
        return {queue: _send_converted(run, given, queue) for queue in run.of.dialer.policies}

    return _as_dict(_job(run, "queue.clean_conversions", work))


def _send_converted(run: TaskRun, given: Work, queue: str) -> int:
    after = count = 0
    policy = _policies(run, given)[queue]
    while users := convert.converted(given.connection, policy, after=after, now=given.now):
        run.of.send_task(
            "queue.remove_converted",
            [queue, _own_ids(run, users)],
            queue=run.of.lanes.way_to(queue),
            ignore_result=True,
        )
        count += len(users)
        after = users[-1]
    return count


def _policies(run: TaskRun, given: Work) -> Mapping[str, Policy]:
    """Return the policy of each dialer queue under the operational settings in force.

    The settings are read in the transaction of the job; `given` has its connection.
    """
    return policies_of(run.of.dialer, _in_force(run, given))


def _in_force(run: TaskRun, given: Work) -> Settings:
    """Return this process's settings with the operational settings that are in force now.

    An operator may have changed the operational settings since this process started, so they are
    read from the database, in the transaction of the job. `given` has the job's connection.
    """
    return current(given.connection, run.of.dialer, run.of.settings)


def discover_new(run: TaskRun) -> Any:
    """Add the users who are new in the CRM to the dialer queues where they belong.

    The job also reads the new rows of some CRM tables other than that of users. The dialer file
    lists these CRM tables as `news`. A new row there may show that a known user now belongs to
    another dialer queue. If so, the job sends the command `user.place`, which moves the user. In
    the packaged dialer, such a row is a new requirement: a document or fact that a user's demand
    against a lender still needs.
    """
    send = partial(_send_for_place, run)

    def work(given: Work) -> Counts:
        fact_views.prepare(given.side_connection, run.of.dialer, run.of.settings)
        policies = _policies(run, given)
        return discover(given, run.of.dialer, run.of.crm, policies, send, randomness=Random())

    return _as_dict(_job(run, "queue.discover", work))


def reconcile_pools(run: TaskRun) -> Any:
    """Find users who are not in the dialer queue where they belong; send commands to move them."""
    send = partial(_send_for_place, run)

    def work(given: Work) -> Counts:
        mirror.freshen(run.of.engine, run.of.dialer, run.of.crm)
        return reconcile(given, run.of.dialer, run.of.crm, _policies(run, given), send)

    return _as_dict(_job(run, "queue.reconcile", work))


def _send_for_place(run: TaskRun, users: list[int]) -> None:
    said = [_own_ids(run, users)]
    run.of.send_task("user.place", said, queue="assignment", ignore_result=True)


def _own_ids(run: TaskRun, users: Sequence[int]) -> list[UserId]:
    found = user_ids.own(run.of.dialer, run.of.engine, users)
    return [found[each] for each in users]


def examine(run: TaskRun) -> Any:
    """Check all guarantees against the tables, as `doctor` does, and store the findings."""

    def work(given: Work) -> Counts:
        with run.of.engine.connect() as connection:
            findings = user_ids.shown(
                run.of.dialer, connection, doctor.examine(connection, run.of.dialer)
            )
        doctor.store(given.connection, findings)
        broken = [each for each in findings if not each.ok]
        for each in broken:
            log.error(
                "guarantee_broken", check=each.check, guarantee=each.guarantee, count=each.count
            )
        return {"checks": len(findings), "broken": len(broken)}

    return _as_dict(_job(run, "doctor.examine", work))


def extend_audit(run: TaskRun) -> Any:
    """Append the digests of new events to the audit chain, which reveals later changes of events.

    Returns counts, such as `events`, the number of appended events. No run of this job is recorded,
    because the appended batches of digests are a record of it.
    """

    def work() -> Counts:
        with run.of.engine.connect() as connection:
            return audit.extend(connection)

    return patiently(work, seconds=PATIENCE.total_seconds())


def clean_daily(run: TaskRun) -> Any:
    """Delete rows older than their retention, such as answers, job runs, events and dead letters.

    Typed texts and phone numbers are deleted after a retention of their own. The job never
    deactivates a user and never deletes a row that another row refers to (docs/hazards.md, D2 and
    D3).
    """

    def work(given: Work) -> Counts:
        audit.extend(
            given.side_connection
        )  # events outside the audit chain are not deleted, whatever beat has run
        return purge.prune_history(given.connection, settings=run.of.settings)

    day = _day(run.of.engine)
    return _as_dict(_job(run, "queue.clean_daily", work, slot=day))


def age(run: TaskRun) -> Any:
    """Raise the scores of users whose weekly rise is due, for today and for each missed day.

    A user's score rises on the weekday on which the user's score row was created. No score rises
    twice for one day. In the packaged dialer, users with lower scores are called first, so users
    who wait longer are called later. This is intended, as in the original dialer
    (docs/original-dialer.md, section 4). Returns the result of each day, by its date.
    """
    engine = run.of.engine
    today = _day(engine)
    with engine.connect() as connection:
        last = jobs.last_slot(connection, "scores.age")
    day = (
        max(last + timedelta(days=1), today - timedelta(days=DAYS_MADE_UP_FOR - 1))
        if last
        else today
    )
    told: dict[str, Any] = {}
    while day <= today:
        told[day.date().isoformat()] = _as_dict(_job(run, "scores.age", _aging(run, day), slot=day))
        day += timedelta(days=1)
    return told


def _aging(run: TaskRun, day: datetime) -> Callable[[Work], Counts]:
    return lambda given: age_scores(given, day, run.of.dialer.policies.values())


def _job(
    run: TaskRun, name: str, work: Callable[[Work], Counts], *, slot: datetime | None = None
) -> Ran:
    return _run(run, _job_of(run, name, slot=slot), work)


def _job_of(run: TaskRun, name: str, *, slot: datetime | None = None) -> Job:
    trigger = "beat" if run.request.root_id == run.request.id else "hand"
    return Job(name, trigger, slot=slot, task_id=run.request.id)


def _run(run: TaskRun, job: Job, work: Callable[[Work], Counts]) -> Ran:
    return _patiently(lambda: jobs.run(run.of.engine, job, work))


def _patiently(run: Callable[[], T]) -> T:
    """Run a job; after a transient failure of the database, run it again from its start.

    An attempt that reaches the database is recorded as a job run. Raises `DatabaseUnavailable` if
    no attempt within `PATIENCE` succeeds; the next scheduled run then does the work.
    """
    return patiently(run, seconds=PATIENCE.total_seconds())


def _as_dict(ran: Ran) -> dict[str, Any]:
    return {"skipped": ran.skipped} if ran.skipped else dict(ran.counts)


def _hour(engine: Engine) -> datetime:
    return _now(engine).replace(minute=0, second=0, microsecond=0)


def _day(engine: Engine) -> datetime:
    return _hour(engine).replace(hour=0)


def _now(engine: Engine) -> datetime:
    with engine.connect() as connection:
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def register(app: App) -> None:
    """Add the tasks of the maintenance queue to `app`."""
    task_handler(app, "queue.regenerate", regenerate_queue)
    task_handler(app, "queue.check_levels", check_levels, routine=True)
    task_handler(app, "generation.tend", tend, routine=True)
    task_handler(app, "missed_calls.match", match_missed_calls, routine=True)
    # Dozens are sent each second: Flower would list little else.
    task_handler(app, "agent.heartbeats", heartbeats, in_flower=False)
    task_handler(app, "agent.tend", tend_agents, routine=True)
    task_handler(app, mirror.READING, mirror_crm, routine=True)
    task_handler(app, "phones.read", read_phones, routine=True)
    task_handler(app, "queue.clean_conversions", clean_conversions, routine=True)
    task_handler(app, "queue.discover", discover_new, routine=True)
    task_handler(app, "queue.reconcile", reconcile_pools, routine=True)
    # Three are sent a minute: Flower would list little else in a quiet hour.
    task_handler(app, "audit.extend", extend_audit, in_flower=False)
    # Each client sends one a minute.
    task_handler(app, "history.count_answers", count_answers, in_flower=False)
    task_handler(app, "queue.clean_daily", clean_daily)
    task_handler(app, "scores.age", age)
    task_handler(app, "doctor.examine", examine, routine=True)
