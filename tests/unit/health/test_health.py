"""The judgement: each failure names its component, and only causes are called causes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from assignment_workers.assignment.lanes import Lanes
from assignment_workers.assignment.reports.status import Leader, SequencerStatus
from assignment_workers.health.judgement import ASKED, REBUILT, Installation, judge
from assignment_workers.health.model import Health, HealthState, JobState
from assignment_workers.health.readings import (
    NO_ANSWER,
    BrokerFacts,
    CertificateFacts,
    DatabaseFacts,
    InputReading,
    JobFacts,
    Planned,
    QueuedMessages,
    QueueFacts,
    Readings,
    ResultsFacts,
)
from assignment_workers.health.runbooks import runbooks
from assignment_workers.health.signs import AnswerCounts, SeenSign

AT = datetime(2026, 11, 28, 9, 5, tzinfo=UTC)
ROLES = ("sequencer", "sequencer", "maintenance", "beat", "gateway", "flower")


def sign(role: str, pid: int, *, silent: float = 0.5, age: float = 3600.0, **more: Any) -> SeenSign:
    seen = AT - timedelta(seconds=silent)
    facts: dict[str, Any] = {"role": role, "host": "a", "pid": pid, "version": "1"}
    return SeenSign(
        **facts | more, since=seen - timedelta(seconds=age), seen_at=seen, silent_seconds=silent
    )


SIGNS = [
    sign(role, pid, leads=pid == 1, answers=AnswerCounts(asked=9) if role == "gateway" else None)
    for pid, role in enumerate(ROLES, 1)
]
LED = SequencerStatus(
    lane="default",
    queues=["unsigned_users"],
    term=3,
    leader=Leader(pid=1, host="a", since=AT - timedelta(hours=1)),
    standbys=1,
    silent_seconds=1.0,
    probe_seconds=0.004,
)
JOB = JobFacts(
    job="queue.regenerate",
    queue="unsigned_users",
    begun_at=AT - timedelta(minutes=35),
    ran_at=AT - timedelta(minutes=35),
    status="succeeded",
    error=None,
    succeeded_at=AT - timedelta(minutes=35),
)
PLANNED = Planned("queue.regenerate", AT - timedelta(minutes=35), AT + timedelta(minutes=25))
DATABASE = DatabaseFacts(
    now=AT,
    read_only=False,
    lanes=[LED],
    queues=[QueueFacts("unsigned_users", None, AT - timedelta(minutes=30))],
    jobs=[JOB],
    token_expires_at=None,
    token_expires_soon_at=None,
    audit_lag=timedelta(seconds=20),
    crm_trouble=None,
)
BROKER = BrokerFacts([QueuedMessages("assignment", 0), QueuedMessages("maintenance", 0)])
RESULTS = ResultsFacts(now=AT, signs=SIGNS, schedule=[PLANNED])
GOOD = Readings(AT, InputReading(DATABASE), InputReading(BROKER), InputReading(RESULTS))
FAILED: InputReading[Any] = InputReading(trouble=NO_ANSWER)


def health(readings: Readings, **installed: Any) -> Health:
    return judge(readings, Installation(**installed))


def of_database(**facts: Any) -> Readings:
    return replace(GOOD, database=InputReading(replace(DATABASE, **facts)))


def of_results(**facts: Any) -> Readings:
    return replace(GOOD, results=InputReading(replace(RESULTS, **facts)))


def of_broker(**facts: Any) -> Readings:
    return replace(GOOD, broker=InputReading(replace(BROKER, **facts)))


def of_signs(change: Callable[[SeenSign], SeenSign | None], *more: SeenSign) -> Readings:
    """`change` returns None for a sign that is not there."""
    changed = [found for each in SIGNS if (found := change(each)) is not None]
    return of_results(signs=[*changed, *more])


def silenced(role: str, *pids: int) -> Callable[[SeenSign], SeenSign]:
    """The processes of the role fell silent; with pids, these alone."""

    def change(each: SeenSign) -> SeenSign:
        is_meant = each.role == role and (not pids or each.pid in pids)
        return sign(role, each.pid, silent=20, leads=each.leads) if is_meant else each

    return change


def waiting(name: str, seconds: float) -> Readings:
    sent = AT - timedelta(seconds=seconds)
    return of_broker(queues=[QueuedMessages(name, 3, "assignment.request_many", "x", sent)])


def answered(asked: int, unavailable: int, recent: int, recent_unavailable: int) -> Readings:
    counts = AnswerCounts(
        asked=asked,
        unavailable=unavailable,
        recent_asked=recent,
        recent_unavailable=recent_unavailable,
    )
    return of_signs(
        lambda each: each.model_copy(update={"answers": counts}) if each.role == "gateway" else each
    )


def certified(begins: float | None, expires: float | None, trouble: str | None) -> Readings:
    """A certificate that began so many days ago and expires in so many, beside a good one."""
    ago, left = (None if each is None else timedelta(days=each) for each in (begins, expires))
    found = CertificateFacts(
        "the certificate of Redis",
        None if ago is None else AT - ago,
        None if left is None else AT + left,
        trouble,
    )
    good = CertificateFacts(
        "sslcert for PostgreSQL", AT - timedelta(days=1), AT + timedelta(days=90)
    )
    return replace(GOOD, certificates=InputReading([good, found]))


DEGRADED, DOWN, UNKNOWN = HealthState.DEGRADED, HealthState.DOWN, HealthState.UNKNOWN
TABLE: list[tuple[str, Readings, str, HealthState, HealthState]] = [
    ("PostgreSQL is frozen", replace(GOOD, database=FAILED), "postgresql", DOWN, DOWN),
    ("PostgreSQL is read-only", of_database(read_only=True), "postgresql", DOWN, DOWN),
    ("the broker is frozen", replace(GOOD, broker=FAILED), "broker", DOWN, DOWN),
    ("the broker is full", of_broker(refuses="is full"), "broker", DOWN, DOWN),
    ("Redis is frozen", replace(GOOD, broker=FAILED, results=FAILED), "broker", DOWN, DOWN),
    ("results are frozen", replace(GOOD, results=FAILED), "results", DOWN, DOWN),
    ("the CRM has no users", of_database(crm_trouble="no such table"), "crm", DOWN, DOWN),
    (
        "nobody leads",
        of_database(lanes=[LED.model_copy(update={"leader": None})]),
        "leader",
        DOWN,
        DOWN,
    ),
    (
        "the leader is frozen",
        of_database(
            lanes=[
                LED.model_copy(
                    update={"leader": None, "silent_leader": LED.leader, "silent_seconds": 5.0}
                )
            ]
        ),
        "leader",
        DOWN,
        DOWN,
    ),
    (
        "the leader's sign is old, and so is its turn",
        replace(
            of_signs(silenced("sequencer", 1)),
            database=of_database(lanes=[LED.model_copy(update={"silent_seconds": 3.0})]).database,
        ),
        "leader",
        DOWN,
        DOWN,
    ),
    ("a message waits", waiting("assignment", 30), "leader", DEGRADED, DEGRADED),
    ("a job waits", waiting("maintenance", 300), "maintenance", DEGRADED, DEGRADED),
    ("a standby fell silent", of_signs(silenced("sequencer", 2)), "standbys", DEGRADED, DEGRADED),
    ("maintenance is frozen", of_signs(silenced("maintenance")), "maintenance", DOWN, DEGRADED),
    ("beat is frozen", of_signs(silenced("beat")), "beat", DOWN, DEGRADED),
    ("Flower is frozen", of_signs(silenced("flower")), "flower", DOWN, DEGRADED),
    ("all gateways are frozen", of_signs(silenced("gateway")), "gateways", DOWN, DOWN),
    (
        "one gateway of two is frozen",
        of_signs(lambda each: each, sign("gateway", 99, silent=20)),
        "gateways",
        DEGRADED,
        DEGRADED,
    ),
    (
        "beat never ran",
        of_signs(lambda each: None if each.role == "beat" else each),
        "beat",
        DOWN,
        DEGRADED,
    ),
    ("some calls were unavailable", answered(40, 12, 10, 0), "answers", DEGRADED, DEGRADED),
    ("all calls are unavailable", answered(45, 45, 12, 12), "answers", DOWN, DOWN),
    (
        "a task is overdue",
        of_results(schedule=[replace(PLANNED, due_at=AT - timedelta(seconds=30))]),
        "beat",
        DEGRADED,
        DEGRADED,
    ),
    (
        "a queue was never built",
        of_database(queues=[QueueFacts("unsigned_users", None, None)]),
        "queue:unsigned_users",
        DEGRADED,
        DEGRADED,
    ),
    (
        "a queue is old",
        of_database(
            queues=[QueueFacts("unsigned_users", None, AT - REBUILT - timedelta(minutes=1))]
        ),
        "queue:unsigned_users",
        DEGRADED,
        DEGRADED,
    ),
    *(
        (
            f"a certificate {title}",
            certified(begins, expires, trouble),
            "certificates",
            DEGRADED,
            DEGRADED,
        )
        for title, begins, expires, trouble in (
            ("expires soon", 90, 13, None),
            ("of a short life expires soon", 4, 1, None),
            ("has expired", 90, -0.1, None),
            ("is of tomorrow", -1, 90, None),
            ("cannot be read", None, None, "is in a file that cannot be read"),
        )
    ),
    (
        "a token expires soon",
        of_database(token_expires_soon_at=AT + timedelta(days=2)),
        "tokens",
        DEGRADED,
        DEGRADED,
    ),
    (
        "a token that is used has expired",
        of_database(token_expires_soon_at=AT - timedelta(hours=2)),
        "tokens",
        DEGRADED,
        DEGRADED,
    ),
    ("the audit is late", of_database(audit_lag=timedelta(minutes=6)), "audit", DEGRADED, DEGRADED),
    (
        "a job failed",
        of_database(jobs=[replace(JOB, status="failed", error="Boom")]),
        "job:queue.regenerate:unsigned_users",
        DEGRADED,
        DEGRADED,
    ),
]


@pytest.mark.parametrize(
    ("readings", "component", "state", "whole"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_each_failure_names_its_component(
    readings: Readings, component: str, state: HealthState, whole: HealthState
) -> None:
    found = health(readings)
    named = found.of(component)
    assert named is not None
    assert (named.state, found.state) == (state, whole)
    assert found.banner is not None
    assert found.banner.component == component
    assert found.agents_are_served == (whole is not DOWN)
    assert named.title in found.verdict


def test_when_all_is_good_there_is_no_banner() -> None:
    found = health(GOOD)
    assert [each for each in found.components if each.state is not HealthState.GOOD] == []
    assert found.state is HealthState.GOOD
    assert found.banner is None
    assert found.agents_are_served


@pytest.mark.parametrize("left", [False, True], ids=["", "sequencers_left"])
@pytest.mark.parametrize("failing", list(product([False, True], repeat=3)))
def test_a_consequence_is_never_called_a_cause(
    failing: tuple[bool, bool, bool], left: bool
) -> None:
    """Whichever servers are frozen, the banner is of one, and nobody is told to start a process.

    `left`: the sequencers have ended because of it, as they do after some seconds.
    """
    names = ("database", "broker", "results")
    failed: dict[str, Any] = {
        name: FAILED for name, fails in zip(names, failing, strict=True) if fails
    }
    readings = of_signs(silenced("sequencer")) if left and any(failing[:2]) else GOOD
    found = health(replace(readings, **failed))
    down = {each.name for each in found.components if each.state is DOWN}
    of = {"database": "postgresql", "broker": "broker", "results": "results"}
    assert down == {of[name] for name in failed}
    for each in found.wrong:
        if each.name not in down:
            assert each.state is UNKNOWN
            assert "Mend" in each.first_step
    assert (found.banner is None) == (not failed)


def test_every_component_that_is_not_good_tells_what_to_do_and_its_runbook_exists() -> None:
    told = [each for _, readings, *_ in TABLE for each in health(readings).wrong]
    assert len({each.name for each in told}) > 12
    for each in told:
        assert each.finding, each
        assert each.first_step, each
        assert each.meaning or each.state is UNKNOWN, each
        assert each.runbook in runbooks(), each


def test_a_silent_leader_is_no_lost_standby_and_leads_nothing() -> None:
    led = LED.model_copy(
        update={"leader": None, "silent_leader": LED.leader, "silent_seconds": 20.0}
    )
    found = health(
        replace(of_signs(silenced("sequencer", 1)), database=of_database(lanes=[led]).database)
    )
    assert [each.name for each in found.wrong] == ["leader"]
    assert [each.leads for each in found.processes if each.pid == 1] == [False]


def test_a_process_that_was_started_again_is_not_missed() -> None:
    """The supervisor's new process has another pid; two silent ones need two."""
    new = sign("maintenance", 77, age=10)
    assert health(of_signs(silenced("maintenance"), new)).state is HealthState.GOOD
    other = sign("maintenance", 78, silent=20)
    found = health(of_signs(silenced("maintenance"), new, other)).of("maintenance")
    assert found is not None
    assert (found.state, found.finding) == (DEGRADED, "1 of 2 silent")


