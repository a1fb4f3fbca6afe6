"""The success rate and the availability of a period, from recorded and from counted answers.

The database records each answer that was committed. The gateway and the clients count each request
by the answer that its caller got. Most requests are in both sources, and must count once:

1. The recorded answers of each kind are matched with the counted answers of that kind.
2. Recorded answers that remain are matched with the requests that were counted as unanswered: these
   answers came too late for their callers. The requests stay unanswered.
3. Recorded answers that then remain belong to requests of callers that count nothing, such as other
   Celery programs.

Reads only. Cost: a read of the answers of the period, by the index on their time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel, Field
from sqlalchemy import Connection, text

from assignment_workers.assignment.answer_counts import LOST, RULES, USEFUL
from assignment_workers.schema.tables import AnswerKind

AVAILABLE_FROM = 0.5
"""Minimum share of useful answers for a minute to count as available.

A useful answer assigns a user, or says why no user is assigned: no user is claimable, the dialer
queue is paused, or a rule keeps the agent from calling.
"""
_EXPLAINED = (
    AnswerKind.TOO_LATE,
    AnswerKind.FAILED,
    AnswerKind.UNAVAILABLE,
    AnswerKind.ASSIGNED,
    AnswerKind.EMPTY,
    AnswerKind.PAUSED,
    AnswerKind.RULED,
    AnswerKind.MISTAKE,
)
"""The kinds of recorded answers, in the order in which unanswered requests are paired with them.

A caller that stops waiting counts its request as unanswered. The database may still record an
answer to the request afterwards. Then the request would count twice: as unanswered and as answered.
Therefore the function `_explained` pairs each unanswered request with one recorded answer.

