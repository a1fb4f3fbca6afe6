"""Service levels over a period, from recorded answers, assignments and events. Reads only.

Cost: a read of the period's answers, ended assignments, events and dead letters, each by an index
on its time, and of the period's counts of answers, by their key. The doctor's checks are run as
well; the cost of each check is limited.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Connection, Executable, bindparam, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute

from assignment_workers.assignment.reports.doctor import examine, interleavings
from assignment_workers.assignment.reports.service_levels import ServiceLevels, service_levels
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.policy.dialer import Dialer
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    DeadLetter,
    Event,
    Request,
)

MEASURED_AT_MOST = 200_000
REQUESTS = ("assignment.request", "assignment.request_many")


class TimeToAssign(BaseModel):
    """Seconds from an agent's request for a user to the assignment of the user.

    The seconds begin at the moment at which a client makes the request. The client estimates the
    time that the database's clock shows at that moment. The seconds end at a time that is read from
    the database's clock: in the transaction that assigns the user, before its commit.

    `measured` is the number of assignments whose seconds are known: at most the latest 200,000 of
    the period. An assignment is left out if its request has no estimated time. If `measured` is 0,
    the other fields are None.
    """

    measured: int
    average: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Consistency(BaseModel):
    """The present result of checking the guarantees: number of checks, and names of failed ones."""

    checks: int
    broken: list[str]


class Report(ServiceLevels):
    """The measured service levels from `since` to `until`.

    The targets for these values are in docs/original-dialer.md, section 0.
    """

    since: datetime
    until: datetime
    assignments: int = Field(description="Assignments that began.")
    ended: dict[str, int] = Field(description="Assignments that ended, by their last state.")
    answers: dict[str, int] = Field(description="Requests answered, by outcome.")
    failed: int = Field(description="Request messages that could not be handled.")
    lost: int = Field(
        description="Assignments that an event records but that have no row. It must always be 0."
    )
    races: dict[str, int] = Field(
        description="Races (conflicts between two writers) that were resolved, by kind."
    )
    interleavings: int = Field(
        description="Breaches of guarantees 2 and 9 that the doctor finds now, such as a rebuild "
        "that disturbed a claim. It must always be 0."
    )
    seconds_to_assign: TimeToAssign
    consistency: Consistency


def report(connection: Connection, dialer: Dialer, *, since: datetime) -> Report:
    """Compute the service levels from `since` until now.

    `connection` must have no transaction in progress.
    """
    findings = examine(connection, dialer)  # its snapshot serves the following reads too
    until = connection.execute(select(func.now())).scalar_one()
    parameters = {"since": since, "until": until}

    def counts(query: Executable) -> dict[str, int]:
        return {str(name): count for name, count in connection.execute(query, parameters)}

    def count(query: Executable) -> int:
        return int(connection.execute(query, parameters).scalar_one())

    levels = service_levels(connection, since=since, until=until)
    times = connection.execute(_TIMES, parameters).mappings().one()
    return Report(
        since=since,
        until=until,
        assignments=count(_BEGAN),
        ended=counts(_ENDED),
        answers=counts(_ANSWERS),
        failed=count(_FAILED),
        lost=count(_LOST),
        races=counts(_RACES),
        interleavings=interleavings(findings),
        seconds_to_assign=TimeToAssign(**times),
        consistency=Consistency(
            checks=len(findings), broken=[each.check for each in findings if not each.ok]
        ),
        **dict(levels),
    )


def _within(column: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    return column.between(bindparam("since", type_=Instant), bindparam("until", type_=Instant))


_BEGAN = select(func.count()).where(Event.kind == sql_text(EventKind.ASSIGNED), _within(Event.at))
_ENDED = (
    select(Assignment.state, func.count())
    .where(Assignment.state != sql_text(AssignmentState.ACTIVE), _within(Assignment.ended_at))
    .group_by(Assignment.state)
)
_ANSWERS = (
    select(Request.outcome, func.count())
    .where(_within(Request.answered_at))
    .group_by(Request.outcome)
)
_FAILED = select(func.count()).where(DeadLetter.task.in_(REQUESTS), _within(DeadLetter.at))
_LOST = select(func.count()).where(
    Event.kind == sql_text(EventKind.ASSIGNED),
    _within(Event.at),
    ~exists().where(Assignment.id == Event.assignment_id),
)
_kind = Event.details["kind"].astext
_RACES = (
    select(_kind, func.count())
    .where(Event.kind == sql_text(EventKind.RACE), _within(Event.at))
    .group_by(_kind)
)
_latest = (
    select(
        func.greatest(func.extract("epoch", Request.answered_at - Request.received_at), 0.0).label(
            "seconds"
        )
    )
    .where(
        Request.outcome == sql_text("assigned"),
        Request.received_at.is_not(None),
        _within(Request.answered_at),
    )
    .order_by(Request.answered_at.desc())
    .limit(MEASURED_AT_MOST)
    .subquery()
)
_TIMES = select(
    func.count().label("measured"),
    func.avg(_latest.c.seconds).label("average"),
    *(
        func.percentile_cont(share).within_group(_latest.c.seconds).label(name)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    ),
)