@pytest.mark.parametrize("age", [1.0, 3600.0])
def test_a_silent_process_does_not_replace_itself(age: float) -> None:
    silent = sign("beat", 50, silent=20, age=age)
    found = health(of_signs(lambda each: None if each.role == "beat" else each, silent)).of("beat")
    assert found is not None
    assert found.state is DOWN


def test_a_process_that_ended_in_order_is_not_missed_where_others_do_its_work() -> None:
    ended = sign("sequencer", 60, silent=300, ended=True)
    assert health(of_signs(lambda each: each, ended)).state is HealthState.GOOD


@pytest.mark.parametrize(
    ("job", "asked", "due", "state"),
    [
        ({}, timedelta(minutes=35), timedelta(minutes=25), JobState.SUCCEEDED),
        ({}, ASKED / 2, timedelta(minutes=60), JobState.ASKED),
        ({}, ASKED * 2, timedelta(minutes=60), JobState.LATE),
        ({}, timedelta(hours=2), -ASKED * 2, JobState.LATE),
        ({"status": "failed", "error": "x"}, timedelta(hours=1), ASKED, JobState.FAILED),
        ({"status": "running"}, timedelta(hours=1), ASKED, JobState.RUNNING),
        (
            {"status": "running", "ran_at": AT - timedelta(minutes=61)},
            timedelta(hours=2),
            ASKED,
            JobState.LATE,
        ),
    ],
)
def test_only_a_job_that_ran_is_done(
    job: dict[str, Any], asked: timedelta, due: timedelta, state: JobState
) -> None:
    readings = replace(
        of_database(jobs=[replace(JOB, **job)]),
        results=of_results(schedule=[Planned("queue.regenerate", AT - asked, AT + due)]).results,
    )
    (found,) = health(readings).jobs
    assert found.state is state