It uses only surplus answers. For each kind, the surplus is the number of answers of this kind that
the database recorded, less the number of answers of this kind that callers counted. The whole
surplus of the first kind in this tuple is used before that of the second kind, and so on. The first
kind is the likeliest to reach its caller after the caller has stopped waiting.
"""


class Unseen(BaseModel):
    """The gaps in the service levels of a period: requests and answers that could not be counted.

    For example, some programs do not count their time-outs, and old answers are deleted.
    """

    requests: int = Field(
        description="Requests of callers that count nothing, such as other Celery programs: of "
        "them only the answered ones are known."
    )
    dropped: int = Field(
        description="Answers whose counts were dropped, because the database was away for days."
    )
    counted_from: datetime | None = Field(
        description="The time from which unanswered requests are counted, if the period began "
        "before it. Null: they are counted for the whole period."
    )
    records_from: datetime | None = Field(
        description="The time from which answers are still stored, if the period began before it. "
        "Null: they are stored for the whole period."
    )


class ServiceLevels(BaseModel):
    """The service levels of a period: counts of requests by result, success rate and availability.

    The result of a request is the answer that its caller got.
    """

    asked: int = Field(description="Requests, without those that were the caller's mistake.")
    useful: int = Field(
        description="Requests whose answer was a user, or said that there is none, that the dialer "
        "queue is paused, or that a rule keeps the agent from calling."
    )
    unanswered: dict[str, int] = Field(
        description="Requests that failed, by kind: unavailable or timed out, too late, left by "
        "their caller, or an internal error."
    )
    mistakes: int = Field(
        description="Requests that were malformed, not allowed, or past their deadline when sent. "
        "They are not in `asked`."
    )
    success_rate: float | None = Field(
        description="`useful` divided by `asked`; null if there was no request."
    )
    minutes: int = Field(description="Minutes in which there were requests.")
    minutes_unavailable: int = Field(
        description="Minutes in which less than half of the requests were answered usefully."
    )
    availability: float | None = Field(
        description="The share of `minutes` that were available; null if there was no request."
    )
    unseen: Unseen


@dataclass
class _Minute:
    records: Counter[AnswerKind] = field(default_factory=Counter)
    counted: Counter[AnswerKind] = field(default_factory=Counter)

    def is_available(self) -> bool | None:
        """Return True if at least half of the minute's requests got a useful answer.

        A useful answer assigns a user or says why no user is assigned. Requests that were their
        caller's mistake do not count. Returns None if the minute has no other request.
        """
        # A request may be counted and recorded on either side of a full minute.
        useful = max(_sum(self.records, USEFUL), _sum(self.counted, USEFUL))
        bad = {AnswerKind.TOO_LATE, *LOST}
        failed = max(_sum(self.records, bad), _sum(self.counted, bad))
        asked = useful + failed
        return useful / asked >= AVAILABLE_FROM if asked else None


def service_levels(
    connection: Connection, *, since: datetime, until: datetime, newest: int | None = None
) -> ServiceLevels:
    """Compute the success rate and the availability from `since` until `until`.

    Two sources are combined: the answers that the database recorded in the period, and the numbers
    of answers that the gateway and the clients counted in each minute. The counts of a minute
    belong to the period if the minute begins in the period. `newest`: only this number of recorded
    answers is read, the newest; None: all are read.
    """
    period = {"since": since, "until": until, "newest": newest, "rules": sorted(RULES)}
    minutes: dict[datetime, _Minute] = defaultdict(_Minute)
    records: Counter[AnswerKind] = Counter()
    recorded = _RECORDED if newest is None else _NEWEST_RECORDED
    for minute, kind, count in connection.execute(recorded, period):
        minutes[minute].records[AnswerKind(kind)] += count
        records[AnswerKind(kind)] += count
    counted: Counter[AnswerKind] = Counter()
    for minute, kind, count in connection.execute(_COUNTED, period):
        minutes[minute].counted[AnswerKind(kind)] += count
        counted[AnswerKind(kind)] += count
    dropped = counted.pop(AnswerKind.DROPPED, 0)
    found, uncounted = combined(records, counted)
    useful = _sum(found, USEFUL)
    unanswered = {
        kind.value: found[kind] for kind in (*sorted(LOST), AnswerKind.TOO_LATE) if found[kind]
    }
    asked = useful + sum(unanswered.values())
    states = [state for each in minutes.values() if (state := each.is_available()) is not None]
    counted_from, records_from = connection.execute(_KNOWN_FROM, period).one()
    return ServiceLevels(
        asked=asked,
        useful=useful,
        unanswered=unanswered,
        mistakes=found[AnswerKind.MISTAKE],
        success_rate=useful / asked if asked else None,
        minutes=len(states),
        minutes_unavailable=states.count(False),
        availability=states.count(True) / len(states) if states else None,
        unseen=Unseen(
            requests=uncounted,
            dropped=dropped,
            counted_from=counted_from,
            records_from=records_from,
        ),
    )


def unseen(figures: Unseen) -> list[str]:
    """Return a line of text for each group of requests or answers that could not be counted.

    `figures`: the gaps in the service levels of a period.
    """
    told = []
    if figures.requests:
        told.append(
            f"the time-outs of callers who count nothing; {figures.requests:,} answered requests"
            " were theirs"
        )
    if figures.dropped:
        told.append(f"{figures.dropped:,} answers, counted while the database was away for days")
    if figures.counted_from is not None:
        told.append(f"unanswered requests before {figures.counted_from:%Y-%m-%d %H:%MZ}")
    if figures.records_from is not None:
        told.append(
            f"answers before {figures.records_from:%Y-%m-%d %H:%MZ}, which are no longer stored"
        )
    return told


def combined(
    records: Mapping[AnswerKind, int], counted: Mapping[AnswerKind, int]
) -> tuple[Counter[AnswerKind], int]:
    """Add two sources of counts of requests, so that a request in both sources counts once.

    `records`: the numbers of answers that the database recorded, by kind. `counted`: the numbers of
    requests that the gateway and the clients counted, by kind of answer. Returns the number of
    requests of each kind, and the number of requests that only the database recorded.
    """
    surplus = {kind: max(0, records.get(kind, 0) - counted.get(kind, 0)) for kind in _EXPLAINED}
    for kind, count in _explained(surplus, _sum(counted, LOST)).items():
        surplus[kind] -= count
    found = Counter({kind: counted.get(kind, 0) + surplus.get(kind, 0) for kind in AnswerKind})
    return found, sum(surplus.values())


def _explained(surplus: Mapping[AnswerKind, int], lost: int) -> dict[AnswerKind, int]:
    """Return, by kind, the number of recorded answers assumed to have come too late for the caller.

    A caller that stops waiting counts its request as unanswered, but the database may still record
    an answer to the request afterwards. Therefore each unanswered request is paired with one
    recorded answer, as long as there are such answers. `surplus`: for each kind, the number of
    recorded answers that match no counted answer. `lost`: the number of requests that callers
    counted as unanswered.
    """
    explained = {}
    for kind in _EXPLAINED:
        explained[kind] = min(lost, surplus[kind])
        lost -= explained[kind]
    return explained


def _sum(counts: Mapping[AnswerKind, int], kinds: AbstractSet[AnswerKind]) -> int:
    return sum(counts.get(kind, 0) for kind in kinds)


# A message that was refused as malformed is a dead letter that cannot be sent again.
_OF_PERIOD = """
SELECT date_trunc('minute', answered_at) AS minute, kind, count(*) AS count
FROM (
    SELECT answered_at,
        CASE outcome
            WHEN 'refused' THEN
                CASE WHEN answer->>'code' = ANY(:rules) THEN 'ruled' ELSE 'mistake' END
            WHEN 'too_late' THEN
                CASE WHEN deadline <= received_at THEN 'mistake' ELSE 'too_late' END
            ELSE outcome
        END AS kind
    FROM (
        SELECT answered_at, outcome, answer, deadline, received_at FROM assignment.requests
        WHERE answered_at BETWEEN :since AND :until {most}
    ) AS read
    UNION ALL
    SELECT at, CASE WHEN replayable THEN 'failed' ELSE 'mistake' END
    FROM assignment.dead_letters
    WHERE at BETWEEN :since AND :until
        AND task IN ('assignment.request', 'assignment.request_many')
) AS answers
GROUP BY 1, 2
"""
_RECORDED = text(_OF_PERIOD.format(most=""))
_NEWEST_RECORDED = text(_OF_PERIOD.format(most="ORDER BY answered_at DESC LIMIT :newest"))
_COUNTED = text("""
SELECT hour + (place - 1) * interval '1 minute' AS minute, kind, count
FROM assignment.answer_counts CROSS JOIN unnest(by_minute) WITH ORDINALITY AS m (count, place)
WHERE hour BETWEEN date_trunc('hour', cast(:since AS timestamptz)) AND :until AND count > 0
    AND hour + (place - 1) * interval '1 minute' BETWEEN :since AND :until
""")
# Each is found by an index. Assignments are never deleted, and their ids follow time: an assignment
# before the first stored answer shows that earlier answers were deleted.
_KNOWN_FROM = text("""
SELECT CASE WHEN counted > date_trunc('hour', cast(:since AS timestamptz)) THEN counted END,
    CASE WHEN recorded > :since AND assigned < recorded THEN recorded END
FROM (SELECT
    coalesce((SELECT min(hour) FROM assignment.answer_counts), :until) AS counted,
    (SELECT min(answered_at) FROM assignment.requests) AS recorded,
    (SELECT claimed_at FROM assignment.assignments ORDER BY id LIMIT 1) AS assigned
) AS first
""")
