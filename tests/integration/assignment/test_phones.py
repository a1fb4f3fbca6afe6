"""However a number is written: who has a suppressed one is offered to nobody, from any source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import TZPATH, ZoneInfo, reset_tzpath

import pytest
from sqlalchemy import event

from assignment_workers.assignment import phones, suppression_lists
from assignment_workers.assignment.answers import Assigned, Done, Empty, Finished, Refused
from assignment_workers.assignment.reports.explain import funnel
from assignment_workers.devstack import demo
from tests.support.phone_forms import NUMBERS, UNPARSABLE, Form, forms
from tests.support.suppressed_number import nobody_is_offered, read, reader, suppress, why, write
from tests.support.world import HOUR, UNSIGNED, User, World


@pytest.mark.parametrize("e164", ["+16502530002", "+61894000000", "+442079460123"])
def test_nobody_with_any_form_of_a_suppressed_number_is_ever_offered(
    world: World, e164: str
) -> None:
    assert 2 * len(list(forms(e164, NUMBERS[e164]))) > phones.READ_IN_A_TURN
    nobody_is_offered(world, e164)


@pytest.mark.parametrize("written", ["020 7946 0123", "+44 20 9999 0123", "reception 79460123"])
def test_an_entry_says_whom_it_matches_and_who_waits_because_of_it(
    world: World, written: str
) -> None:
    """As many as are kept back once it stands: of a number, of one that may be none, and of a text."""
    texts = [
        *(form.text for form in forms("+442079460123", "GB")),
        *("+44 20 9999 0123", "0209?999 0123", "Reception 794 60123", "+1 650 946 0123", None),
    ]
    world.add_users([User(n, 1, phone=text) for n, text in enumerate(texts, 1)])
    world.regenerate(UNSIGNED)
    with world.engine.connect() as connection:
        found = suppression_lists.check(connection, written, reader(world))
    assert suppress(world, written, raw=True) == Done()
    with world.engine.connect() as connection:
        steps = funnel(
            connection, world.policies[UNSIGNED], settings=world.settings, now=world.now
        ).steps
    kept_back = {each.why: each.users for each in steps}
    assert found.users == kept_back.get("do_not_contact", 0) > 0
    assert found.waiting == kept_back.get("number_unclear", 0) > 0
    assert found.queues == {UNSIGNED: found.users}
    assert found.waiting_queues == {UNSIGNED: found.waiting}


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


def test_a_run_that_cannot_read_all_numbers_reads_the_newest_users_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phones, "AT_A_TIME", 2)
    world.add_users([User(user, phone=f"020 7946 000{user}") for user in range(1, 6)])
    for users in ([4, 5], [2, 3, 4, 5], [1, 2, 3, 4, 5]):
        read(world, batches=1)
        assert world.rows("SELECT user_id FROM assignment.phones ORDER BY 1") == [
            (user,) for user in users
        ]


NIGHTS = [
    ("+442079460123", ["Europe/London"], "2027-03-28T01:00"),  # an hour is skipped
    ("+442079460123", ["Europe/London"], "2027-10-31T01:00"),  # an hour comes twice
    ("+16502530002", ["America/Los_Angeles"], "2027-03-14T10:00"),
    ("+919876543210", ["Asia/Kolkata"], "2027-03-28T01:00"),  # half an hour, and no change
    ("+61894000000", ["Australia/Perth", "Australia/Adelaide"], "2027-10-02T16:30"),
]
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.mark.parametrize(("e164", "zones", "change"), NIGHTS)
def test_every_form_of_a_number_has_the_same_hours_over_a_night_of_change(
    world: World, e164: str, zones: list[str], change: str
) -> None:
    """Open as soon as the clock on the wall of each zone says so: all forms, or none."""
    world.set(phone_region=NUMBERS[e164], calling_hours="mon-sun 01:30-09:00")
    written: list[Form] = [
        form
        for form in forms(e164, NUMBERS[e164])
        if form.kind not in UNPARSABLE and not form.several
    ]
    world.add_users([User(n, phone=form.text) for n, form in enumerate(written, 1)])
    world.regenerate(UNSIGNED)
    seen = set()
    for half in range(-8, 24):
        world.now = datetime.fromisoformat(change).replace(tzinfo=UTC) + half * HALF_AN_HOUR
        walls = [f"{world.now.astimezone(ZoneInfo(zone)):%H:%M}" for zone in zones]
        is_open = all("01:30" <= wall < "09:00" for wall in walls)
        with world.engine.connect() as connection:
            found = funnel(
                connection, world.policies[UNSIGNED], settings=world.settings, now=world.now
            )
        assert found.claimable == (len(written) if is_open else 0), (world.now, walls)
        seen.add(is_open)
    assert seen == {True, False}


@contextmanager
def newer_rules(folder: Path, zone: str, like: str) -> Iterator[None]:
    """A process that starts now finds the rules of `like` under the name of `zone`."""
    found = next(path / like for path in map(Path, TZPATH) if (path / like).exists())
    made = folder / zone
    made.parent.mkdir(parents=True)
    made.write_bytes(found.read_bytes())
    before = TZPATH
    reset_tzpath([folder, *before])
    ZoneInfo.clear_cache(only_keys=[zone])
    try:
        yield
    finally:
        reset_tzpath(before)
        ZoneInfo.clear_cache(only_keys=[zone])


@pytest.mark.parametrize(
    ("like", "opens"), [("Asia/Karachi", "2027-03-22T04:00"), ("Asia/Dhaka", "2027-03-22T03:30")]
)
def test_newer_rules_of_a_zone_count_for_users_who_were_read_and_put_off_before(
    world: World, tmp_path: Path, like: str, opens: str
) -> None:
    """India moves half an hour back, or forward: who waits by the old rules is judged anew."""
    world.now = datetime(2027, 3, 22, 3, tzinfo=UTC)
    world.set(calling_hours="mon-sun 09:00-20:00", calling_zones="Asia/Tokyo")
    world.add_agents(1, 2)
    world.add_users([User(1, phone="+91 98765 43210"), User(2, phone="+81 3-1234-5678")])
    world.regenerate(UNSIGNED)
    hold = world.held(1)
    assert hold.user_id == 2
    assert isinstance(world.complete(hold), Finished)
    assert isinstance(world.ask(2), Empty)
    read_before = world.rows("SELECT * FROM assignment.phones")
    assert world.value("SELECT available_from FROM assignment.entries WHERE user_id = 1") == (
        world.now + HALF_AN_HOUR
    )
    with newer_rules(tmp_path, "Asia/Calcutta", like):
        world.now += HALF_AN_HOUR - timedelta(minutes=1)
        assert isinstance(world.ask(2), Empty)
        world.now = datetime.fromisoformat(opens).replace(tzinfo=UTC) - timedelta(seconds=1)
        assert isinstance(world.ask(2), Empty)
        world.now += timedelta(seconds=1)
        assert world.held(2).user_id == 1
    assert world.rows("SELECT * FROM assignment.phones") == read_before


def test_a_zone_whose_rules_are_not_there_is_closed_and_holds_nobody_else_up(world: World) -> None:
    """Another process stored it, on a machine with newer rules."""
    world.now = datetime(2027, 3, 22, 12, tzinfo=UTC)
    world.set(calling_hours="mon-sun 09:00-20:00")
    world.add_agents(1, 2)
    world.add_users([User(1, phone="+44 20 7946 0000"), User(2, phone="+44 20 7946 0001")])
    world.regenerate(UNSIGNED)
    world.execute("INSERT INTO assignment.phone_zones VALUES ('Mars/Tharsis')")
    world.execute(
        "UPDATE assignment.phones SET zones = '{Europe/London,Mars/Tharsis}' WHERE user_id = 2"
    )
    assert why(world, 1) == "claimable"
    assert world.held(1).user_id == 1
    assert isinstance(world.ask(2), Empty)
    assert world.states()[2] == "waiting"


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


def test_the_demo_s_users_have_numbers_as_people_type_them(world: World) -> None:
    with world.engine.begin() as connection:
        demo.seed(connection, users=1100, seed=7, now=world.now)
    read(world)
    for form in ("%;ext=%", "% x_", "%(0)%", "(%", "0044%", "% / %", "0_700 %", "+447700900___"):
        assert world.value("SELECT count(*) FROM assignment.phones WHERE text LIKE :f", f=form) > 5
    two = "SELECT count(*) FROM assignment.phones WHERE cardinality(numbers) = 2"
    none = "SELECT count(*) FROM crm.users WHERE phone_number IS NULL"
    assert min(world.value(two), world.value(none)) > 5
    assert world.value("SELECT count(*) FROM assignment.phones WHERE numbers = '{}'") == 0
