"""A suppressed number in every form: what a test does to find anybody who is offered all the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, any_, bindparam, select

from assignment_workers.assignment import jobs, phones
from assignment_workers.assignment.answers import Done, Empty, Refused
from assignment_workers.assignment.claims.reassign import reassign
from assignment_workers.assignment.crm.reader import CrmReader
from assignment_workers.assignment.jobs import Counts, Job
from assignment_workers.assignment.suppressions import SuppressionOptions, do_not_contact, lift
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore
from assignment_workers.schema.tables import Phone, SuppressionKind
from tests.support.phone_forms import NUMBERS, UNPARSABLE, forms
from tests.support.world import HOUR, UNSIGNED, User, World

OTHER = 9_000
"""A user who may always be called, and whose turn comes after everybody else's."""
OWN = "+44 20 7183 8750 x9"
BARRED = ("do_not_contact", "number_unclear")


def reader(world: World) -> Any:
    return world.policies[UNSIGNED].numbers.reader


def suppress(world: World, phone: str, **entry: Any) -> Any:
    return world.run(
        do_not_contact,
        phone=phone,
        reason="asked",
        by="ann",
        entry=SuppressionOptions(**entry),
        reader=reader(world),
    )


def write(world: World, texts: Mapping[int, str | None]) -> None:
    """The CRM, wherever it is, says this of these users from now on."""
    if world.crm is not None:
        world.crm.write(CrmUser, "phone_number", texts)
        return
    world.execute(
        "UPDATE crm.users SET phone_number = said.value FROM"
        " jsonb_each_text(CAST(:texts AS jsonb)) AS said WHERE id = CAST(said.key AS bigint)",
        texts=json.dumps(texts),
    )


def why(world: World, user: int) -> str:
    return world.explained(user).why


def read(world: World, *, batches: int = phones.BATCHES_AT_MOST) -> Counts:
    """Run the job that reads phone numbers, for at most `batches` batches."""
    made: list[Counts] = []

    def work(given: jobs.Work) -> Counts:
        made.append(phones.read(given, world.policies[UNSIGNED].numbers, batches=batches))
        return made[0]

    jobs.run(world.engine, Job("phones.read", "hand"), work)
    return made[0]


def broken(world: World, users: Iterable[int]) -> list[tuple[int, str]]:
    """The rule that each of these users breaks, as a claim would judge them now."""
    policy = world.policies[UNSIGNED]
    judged = (
        select(CrmUser.id.label("user_id"), policy.broken_rule().label("broken"))
        .outerjoin(UserCallScore, UserCallScore.user_id == CrmUser.id)
        .outerjoin(Phone, Phone.user_id == CrmUser.id)
        .where(CrmUser.id == any_(bindparam("users", type_=ARRAY(BigInteger))))
    )
    asked = list(users)
    with world.engine.connect() as connection:
        found = CrmReader(connection, loaded(), world.external_crm, stores=False).judge_for_claim(
            judged, {"users": asked}, users=asked, policy=policy, now=world.now
        )
    return [(row.user_id, row.broken) for row in found]


def due(world: World, users: Sequence[int]) -> None:
    """Half of them were promised a callback that is due, half of them called."""
    world.execute(
        "INSERT INTO callbacks (user_id, scheduled_for, original_call_session_id) SELECT u,"
        " timezone('UTC', CAST(:at AS timestamptz)), gen_random_uuid()"
        " FROM unnest(CAST(:users AS bigint[])) u WHERE u % 2 = 0",
        at=world.now - HOUR / 4,
        users=list(users),
    )
    world.execute(
        "INSERT INTO missed_calls (user_id, phone_number, missed_at, reason)"
        " SELECT u, '1', timezone('UTC', CAST(:at AS timestamptz)), 'agents_busy'"
        " FROM unnest(CAST(:users AS bigint[])) u WHERE u % 2 = 1",
        at=world.now - HOUR,
        users=list(users),
    )


def nobody_is_offered(world: World, e164: str) -> None:
    """Suppress one form of a number and look for the others, from every source.

    Through what was built before and a build, a claim, callbacks, missed calls, a reassignment, and
    a change of the CRM's text a moment before a claim and before a reassignment, of more users than
    one turn reads. Prints how many of each kind of form were matched, wait and were missed.
    """
    world.set(phone_region=NUMBERS[e164])
    written = dict(enumerate(forms(e164, NUMBERS[e164]), 1))
    before = {user + 1_000: form.text for user, form in written.items()}
    called = {user + 2_000: form.text for user, form in written.items()}
    world.add_agents(1, 2)
    world.add_users(
        [
            *(User(user, 1, phone=form.text) for user, form in written.items()),
            *(User(user, 2, phone=f"020 7946 {user:04d}") for user in before),
            *(User(user, 3, phone=f"020 7946 {user:04d}") for user in called),
            User(OTHER, 90, phone=OWN),
        ]
    )
    chosen = [
        each.text for each in written.values() if each.kind not in UNPARSABLE | {"two in a cell"}
    ]
    form = chosen[sum(map(ord, e164)) % len(chosen)]
    world.regenerate(UNSIGNED)
    hold = world.held(1)  # held since before the suppression
    assert hold.user_id in written
    assert suppress(world, form) == Done()

    said = {"do_not_contact": "matched", "number_unclear": "waits"}
    counts = Counter((written[user].kind, said[rule]) for user, rule in broken(world, written))
    assert counts.total() == len(written)
    refused(world, hold.id)
    world.release(hold)
    write(world, before | called)
    due(world, list(called))
    last = world.held(1)
    assert (last.user_id, last.source) == (OTHER, "queue")
    assert isinstance(world.ask(2), Empty)
    for one in {each.kind: each for each in written.values()}.values():
        write(world, {OTHER: one.text})
        refused(world, last.id)
    write(world, {OTHER: OWN})
    world.release(last)
    world.execute("UPDATE assignment.crm_reads SET read_at = read_at - interval '15 minutes'")
    world.regenerate(UNSIGNED)
    assert list(world.states()) == [OTHER]
    world.run(
        lift, SuppressionKind.DO_NOT_CONTACT, phone=e164, by="ann", why="back", reader=reader(world)
    )
    world.regenerate(UNSIGNED)
    for kind in dict.fromkeys(each.kind for each in written.values()):
        told = ", ".join(f"{n} {how}" for (of, how), n in sorted(counts.items()) if of == kind)
        print(f"{e164} barred as {form!r}: {kind}: {told}, 0 missed")
    assert {kind for kind, how in counts if how == "waits"} <= UNPARSABLE
    assert world.held(2).user_id != OTHER  # once lifted they are offered again
    assert world.unhealthy() == []


def refused(world: World, hold: UUID) -> None:
    """Whoever holds the user, nobody else gets them."""
    answer = world.run(
        reassign, hold, 2, by="ann", why="gone", policies=world.policies, settings=world.settings
    )
    assert isinstance(answer, Refused)
    assert answer.reason.endswith(BARRED)
