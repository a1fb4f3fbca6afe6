"""Explain why a user is offered or not, and count the users whom each rule excludes. Reads only.

Users are judged at a given time, by the SQL expressions that claims and builds use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    Interval,
    Row,
    RowMapping,
    Select,
    Text,
    bindparam,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from assignment_workers.assignment import phones
from assignment_workers.assignment.active_assignments import ACTIVE, HELD_COLUMNS, held
from assignment_workers.assignment.callbacks import callbacks, missed_calls
from assignment_workers.assignment.calling import described_for
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.crm.reader import CrmReader
from assignment_workers.assignment.generations.eligibility_status import (
    EligibilityStatus,
    eligibility_status,
    meanings,
    tally,
)
from assignment_workers.assignment.generations.entries import PUBLISHED_STATE, READY
from assignment_workers.assignment.reports.explanation import (
    Explanation,
    Facts,
    Funnel,
    NotFor,
    PromiseFound,
    QueuePosition,
    QueueVerdict,
    RuleVerdict,
    Step,
    UserEvent,
)
from assignment_workers.assignment.settings_versions import version_of
from assignment_workers.assignment.suppressions import suppressions_of
from assignment_workers.errors import CrmUnavailable
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.base import sql_text
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.pipeline import expression_cache
from assignment_workers.schema.tables import (
    Assignment,
    AssignmentState,
    DialerQueue,
    Entry,
    Event,
    EventText,
    Generation,
    Source,
)
from assignment_workers.settings import Settings

EXPLAINED_AT_MOST = 200_000
"""Maximum number of a dialer queue's users whom `funnel` judges, which takes about two seconds."""
AHEAD_AT_MOST = 100_000
EVENTS = 10

PAUSED = "paused"
NEVER_BUILT = "never_built"
DUE = "due"


def instant(connection: Connection) -> datetime:
    """Return the time that the database's clock shows at this call.

    It is not the time at which the transaction began.
    """
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now


def explain(
    connection: Connection,
    dialer: Dialer,
    crm: Crm | None,
    user: int,
    *,
    policies: Mapping[str, Policy],
    settings: Settings,
    now: datetime,
) -> Explanation | None:
    """Explain, rule by rule, whether the user is offered to agents at `now`.

    `policies`: the rules of each dialer queue. `settings`: the settings in force, from which the
    policies were made. Returns None for an unknown user. The user's facts are read from the CRM;
    raises `CrmUnavailable` if that is impossible. Cost: judging one user, and counting the users
    with better ranks in each dialer queue, up to a limit.
    """
    crm_reader = CrmReader(connection, dialer, crm, stores=False)
    known = crm_reader.judge(_FACTS, {"user": user}, users=[user])
    row = known[0]._asdict() if known else None
    if user in crm_reader.unknown:
        raise CrmUnavailable("what it says of this user makes no sense", retry_after=30.0)
    hold = connection.execute(_HOLD, {"user": user}).mappings().one_or_none()
    if row is None and hold is None:
        return None
    queues = [
        _verdict(crm_reader, connection, user, policy, settings=settings, now=now)
        for policy in policies.values()
    ]
    ways = tuple(policies.values())
    due = list(_due(crm_reader, connection, user, ways, settings=settings, now=now))
    skipped = {"user": user, "since": now - settings.skip_agent, "rest": settings.skip_agent}
    return Explanation(
        at=now,
        user_id=user,
        offered=any(each.why == DUE for each in due)
        or any(each.why == EligibilityStatus.CLAIMABLE for each in queues),
        hold=None if hold is None else held(hold),
        facts=Facts(**row) if row and row["score"] is not None else None,
        due=due,
        queues=queues,
        suppressions=suppressions_of(connection, user),
        not_for=[NotFor(**each) for each in connection.execute(_SKIPPED, skipped).mappings()],
        events=[
            UserEvent(**each)
            for each in connection.execute(_EVENTS, {"user": user}).mappings().all()
        ],
        settings_version=version_of(settings),
    )