def test_what_expires_is_good_until_it_is_late() -> None:
    """A life that is short by choice is not late from its first day."""
    for begins, expires in ((1, 89), (0.5, 5.5), (76, 14.1)):
        found = health(certified(begins, expires, None))
        assert found.state is HealthState.GOOD, (begins, expires)
        assert [each.title for each in found.certificates] == [
            "sslcert for PostgreSQL",
            "the certificate of Redis",
        ]
    assert health(GOOD).of("certificates") is None


def test_a_job_whose_worker_is_frozen_does_not_run() -> None:
    job = replace(JOB, status="running", ran_at=AT - timedelta(seconds=20))
    good, frozen = of_database(jobs=[job]), of_signs(silenced("maintenance"))
    assert [each.state for each in health(good).jobs] == [JobState.RUNNING]
    found = health(replace(good, results=frozen.results))
    assert [each.state for each in found.jobs] == [JobState.LATE]
    assert found.banner is not None
    assert found.banner.component == "maintenance"


def test_each_lane_has_its_own_leader() -> None:
    lanes = Lanes({"outstanding_requests": "outstanding"})
    other = LED.model_copy(update={"lane": "outstanding", "leader": None})
    found = health(of_database(lanes=[LED, other]), lanes=lanes)
    states = {each.name: each.state for each in found.components if each.name.startswith("leader")}
    assert states == {"leader": HealthState.GOOD, "leader:outstanding": DOWN}
    assert found.state is DOWN


