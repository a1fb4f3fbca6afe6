"""A forgotten number stays as a hash, and is found however it was written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from assignment_workers.assignment import jobs, person, phones
from assignment_workers.assignment.answers import Assigned, Refused
from assignment_workers.assignment.dead_letters import store_dead_letter
from assignment_workers.assignment.jobs import Job
from assignment_workers.assignment.suppression_lists import Named, check, exported, flip, stage
from assignment_workers.assignment.suppressions import (
    FORGOTTEN,
    SuppressionOptions,
    check_key,
    do_not_contact,
    lift,
    subject,
    suppressions,
)
from assignment_workers.errors import UsageError
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import SuppressionKind
from tests.integration.assignment.typed_everywhere import (
    KEY,
    MARK,
    PHONE,
    READER,
    everywhere,
    forget,
)
from tests.support.world import UNSIGNED, User, World


@pytest.fixture
def refused(world: World) -> World:
    """User 1 and, by another id, user 2 have a number that is on the list; users 3 and 4 have others."""
    world.set(number_key=KEY)
    world.add_agents(1, 2, 3, 4)
    world.add_users(
        [
            User(1, 4, phone=PHONE),
            User(2, 3, phone="(07700) 900 123"),
            User(3, 2, phone="+1 617 090 0123"),
            User(4, 1, phone="+44 7700 900999"),
        ]
    )
    world.run(do_not_contact, reader=READER, phone="07700-900123", reason=MARK, by="operator")
    world.run(do_not_contact, reader=READER, phone="+44 7700 900888", reason="OTHER", by="operator")
    return world


def offered(world: World) -> list[int]:
    world.regenerate(UNSIGNED)
    return [user for user, state in world.states().items() if state == "ready"]


def listed(world: World, *numbers: str, name: str = "register", queue: str | None = None) -> None:
    named = Named(name=name, replaces=True, reason=MARK, by="operator", queue=queue)
    with world.engine.connect() as connection:
        made = stage(
            connection,
            [(1, each, None) for each in numbers],
            named,
            READER,
            queues=loaded().policies,
        )
    assert made.list_id is not None
    world.run(flip, made.list_id, by="operator", why="loaded")


def test_a_forgotten_number_stays_as_a_hash_that_matches_that_number_alone(refused: World) -> None:
    assert offered(refused) == [4], "user 3's number ends alike, and is none that was given out"
    assert forget(refused, 1)["hashed_entries"] == 1
    # The CRM, which is not ours to write, has the number of user 2, who was not forgotten.
    stands = refused.rows(
        "SELECT phone, number, plain, tail, reason FROM assignment.suppressions"
        " WHERE phone = :mark",
        mark=FORGOTTEN,
    )
    assert stands == [(FORGOTTEN, READER.keyed("+447700900123"), None, None, FORGOTTEN)]
    assert offered(refused) == [4, 3], "a hash matches the exact number only"
    refused.execute("UPDATE crm.users SET phone_number = '+44 7700 900124' WHERE id = 2")
    assert 2 in offered(refused), "another number is not the one"
    refused.execute("UPDATE crm.users SET phone_number = '0044 7700 900123' WHERE id = 4")
    handed = [refused.ask(agent) for agent in (1, 2)]
    users = [each.assignment.user_id for each in handed if isinstance(each, Assigned)]
    assert 4 not in users, "a number that has changed is judged in the claim"
    with refused.engine.connect() as connection:
        found = check(connection, "07700 900123", READER)
        assert found.suppressed
        assert [(each["phone"], each["number"]) for each in found.entries] == [(FORGOTTEN, None)]
        assert not check(connection, "07700 900124", READER).suppressed
        assert [row[0] for row in exported(connection, loaded()) if row[0]] == ["+447700900888"]
        (shown, _) = sorted(
            suppressions(connection, SuppressionKind.DO_NOT_CONTACT), key=lambda each: each.id
        )[:2]
        assert (shown.phone, shown.number) == (FORGOTTEN, None)


def test_numbers_of_lists_are_hashed_too_and_the_rest_of_a_list_stands(refused: World) -> None:
    refused.execute("DELETE FROM assignment.suppressions")
    refused.execute("UPDATE crm.users SET phone_number = '07700 900777' WHERE id = 3")
    listed(refused, PHONE, "07700 900777")
    listed(refused, PHONE, name="of one queue", queue=UNSIGNED)
    assert offered(refused) == [4]
    assert forget(refused, 1)["hashed_of_lists"] == 2
    places = {each.rpartition(".")[0] for each in everywhere(refused, "900123")}
    assert places == {"assignment.phones"}, "of user 2"
    assert refused.value("SELECT count(*) FROM assignment.suppressed_numbers") == 1
    assert offered(refused) == [4]
    queues = refused.column("SELECT queue FROM assignment.suppressions WHERE phone IS NOT NULL")
    assert sorted(queues, key=str) == [None, UNSIGNED]
    forget(refused, 2)
    assert everywhere(refused, "900123") == []


def test_a_list_that_is_imported_again_leaves_forgotten_numbers_out(refused: World) -> None:
    forget(refused, 1)
    soon = refused.value("SELECT now() + interval '1 day'")
    named = Named(name="register", replaces=True, reason="r", by="operator")

    def imported(reader: Reader = READER, **terms: Any) -> tuple[int, int]:
        lines = [(1, PHONE, None), (2, "07700 900555", None)]
        with refused.engine.connect() as connection:
            made = stage(
                connection, lines, replace(named, **terms), reader, queues=loaded().policies
            )
        return made.numbers, made.forgotten

    assert imported() == (1, 1)
    stored = refused.column("SELECT number FROM assignment.suppressed_numbers")
    assert stored == ["+447700900555"]
    assert imported(queue=UNSIGNED) == (1, 1), "a hash of every dialer queue suppresses in one"
    refused.execute(
        "UPDATE assignment.suppressions SET queue = :q WHERE phone = :mark",
        q=UNSIGNED,
        mark=FORGOTTEN,
    )
    assert imported() == (2, 0), "a hash of one dialer queue does not suppress in every one"
    assert imported(queue=UNSIGNED) == (1, 1)
    refused.execute(
        "UPDATE assignment.suppressions SET expires_at = :t WHERE phone = :mark",
        t=soon,
        mark=FORGOTTEN,
    )
    assert imported(queue=UNSIGNED) == (2, 0), "the hash would end before the list"
    assert imported(queue=UNSIGNED, expires_at=soon) == (1, 1)
    other = Reader(key="another-key-of-32-letters-or-even-more")
    assert imported(other, queue=UNSIGNED, expires_at=soon) == (2, 0)


def test_without_a_key_nothing_is_erased_and_a_number_is_not_lost(refused: World) -> None:
    refused.run(do_not_contact, reader=Reader(), user=1, reason=FORGOTTEN, by="operator")
    with (
        pytest.raises(UsageError, match="ASSIGNMENT_WORKERS_NUMBER_KEY"),
        refused.engine.begin() as connection,
    ):
        person.forget(connection, loaded(), None, 1, Reader())
    assert refused.value("SELECT count(*) FROM assignment.forgotten") == 0
    assert refused.value("SELECT count(*) FROM assignment.suppressions WHERE reason = 'MARK'") == 1
    forget(refused, 1)
    with refused.engine.connect() as connection:
        check_key(connection, READER)
        for wrong in (Reader(), Reader(key="another-key-of-32-letters-or-even-more")):
            with pytest.raises(UsageError, match="would be called again"):
                check_key(connection, wrong)


def test_a_forgotten_number_is_lifted_and_suppressed_again_by_itself(refused: World) -> None:
    forget(refused, 1)
    kind = SuppressionKind.DO_NOT_CONTACT
    number = "+44 7700 900123"

    def lifted() -> object:
        return refused.run(lift, kind, reader=READER, phone=number, by="operator", why="called us")

    again = refused.run(
        do_not_contact, reader=READER, phone=number, reason="asked again", by="operator"
    )
    assert not getattr(again, "replayed", True)
    assert forget(refused, 2)["hashed_entries"] == 1
    count = "SELECT count(*) FROM assignment.suppressions WHERE lifted_at IS NULL AND phone = :mark"
    assert refused.value(count, mark=FORGOTTEN) == 1
    assert not isinstance(lifted(), Refused)
    assert refused.value(count, mark=FORGOTTEN) == 0
    assert isinstance(lifted(), Refused)


@pytest.mark.parametrize("later", [None, 9, 1], ids=["for ever", "longer", "shorter"])
@pytest.mark.parametrize("earlier", [None, 5, -1], ids=["for ever", "days", "expired"])
def test_a_number_of_two_who_are_forgotten_stays_for_the_longer_of_both_terms(
    refused: World, earlier: int | None, later: int | None
) -> None:
    refused.execute("DELETE FROM assignment.suppressions")
    ends = {
        each: None if each is None else refused.now + timedelta(days=each)
        for each in (earlier, later, 3)
    }

    def suppress(days: int | None) -> None:
        entry = SuppressionOptions(expires_at=ends[days], queue=UNSIGNED)
        refused.run(
            do_not_contact, reader=READER, phone=PHONE, reason=MARK, by="operator", entry=entry
        )

    suppress(3)
    refused.execute(
        "UPDATE assignment.suppressions SET expires_at = :at WHERE phone IS NOT NULL",
        at=ends[earlier],
    )
    forget(refused, 1)
    suppress(later)
    assert forget(refused, 2)["hashed_entries"] == 1
    stands = refused.rows(
        "SELECT number, expires_at FROM assignment.suppressions"
        " WHERE phone IS NOT NULL AND lifted_at IS NULL"
    )
    longer = None if None in (earlier, later) else ends[max(earlier or 0, later or 0)]
    assert stands == [(READER.keyed("+447700900123"), longer)]


def test_the_number_leaves_the_subjects_of_commands_and_others_stay(refused: World) -> None:
    kind = SuppressionKind.DO_NOT_CONTACT
    named = [
        subject(kind, READER, phone=PHONE),
        subject(kind, READER, phone="07700 900123", queue=UNSIGNED),
        subject(kind, READER, phone="ask for Ann on 7700900123"),
    ]
    others = [
        subject(kind, READER, phone="+44 7700 900999"),
        subject(kind, READER, user=1),
        "state of agent 1",
    ]
    for number, each in enumerate((*named, *others)):
        refused.execute(
            "INSERT INTO assignment.commands (id, task, subject, position, answer, term,"
            " answered_at) VALUES (:id, 'user.suppress', :subject, 1, '{}', 1, now())",
            id=str(number),
            subject=each,
        )
    assert forget(refused, 1)["commands"] == len(named)
    subjects = refused.column("SELECT subject FROM assignment.commands ORDER BY id::int")
    assert subjects == [None] * len(named) + others


SEVERAL = {
    "two numbers": "07700 900123 / 07700 900456",
    "an extension": "07700 900123 ext. 4567",
    "both": "mobile 07700 900123 x12, home 07700 900456 ext. 89",
}


@pytest.mark.parametrize("in_crm", [True, False], ids=["in the CRM", "gone from the CRM"])
@pytest.mark.parametrize("written", SEVERAL.values(), ids=SEVERAL)
def test_every_number_of_a_text_is_found_even_if_the_crm_has_lost_the_user(
    refused: World, written: str, in_crm: bool
) -> None:
    refused.execute("DELETE FROM assignment.suppressions")
    refused.execute("UPDATE crm.users SET phone_number = :phone WHERE id = 1", phone=written)
    refused.regenerate(UNSIGNED)
    refused.execute("DELETE FROM assignment.phones WHERE user_id <> 1")
    numbers = READER.read(written).e164
    for each in numbers:
        refused.run(do_not_contact, reader=READER, phone=each, reason=MARK, by="operator")
        refused.execute(
            "INSERT INTO missed_calls (phone_number, missed_at, reason)"
            " VALUES (:phone, now(), 'x')",
            phone=each,
        )
        store_dead_letter(
            refused.engine, celery_queue="x", task="y", task_id="z", body=each, error=MARK
        )
    if not in_crm:
        refused.execute("DELETE FROM crm.users WHERE id = 1")
    with refused.engine.connect() as connection:
        tables = person.export(connection, loaded(), 1, READER).tables
    assert [each["phone"] for each in tables["suppressions"]] == numbers
    assert [each["phone_number"] for each in tables["missed_calls"]] == numbers
    assert len(tables["dead_letters"]) == len(numbers)
    assert forget(refused, 1)["hashed_entries"] == len(numbers)
    assert everywhere(refused, "900123", "900456", MARK) == []


def test_a_number_that_was_written_with_an_extension_is_found_in_every_table(
    refused: World,
) -> None:
    written = "07700 900123 x4567"
    refused.execute("DELETE FROM assignment.suppressions")
    refused.execute("DELETE FROM crm.users WHERE id = 2")
    refused.execute(
        "INSERT INTO missed_calls (phone_number, missed_at, reason) VALUES (:phone, now(), 'x')",
        phone=written,
    )
    refused.run(do_not_contact, reader=READER, phone=written, reason=MARK, by="operator")
    kind = SuppressionKind.DO_NOT_CONTACT
    refused.run(lift, kind, reader=READER, phone=written, by="operator", why=MARK)
    with refused.engine.connect() as connection:
        tables = person.export(connection, loaded(), 1, READER).tables
    assert len(tables["suppressions"]) == len(tables["missed_calls"]) == 1
    forget(refused, 1)
    refused.execute("DELETE FROM assignment.phones")
    assert everywhere(refused, "900123", MARK) == []


def test_a_number_that_only_its_country_makes_readable_is_found(refused: World) -> None:
    refused.regenerate(UNSIGNED)
    refused.execute("DELETE FROM crm.users WHERE id = 1")
    number = "+390612345678"
    refused.execute(
        "UPDATE assignment.phones SET text = '06 1234 5678', numbers = :numbers WHERE user_id = 1",
        numbers=[number],
    )
    assert refused.value("SELECT numbers FROM assignment.phones WHERE user_id = 1") == [number]
    refused.run(do_not_contact, reader=READER, phone=number, reason=MARK, by="operator")
    assert forget(refused, 1)["hashed_entries"] == 1
    assert everywhere(refused, number) == []


def test_the_number_of_who_was_forgotten_is_not_read_again(refused: World) -> None:
    refused.execute("DELETE FROM assignment.suppressions")
    refused.execute("UPDATE user_call_scores SET current_score = 0 WHERE user_id = 1")
    assert offered(refused)[0] == 1
    forget(refused, 1)
    stored = "SELECT count(*) FROM assignment.phones WHERE user_id = 1"
    assert refused.value(stored) == 0
    given = refused.ask(1)  # user 1 still stands in what is published
    assert isinstance(given, Assigned)
    assert given.assignment.user_id != 1
    assert refused.states()[1] == "out"
    job = Job("phones.read", "hand")
    jobs.run(
        refused.engine, job, lambda work: phones.read(work, refused.policies[UNSIGNED].numbers)
    )
    refused.regenerate(UNSIGNED)
    assert refused.value(stored) == 0