def funnel(
    connection: Connection,
    policy: Policy,
    *,
    settings: Settings,
    now: datetime,
    at_most: int | None = EXPLAINED_AT_MOST,
) -> Funnel:
    """Count the users of a dialer queue whom each rule excludes, and the claimable ones.

    `policy`: the rules of the dialer queue. `settings`: the settings in force. `at_most`: only this
    number of users, those with the lowest scores, are judged; None: all. Cost: one pass over these
    users, in the database.
    """
    place = _place(connection, policy.queue)
    zones = phones.zones(connection) if policy.hours is not None else ()
    parameters = {**_parameters(place["generation"], now), **policy.at(now, zones)}
    rows = connection.execute(tally(policy, at_most), parameters).all()
    found = {row.stands: row for row in rows}
    pool = left = sum(row.users for row in rows)
    steps = []
    for why, means in _words(policy):
        row = found.get(why)
        if row is not None and why != EligibilityStatus.CLAIMABLE:
            left -= row.users
            steps.append(
                Step(why=why, means=means, users=row.users, left=left, next_free_at=row.free_at)
            )
    return Funnel(
        at=now,
        queue=policy.queue,
        paused=place["paused"],
        generation=place["generation"],
        published_at=place["published_at"],
        complete=at_most is None or pool < at_most,
        pool=pool,
        steps=steps,
        claimable=left,
        in_force=described_for(settings, policy.queue),
    )


def _due(
    crm_reader: CrmReader,
    connection: Connection,
    user: int,
    policies: tuple[Policy, ...],
    *,
    settings: Settings,
    now: datetime,
) -> Iterator[PromiseFound]:
    """Yield the user's pending callbacks and missed calls, each with the first obstacle or `due`.

    An obstacle is a reason for which the user cannot be handed out now, such as the name of a
    broken rule. The SQL expressions that find it are those of a claim.
    """
    paused = set(connection.execute(_PAUSED).scalars())
    for source, statement in (
        (Source.CALLBACK, callbacks.of_user),
        (Source.MISSED_CALL, missed_calls.of_user),
    ):
        found = crm_reader.judge_for_claim(
            statement(policies), {"user": user}, users=[user], policy=policies[0], now=now
        )
        for row in found:
            why, free_at = _stands_in_the_way(row, paused, now)
            lately = row.is_there and now < row.due_at + settings.callback_preferred
            yield PromiseFound(
                source=source,
                id=row.id,
                due_at=row.due_at,
                queue=row.place,
                why=why,
                means={**_of_rules(policies), **_MEANS_OF_DUE}[why],
                free_at=free_at,
                kept_for=row.preferred_agent_id if lately else None,
            )


def _stands_in_the_way(
    row: Row[Any], paused: Collection[str], now: datetime
) -> tuple[str, datetime | None]:
    if row.held:
        return EligibilityStatus.HELD, None
    if row.due_at > now:
        return "not_due", row.due_at
    if row.available_from is not None and row.available_from > now:
        return "postponed", row.available_from
    if row.put_off:
        return "put_off", None
    if row.broken is not None:
        return row.broken, None
    return (PAUSED if row.place in paused else DUE), None


def _of_rules(policies: Iterable[Policy]) -> dict[str, str]:
    return {word: means for policy in policies for word, means in _words(policy)}


def _words(policy: Policy) -> Iterator[tuple[str, str]]:
    yield from ((rule.name, rule.means or rule.name) for rule in policy.rules)
    yield from meanings(policy).items()


def _parameters(generation: int | None, now: datetime) -> dict[str, Any]:
    return {"generation": generation, "taken": [], "instant": now}


def _place(connection: Connection, queue: str) -> RowMapping:
    return connection.execute(_PLACE, {"queue": queue}).mappings().one()


def _verdict(
    crm_reader: CrmReader,
    connection: Connection,
    user: int,
    policy: Policy,
    *,
    settings: Settings,
    now: datetime,
) -> QueueVerdict:
    place = _place(connection, policy.queue)
    parameters = _parameters(place["generation"], now) | {"user": user}
    (found,) = crm_reader.judge_for_claim(
        _judged(policy), parameters, users=[user], policy=policy, now=now
    )
    row = found._asdict()
    why = row["stands"]
    if why not in {EligibilityStatus.HELD, *(rule.name for rule in policy.rules)}:
        if place["paused"]:
            why = PAUSED
        elif place["generation"] is None:
            why = NEVER_BUILT
    words = {**dict(_words(policy)), **_OF_THE_QUEUE}
    return QueueVerdict(
        queue=policy.queue,
        why=why,
        means=words[why],
        free_at=None if why in _OF_THE_QUEUE else row["free_at"],
        rules=[
            RuleVerdict(
                rule=rule.name,
                holds=row[f"{rule.name} holds"],
                kind=rule.kind.value,
                means=rule.means or rule.name,
                until=None if row[f"{rule.name} holds"] else row.get(f"{rule.name} until"),
            )
            for rule in policy.rules
        ],
        place=_found(connection, row),
        in_force=described_for(settings, policy.queue),
    )