def test_an_external_crm_is_judged_without_postgresql() -> None:
    answers = health(replace(GOOD, database=FAILED, crm=InputReading(None)), external_crm=True)
    away = health(replace(GOOD, crm=InputReading("no answer")), external_crm=True)
    assert answers.of("crm") is not None
    assert [each.state for each in (answers.of("crm"), away.of("crm")) if each] == [
        HealthState.GOOD,
        DOWN,
    ]


@pytest.mark.parametrize(
    ("grace", "age", "state"),
    [(None, 1, DOWN), (60, None, DOWN), (60, 61, DOWN), (60, 59, DEGRADED)],
)
def test_a_mirror_within_the_grace_serves_agents_while_the_crm_is_away(
    grace: int | None, age: int | None, state: HealthState
) -> None:
    mirror_age, crm_grace = (
        None if each is None else timedelta(seconds=each) for each in (age, grace)
    )
    readings = replace(of_database(mirror_age=mirror_age), crm=InputReading("no answer"))
    found = health(readings, external_crm=True, crm_grace=crm_grace)
    assert found.banner is not None
    assert (found.banner.component, found.state) == ("crm", state)


def test_rabbitmq_is_named() -> None:
    found = health(replace(GOOD, broker=FAILED), broker="RabbitMQ")
    assert found.banner is not None
    assert "RabbitMQ" in found.banner.headline
    assert found.banner.runbook == "rabbitmq"


@pytest.mark.parametrize(("age", "state"), [(5.0, HealthState.GOOD), (60.0, DEGRADED)])
def test_what_fell_due_while_nothing_ran_is_late_from_the_start_of_beat_on(
    age: float, state: HealthState
) -> None:
    begun = [sign("beat", each.pid, age=age) if each.role == "beat" else each for each in SIGNS]
    overdue = replace(PLANNED, due_at=AT - timedelta(hours=8))
    found = health(of_results(signs=begun, schedule=[overdue])).of("beat")
    assert found is not None
    assert found.state is state
