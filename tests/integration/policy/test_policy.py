"""Both policies in SQL against a reading of original-dialer section 3 in plain Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from sqlalchemy import func, select

from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.queues import queue_of
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import Phone
from tests.support.world import (
    BOTH,
    DAY,
    HOUR,
    OUTSTANDING,
    UNSIGNED,
    Claim,
    Place,
    Requirement,
    User,
    World,
)

TICK = timedelta(milliseconds=1)
"""The finest step of the dialer's and the CRM's times."""

NEVER_COUNTS = {
    "signature",
    "vehicle_registration",
    "cfa",
    "solicitor_letter_of_authority",
    "letter_of_authority",
}
OPTED_OUT = {"do_not_contact", "no_claim"}


def counts(requirement: Requirement) -> bool:
    """A call can obtain it and it is still pending."""
    if (requirement.status or "").lower() != "pending" or requirement.type in NEVER_COUNTS:
        return False
    return (requirement.type, requirement.reason) != ("id_document", "base requirement for claim.")


def broken(user: User, queue: str, now: datetime) -> str | None:
    """The first rule of this dialer queue that the user breaks; None for who may be handed out."""
    alive = [claim for claim in user.claims if (claim.status or "").lower() != "cancelled"]
    wanted = [each for claim in alive for each in claim.requirements if counts(each)]
    created = user.created_at or now - DAY
    reasons = {
        "not_in_crm": not user.in_crm,
        "disabled": not user.is_enabled,
        "opted_out": user.last_outcome in OPTED_OUT,
        "all_claims_cancelled": user.claims and not alive,
        "signed": queue == UNSIGNED and user.signature,
        "unsigned": queue == OUTSTANDING and not user.signature,
        "requirements_completed": queue == OUTSTANDING and not wanted,
        "in_other_queue": not user.has_score_row or user.queue != queue,
        "inactive": not user.is_active,
        "cooling_down": user.next_call_after is not None and user.next_call_after > now,
        "too_new": user.score > 0 and created > now - 2 * HOUR,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), None)


def belongs(user: User, queue: str, now: datetime) -> bool:
    """Nothing keeps them from this dialer queue but what their score row says."""
    return broken(user, queue, now) in {
        None,
        "in_other_queue",
        "inactive",
        "cooling_down",
        "too_new",
    }


def has_converted(user: User, queue: str) -> bool:
    """They are in this pool and have reached what it is for."""
    if not (user.in_crm and user.has_score_row and user.queue == queue and user.signature):
        return False
    return queue == UNSIGNED or not any(
        counts(each)
        for claim in user.claims
        if (claim.status or "").lower() != "cancelled"
        for each in claim.requirements
    )


def in_order(users: Sequence[User]) -> list[int]:
    """Score 0 first and newest first, then score ascending, newest first; the higher id at a tie."""
    newest = sorted(users, key=lambda user: (user.created_at, user.id), reverse=True)
    return [user.id for user in sorted(newest, key=lambda user: user.score)]


EXCUSED = Requirement("id_document", reason="base requirement for claim.")
CLAIMS: tuple[tuple[Claim, ...], ...] = (
    (),
    (Claim(),),
    (Claim(status=None),),
    (Claim("complete"), Claim("cancelled")),
    (Claim("cancelled", (Requirement(),)),),
    (Claim("Cancelled"), Claim("CANCELLED")),
    (Claim("cancelled", (Requirement(),)), Claim("open")),
    (Claim("cancelled"), Claim("open", (Requirement(),))),
    (Claim(None, (Requirement(),)),),
    (Claim("open", (Requirement(type=None),)),),
    (Claim("open", (Requirement(status="pending"),)),),
    (Claim("open", (Requirement(status="COMPLETED"), Requirement(status=None))),),
    *((Claim("open", (Requirement(each),)),) for each in sorted(NEVER_COUNTS)),
    (Claim("open", (Requirement("SIGNATURE"),)),),
    (Claim("open", tuple(Requirement(each) for each in [*NEVER_COUNTS, "payslip"])),),
    (Claim("open", (EXCUSED,)),),
    (Claim("open", (EXCUSED, Requirement("id_document", reason=None))),),
    (Claim("open", (Requirement("id_document", reason="Base requirement for claim."),)),),
    (Claim("open", (Requirement("id_document", reason="base requirement for claim"),)),),
    (Claim("open", (Requirement("payslip", reason="base requirement for claim."),)),),
    (Claim("open", (EXCUSED,)), Claim("open", (Requirement(),))),
)


def everybody(now: datetime) -> Iterator[User]:
    """Every combination of the facts that a policy looks at, and users who lack some."""
    persons = itertools.product([True, False, None], [None, "", "file"], CLAIMS)
    pools = [*itertools.product(BOTH, [True, False]), (None, True), ("manual_call", True)]
    rests = [None, now - HOUR, now, now + TICK]
    ages = [(0, now), (1, now - 2 * HOUR + TICK), (250, now - 2 * HOUR)]
    outcomes = [None, "no_answer", "do_not_contact", "no_claim"]
    rows = itertools.product(pools, rests, ages, outcomes)
    numbers = itertools.count(1)
    for (is_enabled, signature, claims), (pool, rest, age, outcome) in itertools.product(
        persons, list(rows)
    ):
        yield User(
            next(numbers),
            age[0],
            queue=pool[0],
            is_enabled=is_enabled,
            signature=signature,
            claims=claims,
            is_active=pool[1],
            next_call_after=rest,
            last_outcome=outcome,
            created_at=age[1],
        )
    for queue in BOTH:
        yield User(next(numbers), queue=queue, in_crm=False)
    for signature in (None, "file"):
        yield User(next(numbers), signature=signature, has_score_row=False)


def judged(world: World, *columns: Any) -> dict[int, tuple[Any, ...]]:
    """These expressions, by user, for everybody in the CRM or with a score row."""
    with world.engine.connect() as connection:
        found = connection.execute(
            select(func.coalesce(UserCallScore.user_id, CrmUser.id), *columns)
            .select_from(UserCallScore)
            .join(CrmUser, CrmUser.id == UserCallScore.user_id, full=True)
            .outerjoin(Phone, Phone.user_id == func.coalesce(UserCallScore.user_id, CrmUser.id)),
            {"now": world.now},
        )
        return {user: tuple(values) for user, *values in found}


def test_both_policies_say_of_every_user_what_section_3_says(world: World) -> None:
    users = list(everybody(world.now))
    world.add_users(users)
    columns = [
        expression
        for policy in loaded().policies.values()
        for expression in (
            policy.eligible(),
            policy.broken_rule(),
            policy.belongs(),
            policy.converted(),
        )
    ]
    found = judged(world, *columns, queue_of(list(loaded().policies.values())))
    wrong = []
    for user in users:
        expected: list[Any] = []
        for queue in BOTH:
            why = broken(user, queue, world.now)
            expected += [
                why is None,
                why,
                belongs(user, queue, world.now),
                has_converted(user, queue),
            ]
        places = [queue for queue in BOTH if belongs(user, queue, world.now)]
        expected.append(places[0] if places else None)
        if found.get(user.id) != tuple(expected):
            wrong.append((user, found.get(user.id), tuple(expected)))
    assert len(found) == len(users)
    assert not wrong, (len(wrong), wrong[:3])


def test_hazard_d4_a_terminal_outcome_blocks_a_user_after_the_score_row_has_forgotten_it(
    world: World,
) -> None:
    world.add_agents(1, 2, 3)
    world.add_users([User(each, each) for each in (1, 2, 3, 4)])
    world.regenerate(UNSIGNED)
    for agent, outcome in enumerate(("do_not_contact", "no_claim", "no_answer"), start=1):
        world.complete(world.held(agent), outcome, notes="asked to be left alone")
    world.execute(
        "UPDATE user_call_scores SET last_outcome = NULL, next_call_after = NULL, current_score = 0"
    )
    world.now += HOUR
    found = judged(world, loaded().policies[UNSIGNED].broken_rule())
    assert found == {1: ("opted_out",), 2: ("opted_out",), 3: (None,), 4: (None,)}


SCORED = some.tuples(
    some.integers(0, 3) | some.integers(0, 400),
    some.integers(0, 3) | some.integers(0, 10**9),
)


def test_the_order_is_score_then_newest_then_the_higher_id(world: World) -> None:
    rows = (
        select(UserCallScore.user_id)
        .where(UserCallScore.current_queue_type == UNSIGNED)
        .order_by(*loaded().policies[UNSIGNED].order)
    )
    orders = {tuple(map(str, policy.order)) for policy in loaded().policies.values()}
    assert len(orders) == 1

    @settings(max_examples=60, database=None)
    @given(some.lists(SCORED, max_size=25))
    def check(drawn: list[tuple[int, int]]) -> None:
        world.execute("TRUNCATE user_call_scores, crm.users, crm.claims, crm.claim_requirements")
        users = [
            User(number, score, created_at=world.now - age * TICK)
            for number, (score, age) in enumerate(drawn, start=1)
        ]
        world.add_users(users)
        with world.engine.connect() as connection:
            assert list(connection.execute(rows).scalars()) == in_order(users)

    check()


def test_a_build_has_every_eligible_user_of_its_pool_in_order_and_nobody_else(world: World) -> None:
    times = [world.now - 3 * HOUR - step * TICK for step in (0, 0, 5, 10**8)]
    users = [
        User(
            number,
            score,
            queue=queue,
            signature=signature,
            is_enabled=is_enabled,
            claims=(Claim("open", (Requirement(),)),),
            created_at=created_at,
        )
        for number, (score, created_at, queue, signature, is_enabled) in enumerate(
            itertools.product((7, 0, 201), times, BOTH, ("", "file"), (True, False)), start=1
        )
    ]
    world.add_users(users)
    for queue in BOTH:
        expected = in_order([user for user in users if broken(user, queue, world.now) is None])
        assert len(expected) == 12
        assert world.places(world.build(queue)) == [
            Place(user, rank, "ready") for rank, user in enumerate(expected, start=1)
        ]


def test_a_user_without_a_score_row_is_judged_by_their_claims(world: World) -> None:
    wanting = (Claim("open", (Requirement(),)),)
    world.add_users(
        [
            User(1, has_score_row=False, claims=(Claim("cancelled"),)),
            User(2, has_score_row=False, signature="file", claims=wanting),
        ]
    )
    assert judged(world, *(policy.broken_rule() for policy in loaded().policies.values())) == {
        1: ("all_claims_cancelled", "all_claims_cancelled"),
        2: ("signed", "in_other_queue"),
    }