def _found(connection: Connection, row: Mapping[str, Any]) -> QueuePosition | None:
    if row["rank"] is None:
        return None
    better = {"generation": row["generation_id"], "rank": row["rank"]}
    return QueuePosition(
        generation=row["generation_id"],
        rank=row["rank"],
        ahead=connection.execute(_AHEAD, better).scalar_one(),
        state=row["state"],
        available_from=row["available_from"],
        reason=row["reason"],
    )


@expression_cache
def _judged(policy: Policy) -> Select[*tuple[Any, ...]]:
    person = select(bindparam("user", type_=BigInteger).label("user_id")).cte("person")
    rules = [rule.holds.label(f"{rule.name} holds") for rule in policy.rules]
    untils = [
        rule.until.label(f"{rule.name} until") for rule in policy.rules if rule.until is not None
    ]
    return eligibility_status(policy, person, [*rules, *untils])


_OF_THE_QUEUE = {
    PAUSED: "an operator paused the dialer queue",
    NEVER_BUILT: "the dialer queue was never built",
}

_MEANS_OF_DUE = {
    "not_due": "its time has not come",
    "postponed": "put off: nobody answered, it was skipped, or the user could not be called",
    "put_off": "somebody skipped or deferred the user, and they rest whatever they are due",
    missed_calls.FOLLOWED_UP: "the same call was followed up, its webhook came again",
    PAUSED: _OF_THE_QUEUE[PAUSED],
    DUE: "handed out to the next who asks and may have them",
}
_PAUSED = select(DialerQueue.name).where(DialerQueue.paused_at.is_not(None))

_person = select(bindparam("user", type_=BigInteger).label("user_id")).subquery("person")
_FACTS = (
    select(
        UserCallScore.current_queue_type.label("queue"),
        UserCallScore.current_score.label("score"),
        UserCallScore.total_attempts.label("attempts"),
        UserCallScore.last_outcome,
        UserCallScore.last_call_at,
        UserCallScore.next_call_after,
    )
    .select_from(_person)
    .outerjoin(UserCallScore, UserCallScore.user_id == _person.c.user_id)
    .outerjoin(CrmUser, CrmUser.id == _person.c.user_id)
    .where(UserCallScore.user_id.is_not(None) | CrmUser.id.is_not(None))
)
_HOLD = select(*HELD_COLUMNS).where(
    Assignment.user_id == bindparam("user", type_=BigInteger), Assignment.state == ACTIVE
)
_queue: BindParameter[str] = bindparam("queue", type_=Text)
_PLACE = (
    # One row also for a dialer queue that the database does not have yet: no process has begun
    # since the dialer's file was changed.
    select(
        exists()
        .where(DialerQueue.name == _queue, DialerQueue.paused_at.is_not(None))
        .label("paused"),
        Generation.id.label("generation"),
        Generation.published_at,
    )
    .select_from(select(literal(1).label("one")).subquery())
    .outerjoin(Generation, (Generation.queue == _queue) & (Generation.state == PUBLISHED_STATE))
)
_better = (
    select(Entry.user_id)
    .where(
        Entry.generation_id == bindparam("generation"),
        Entry.state == READY,
        Entry.rank < bindparam("rank"),
    )
    .limit(AHEAD_AT_MOST)
    .subquery()
)
_AHEAD = select(func.count()).select_from(_better)
_SKIPPED = (
    select(
        Assignment.agent_id,
        (func.max(Assignment.ended_at) + bindparam("rest", type_=Interval())).label("until"),
    )
    .where(
        Assignment.user_id == bindparam("user", type_=BigInteger),
        Assignment.state == sql_text(AssignmentState.SKIPPED),
        Assignment.ended_how.is_(None),
        Assignment.ended_at > bindparam("since"),
    )
    .group_by(Assignment.agent_id)
    .order_by(Assignment.agent_id)
)
_texts = select(EventText.texts).where(EventText.event_id == Event.id).scalar_subquery()
_told = Event.details.op("||", return_type=JSONB())(
    func.coalesce(_texts, literal({}, JSONB()))
).label("details")
_EVENTS = (
    select(Event.at, Event.kind, Event.agent_id, Event.queue, _told)
    .where(Event.user_id == bindparam("user", type_=BigInteger))
    .order_by(Event.id.desc())
    .limit(EVENTS)
)
