"""However a number is written: who has a suppressed one is offered to nobody, from any source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event

from assignment_workers.assignment import jobs, phones
from assignment_workers.assignment.answers import Assigned, Done, Empty, Refused
from assignment_workers.assignment.explain import explain
from assignment_workers.assignment.jobs import Counts, Job
from assignment_workers.assignment.reassign import reassign
from assignment_workers.assignment.suppressions import Entry, do_not_contact, lift
from assignment_workers.schema.tables import SuppressionKind
from tests.phone_forms import NUMBERS, UNPARSABLE, Form, forms
from tests.world import HOUR, UNSIGNED, User, World

OTHER = 9_000
"""A user who may always be called, and whose turn comes after everybody else's."""


def reader(world: World) -> Any:
    return world.policies[UNSIGNED].numbers.reader


def suppress(world: World, phone: str, **entry: Any) -> Any:
    return world.run(
        do_not_contact,
        phone=phone,
        reason="asked",
        by="ann",
        entry=Entry(**entry),
        reader=reader(world),
    )


def write(world: World, texts: dict[int, str | None]) -> None:
    """The CRM says this of these users from now on."""
    world.execute(
        "UPDATE crm.users SET phone_number = said.value FROM"
        " jsonb_each_text(CAST(:texts AS jsonb)) AS said WHERE id = CAST(said.key AS bigint)",
        texts=json.dumps(texts),
    )


def why(world: World, user: int) -> str:
    with world.engine.connect() as connection:
        found = explain(
            connection, user, policies=world.policies, settings=world.settings, now=world.now
        )
    assert found is not None
    return next(each.why for each in found.queues if each.queue == UNSIGNED)


def read(world: World) -> Counts:
    made: list[Counts] = []

    def work(given: jobs.Work) -> Counts:
        made.append(phones.read(given, world.policies[UNSIGNED].numbers))
        return made[0]

    jobs.run(world.engine, Job("phones.read", "hand"), work)
    return made[0]


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


@pytest.mark.parametrize("e164", ["+16502530002", "+61894000000", "+442079460123"])
def test_nobody_with_any_form_of_a_suppressed_number_is_ever_offered(
    world: World, e164: str
) -> None:
    world.set(phone_region=NUMBERS[e164])
    written = dict(enumerate(forms(e164, NUMBERS[e164]), 1))
    count = len(written)
    before = {user + 1_000: form for user, form in written.items()}
    called = {user + 2_000: form for user, form in written.items()}
    world.add_agents(1, 2)
    world.add_users(
        [
            *(User(user, 1, phone=form.text) for user, form in written.items()),
            *(User(user, 2, phone=f"020 7946 {user:04d}") for user in before),
            *(User(user, 3, phone=f"020 7946 {user:04d}") for user in called),
            User(OTHER, 90, phone="+44 20 7183 8750 x9"),
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

    # Through the build, and from what was built before.
    counts: Counter[tuple[str, str]] = Counter()
    for user, each in written.items():
        found = why(world, user) if user != hold.user_id else "do_not_contact"
        counts[each.kind, {"do_not_contact": "matched", "number_unclear": "waits"}[found]] += 1
    answer = world.run(
        reassign, hold.id, 2, by="ann", why="gone", policies=world.policies, settings=world.settings
    )
    assert isinstance(answer, Refused)
    assert answer.reason.endswith(("do_not_contact", "number_unclear"))
    world.release(hold)
    # A change of the CRM a moment before the claim, beyond what one turn reads.
    write(world, {user: each.text for user, each in before.items()})
    write(world, {user: each.text for user, each in called.items()})
    due(world, list(called))
    assert count * 2 > phones.READ_IN_A_TURN
    last = world.held(1)
    assert (last.user_id, last.source) == (OTHER, "queue")
    assert isinstance(world.ask(2), Empty)
    world.release(last)
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


def test_a_turn_reads_so_many_numbers_and_passes_nobody_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phones, "READ_IN_A_TURN", 2)
    monkeypatch.setattr(phones, "AT_A_TIME", 2)
    world.add_agents(*range(1, 8))
    world.add_users([User(user, user) for user in range(1, 8)])
    world.regenerate(UNSIGNED)
    write(world, {user: f"020 7946 {user:04d}" for user in range(1, 8)})
    suppress(world, "+442079460002")
    requests = [world.request(agent) for agent in range(1, 8)]
    answers = world.answer(*requests)
    taken = [each.assignment.user_id for each in answers if isinstance(each, Assigned)]
    assert taken == [1, 3, 4, 5, 6, 7]
    assert world.value("SELECT count(*) FROM assignment.phones") == 7


def test_a_turn_with_numbers_that_stand_reads_none_and_asks_no_more(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(user, user, phone=f"020 7946 {user:04d}") for user in (1, 2)])
    world.regenerate(UNSIGNED)
    asked: list[str] = []

    def counted(_c: Any, _cursor: Any, sql: str, *_: Any) -> None:
        asked.append(sql)

    event.listen(world.engine, "before_cursor_execute", counted)
    assert world.held(1).user_id == 1
    usual = len(asked)
    assert not [sql for sql in asked if "INTO assignment.phones" in sql]
    write(world, {2: "020 7946 0003"})
    asked.clear()
    assert world.held(2).user_id == 2
    # The text, the identity with its zones, and the judgement again.
    assert len(asked) == usual + 4


