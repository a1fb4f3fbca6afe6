"""The verdict of a simulated run: the guarantees that were broken, and the service levels.

`judge` takes the recorded events of the run in order, and checks each event against the state that
the earlier events describe. It runs the doctor, which checks all guarantees against the tables. It
checks that the tables agree with the answers that the agents got. It also computes the service
levels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel
from sqlalchemy import ARRAY, Connection, Engine, Uuid, bindparam, text

from assignment_workers.assignment.dead_letters import letters
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.lab.call_centre.plan import Plan
from assignment_workers.lab.call_centre.recorder import Recorder
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings

BOUND = timedelta(seconds=60)
"""The longest time for which an assignment may outlive its lease.

A fault may delay the end of an assignment, but no fault lasts as long as this time.
"""
SOON = 0.1
"""The longest time in seconds from a request to its answer that counts as fast.

The verdict shows the share of requests that were answered within this time. The value is the target
for assignments in docs/original-dialer.md, section 0.
"""
BACK_SECONDS = 10.0
"""The longest time in seconds that the stack may take to answer requests again after a fault.

It is counted from the time at which the servers could serve requests again.
"""
SHOWN = 20
NO_TIME = timedelta()


class FaultTold(BaseModel):
    """A deliberate fault of the run, and the time until requests were answered again.

    `at`: the time at which the fault began. `served_from`: the time from which requests could be
    served. Both are in seconds since the run began. `back_after`: the seconds from `served_from` to
    the first answer to a request that was sent after the fault began; None if there was no such
    answer.
    """

    at: float
    what: str
    served_from: float
    back_after: float | None


class Levels(BaseModel):
    """The service levels of one run: numbers of requests and answers, and the times to answer.

    Times are in milliseconds from the agent's request to the answer.
    """

    requests: int
    assigned: int
    empty: int
    unanswered: int
    answered_share: float
    mean_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    worst_ms: float
    soon_share: float
    """The share of requests that were answered within a tenth of a second."""


class Verdict(BaseModel):
    """The judgement of one run: its parameters, broken guarantees, service levels and faults.

    `broken`: a line for each breach of a guarantee, and for each message that could not be carried
    out. It is empty for a good run.
    """

    seed: int
    agents: int
    users: int
    seconds: float
    speed: float
    chaos: bool
    broken: list[str]
    levels: Levels
    counts: dict[str, int]
    faults: list[FaultTold]
    untried: list[str]
    """A line for each kind of fault that could not be caused in this stack, with the reason."""
    records: dict[str, int]
    """Counts from the database: assignments by state, generations, events, and so on.

    They include races: conflicts of two writers that were detected and resolved.
    """

    @property
    def late(self) -> list[str]:
        """A line for each fault after which requests stayed unanswered for too long.

        Too long: more than ten seconds after the time from which requests could be served again.
        """
        return late(self.faults)


def late(faults: Sequence[FaultTold]) -> list[str]:
    """Return a line for each fault after which requests stayed unanswered for too long.

    Too long: more than ten seconds after the time from which requests could be served again.
    """
    return [
        f"{fault.what} at {fault.at:.0f} s: "
        + ("no answer" if fault.back_after is None else f"answered after {fault.back_after} s")
        for fault in faults
        if fault.back_after is None or fault.back_after > BACK_SECONDS
    ]


def judge(
    engine: Engine,
    plan: Plan,
    recorder: Recorder,
    *,
    signed_at: dict[int, datetime],
    settings: Settings,
) -> Verdict:
    """Judge a run that has ended, by the database and the agents' records.

    `signed_at`: for each user who signed, a time at which the user had certainly signed. After that
    time, no claim may take the user from the queue of unsigned users.
    """
    broken = [*recorder.surprises]
    with engine.connect() as connection:
        breaches = check(connection, dialer=loaded(), settings=settings, bound=BOUND)
    broken += [f"guarantee {each.guarantee}: {each.what}" for each in breaches]
    with engine.connect() as connection:
        broken += [
            f"guarantee {each.guarantee}: {each.check}: {', '.join(each.examples[:SHOWN])}"
            for each in examine(connection, loaded())
            if not each.ok
        ]
    with engine.connect() as connection:
        broken += _untrue(connection, recorder)
        # A step of the clock between a claim and a signature may make the claim seem the later one.
        slack = max((timedelta(seconds=abs(step)) for _, step in recorder.steps), default=NO_TIME)
        broken += _signed_before(connection, signed_at, slack)
        records = _records(connection)
        broken += [
            f"a message could not be handled: {each.task or 'no task'}: {each.error}"
            for each in letters(connection, limit=SHOWN)
        ]
    return Verdict(
        seed=plan.seed,
        agents=plan.agents,
        users=plan.users,
        seconds=plan.seconds,
        speed=plan.speed,
        chaos=plan.chaos,
        broken=broken,
        levels=_levels(recorder),
        counts=dict(sorted(recorder.counts.items())),
        faults=[
            FaultTold(
                at=round(fault.at, 1),
                what=fault.what,
                served_from=round(fault.served_from, 1),
                back_after=_rounded(recorder.back_after(fault)),
            )
            for fault in recorder.faults
        ],
        untried=recorder.untried,
        records=records,
    )


def _untrue(connection: Connection, recorder: Recorder) -> list[str]:
    """Return a line for each assignment whose row contradicts the answers that the agent got."""
    sql = text(
        "SELECT id, agent_id, user_id, state, outcome FROM assignment.assignments"
        " WHERE id = ANY(:ids)"
    ).bindparams(bindparam("ids", type_=ARRAY(Uuid())))
    rows = {row.id: row for row in connection.execute(sql, {"ids": list(recorder.assignments)})}
    found: list[str] = []
    for each, told in recorder.assignments.items():
        row = rows.get(each)
        if row is None:
            found.append(f"agent {told.agent} was given user {told.user} by {each}: no such row")
        elif (row.agent_id, row.user_id) != (told.agent, told.user):
            found.append(f"{each} is of agent {row.agent_id} and user {row.user_id}, not as told")
        elif told.state is not None and (row.state, row.outcome) != (told.state, told.ended):
            found.append(f"{each} was told {told.state} {told.ended}, is {row.state} {row.outcome}")
    return found


def _signed_before(
    connection: Connection, signed_at: dict[int, datetime], slack: timedelta
) -> list[str]:
    """Return a line for each user who was handed out as unsigned although the user had signed.

    That breaks guarantee 3: a claim judges users by their facts at the time of the claim. (The
    guarantees are numbered in docs/how-it-works.md.)
    `signed_at`: by user, a time at which the user had certainly signed. `slack`: the size of the
    largest jump of the database's clock in the run. The clock may have been put back by that much
    after a claim and before the signature; then the claim has the later time, although it came
    first. A claim up to `slack` after the signature is therefore no breach.
    """
    sql = text(
        "SELECT user_id, claimed_at FROM assignment.assignments"
        " WHERE queue = 'unsigned_users' AND user_id = ANY(:users)"
    )
    return [
        f"guarantee 3: user {row.user_id} signed by {signed_at[row.user_id]:%H:%M:%S.%fZ} and was"
        f" handed out at {row.claimed_at:%H:%M:%S.%fZ}"
        for row in connection.execute(sql, {"users": list(signed_at)})
        if row.claimed_at > signed_at[row.user_id] + slack
    ]


def _records(connection: Connection) -> dict[str, int]:
    found: dict[str, int] = {}
    for what, sql in {
        "assignments {}": "SELECT state, count(*) FROM assignment.assignments GROUP BY 1",
        "generations {}": "SELECT state, count(*) FROM assignment.generations GROUP BY 1",
        "races {}": "SELECT details->>'kind', count(*) FROM assignment.events"
        " WHERE kind = 'ASSIGNMENT_RACE_CONDITION' GROUP BY 1",
        "jobs {}": "SELECT status, count(*) FROM assignment.job_runs GROUP BY 1",
        "taken out: {}": "SELECT details->>'reason', count(*) FROM assignment.events"
        " WHERE kind = 'taken_out' GROUP BY 1",
        "events": "SELECT '', count(*) FROM assignment.events",
        "dead letters": "SELECT '', count(*) FROM assignment.dead_letters",
        "terms": "SELECT '', max(term) FROM assignment.sequencer",
        "callbacks promised": "SELECT '', count(*) FROM public.callbacks",
    }.items():
        for name, count in connection.execute(text(sql)):
            found[what.format(name)] = int(count or 0)
    return found


def _levels(recorder: Recorder) -> Levels:
    waits = sorted(wait.seconds for wait in recorder.waits) or [0.0]
    outcomes = [wait.outcome for wait in recorder.waits]
    answered = len(outcomes) - outcomes.count("unavailable")
    return Levels(
        requests=len(outcomes),
        assigned=outcomes.count("assigned"),
        empty=outcomes.count("empty"),
        unanswered=outcomes.count("unavailable"),
        answered_share=round(answered / max(1, len(outcomes)), 5),
        mean_ms=_ms(statistics.fmean(waits)),
        median_ms=_ms(statistics.median(waits)),
        p95_ms=_ms(_at(waits, 0.95)),
        p99_ms=_ms(_at(waits, 0.99)),
        worst_ms=_ms(waits[-1]),
        soon_share=round(sum(wait <= SOON for wait in waits) / len(waits), 5),
    )


def _at(ranked: Sequence[float], share: float) -> float:
    return ranked[min(len(ranked) - 1, round(len(ranked) * share))]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)