def test_what_cannot_be_read_waits_for_an_operator_where_it_is_near_a_suppression(
    world: World,
) -> None:
    world.add_agents(1)
    texts = {1: "0207?946 0000", 2: "0207?946 0001", 3: "+44 20 7946 0000", 4: "n/a"}
    world.add_users([User(user, user, phone=text) for user, text in texts.items()])
    world.regenerate(UNSIGNED)
    suppress(world, "020 7946 0000")
    assert [why(world, user) for user in texts] == [
        "number_unclear",
        "claimable",
        "do_not_contact",
        "claimable",
    ]
    assert world.held(1).user_id == 2
    world.set(offer_without_number=False)
    assert [why(world, user) for user in texts][3] == "no_number"


def test_an_entry_that_is_no_number_matches_by_text_and_holds_back_what_ends_alike(
    world: World,
) -> None:
    world.add_users(
        [
            User(1, phone="Front Desk 79460000?"),
            User(2, phone="front  desk 79460000?"),
            User(3, phone="+44 20 7946 0000"),
            User(4, phone="+44 20 7946 0001"),
        ]
    )
    refused = suppress(world, "front desk 79460000?")
    assert isinstance(refused, Refused)
    assert "--raw" in refused.reason
    assert "\n" not in refused.reason
    assert suppress(world, "front desk 79460000?", raw=True) == Done()
    assert [why(world, user) for user in (1, 2, 3, 4)] == [
        "do_not_contact",
        "do_not_contact",
        "number_unclear",
        "not_in_generation" if world.states() else "never_built",
    ]


def test_an_entry_counts_in_its_dialer_queue_and_until_it_expires(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1, phone="020 7946 0000")])
    world.regenerate(UNSIGNED)
    suppress(world, "+442079460000", queue="outstanding_requests")
    assert why(world, 1) == "claimable"
    assert suppress(world, "+442079460000", expires_at=world.now + HOUR) == Done()
    assert suppress(world, "+442079460000", expires_at=world.now + HOUR) == Done(replayed=True)
    assert why(world, 1) == "do_not_contact"
    world.now += HOUR
    assert why(world, 1) == "claimable"
    assert suppress(world, "+442079460000") == Done()
    assert why(world, 1) == "do_not_contact"
    past = suppress(world, "+442079460001", expires_at=world.now)
    assert isinstance(past, Refused)


def test_the_job_reads_what_is_new_has_changed_or_is_gone_and_nothing_twice(world: World) -> None:
    world.add_users([User(1, phone="020 7946 0000"), User(2, phone="n/a"), User(3)])
    assert read(world) == {"read": 2, "unreadable": 1, "forgotten": 0}
    assert read(world) == {"read": 0, "unreadable": 0, "forgotten": 0}
    write(world, {1: "+61 (0)8 9400 0000"})
    world.execute("DELETE FROM crm.users WHERE id = 2")
    assert read(world) == {"read": 1, "unreadable": 0, "forgotten": 1}
    assert world.rows("SELECT user_id, numbers, kinds, home FROM assignment.phones") == [
        (1, ["+61894000000"], ["fixed"], "AU")
    ]
    world.set(phone_region="US")  # the same texts may mean something else there
    assert read(world)["read"] == 1


ZONES_OF = {"+61894000000": "AU", "+16502530002": "US", "+919876543210": "IN"}


@pytest.mark.parametrize("e164", ZONES_OF)
def test_every_form_of_a_number_has_the_same_hours(world: World, e164: str) -> None:
    world.set(phone_region=ZONES_OF[e164], calling_hours="mon-sun 09:00-20:00")
    written: list[Form] = [
        form
        for form in forms(e164, ZONES_OF[e164])
        if form.kind not in UNPARSABLE and not form.several
    ]
    world.add_users([User(n, phone=form.text) for n, form in enumerate(written, 1)])
    world.regenerate(UNSIGNED)
    seen = set()
    for hour in range(0, 24, 3):
        world.now = datetime(2027, 3, 22, hour, 15, tzinfo=UTC)
        found = {why(world, user) for user in (1, len(written) // 2, len(written))}
        counted = world.rows("SELECT count(DISTINCT zones) FROM assignment.phones")
        assert counted == [(1,)]
        assert len(found) == 1
        seen |= found
    assert seen == {"claimable", "outside_calling_hours"}


def test_the_strictest_of_several_zones_counts_and_the_crm_s_own_first(world: World) -> None:
    world.set(
        calling_hours="mon-sun 09:00-20:00",
        crm_columns="country, time_zone",
        calling_holidays="GB-ENG, AU, AU-WA",
    )
    world.add_users(
        [
            User(1, phone="+61 8 9400 0000"),  # Perth or Adelaide, an hour and a half apart
            User(2, phone="(08) 9400 0000"),
            User(3, phone="+44 20 7946 0000, +1 650 253 0002"),
            User(4),
        ]
    )
    world.execute(
        "UPDATE crm.users SET country = 'au-wa', time_zone = 'Australia/Perth' WHERE id = 2"
    )
    world.set(offer_without_number=True)
    world.regenerate(UNSIGNED)

    def at(said: str) -> list[bool]:
        world.now = datetime.fromisoformat(said).replace(tzinfo=UTC)
        return [why(world, user) == "claimable" for user in (1, 2, 3, 4)]

    # Perth is 8 hours ahead, Adelaide 9:30; London is on UTC, San Francisco 8 behind.
    assert at("2027-01-12T00:30") == [False, False, False, False]
    assert at("2027-01-12T01:00") == [True, True, False, False]
    assert at("2027-01-12T09:20") == [True, True, False, True]
    assert at("2027-01-12T09:40") == [False, True, False, True]
    assert at("2027-01-12T18:00") == [False, False, True, True]
    # 1 March 2027 is Labour Day in Western Australia alone; 26 January is Australia's.
    assert at("2027-03-01T01:30") == [True, False, False, False]
    assert at("2027-01-26T01:30") == [False, False, False, False]
    assert at("2027-01-26T18:30") == [False, False, True, True]
