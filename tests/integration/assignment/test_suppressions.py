"""Who asked not to be called is offered to nobody; who fails without a reason is set aside."""

from __future__ import annotations

from typing import Any

import pytest

from assignment_workers.assignment.answers import Code, Done, Empty, Refused
from assignment_workers.assignment.suppressions import do_not_contact, lift, suppressions
from assignment_workers.identity import UserId
from assignment_workers.phones import Reader
from assignment_workers.schema.tables import SuppressionKind
from tests.support.world import DAY, HOUR, OUTSTANDING, UNSIGNED, User, World, outstanding

CONTACT, QUARANTINE = SuppressionKind.DO_NOT_CONTACT, SuppressionKind.QUARANTINE


@pytest.fixture
def ranked(world: World) -> World:
    """Agents 1 to 4, users 1 to 3 of `unsigned_users` and 21 and 22 of `outstanding_requests`."""
    world.add_agents(1, 2, 3, 4)
    world.add_users(
        [*(User(each, each) for each in (1, 2, 3)), outstanding(21), outstanding(22, 1)]
    )
    world.regenerate()
    return world


def standing(
    world: World, kind: SuppressionKind
) -> list[tuple[UserId | None, str | None, str, str]]:
    with world.engine.connect() as connection:
        found = suppressions(connection, kind)
    return [(each.user_id, each.phone, each.reason, each.by) for each in found]


def why(world: World, user: int, queue: str) -> str:
    return world.explained(user, queue).why


def test_a_user_on_the_list_is_offered_to_nobody_and_again_once_off_it(ranked: World) -> None:
    listed: dict[str, Any] = {"user": 1, "reason": "asked by letter", "by": "ann"}
    assert ranked.run(do_not_contact, reader=Reader(), **listed) == Done()
    assert ranked.run(do_not_contact, reader=Reader(), **listed) == Done(replayed=True)
    assert standing(ranked, CONTACT) == [(1, None, "asked by letter", "ann")]
    assert why(ranked, 1, UNSIGNED) == "do_not_contact"
    assert ranked.held(1).user_id == 2
    (out,) = ranked.events("taken_out")
    assert (out["user_id"], out["details"]) == (1, {"reason": "do_not_contact"})
    ranked.regenerate(UNSIGNED)
    assert 1 not in ranked.states()
    assert ranked.run(lift, CONTACT, reader=Reader(), user=1, by="bob", why="withdrawn") == Done()
    again = ranked.run(lift, CONTACT, reader=Reader(), user=1, by="bob", why="withdrawn")
    assert isinstance(again, Refused)
    assert again.code == Code.NOT_SUPPRESSED
    ranked.regenerate(UNSIGNED)
    assert ranked.held(2).user_id == 1
    told = [(each["kind"], each["user_id"], each["details"].get("by")) for each in ranked.events()]
    assert ("suppressed", 1, "ann") in told
    assert ("suppression_lifted", 1, "bob") in told
    assert ranked.rows("SELECT lifted_by, lifted_why FROM assignment.suppressions") == [
        ("bob", "withdrawn")
    ]


@pytest.mark.parametrize("number", ["+44 (20) 7946-0000", "020 7946 0000", "004420 79460000"])
def test_a_phone_number_is_suppressed_however_it_is_written(ranked: World, number: str) -> None:
    ranked.run(do_not_contact, reader=Reader(), phone="+44 20 7946 0000", reason="asked", by="ann")
    ranked.execute("UPDATE crm.users SET phone_number = :n WHERE id = 1", n=number)
    ranked.execute("UPDATE crm.users SET phone_number = '020 7946 0001' WHERE id = 2")
    assert ranked.held(1).user_id == 2
    assert why(ranked, 1, UNSIGNED) == "do_not_contact"
    ranked.run(lift, CONTACT, reader=Reader(), phone="02079460000", by="ann", why="a mistake")
    ranked.regenerate(UNSIGNED)
    assert ranked.held(2).user_id == 1


def test_a_hold_goes_on_when_its_user_is_put_on_the_list(ranked: World) -> None:
    hold = ranked.held(1)
    ranked.run(do_not_contact, reader=Reader(), user=hold.user_number, reason="asked", by="ann")
    ranked.release(hold)
    assert ranked.held(2).user_id != hold.user_id
    assert ranked.unhealthy() == []


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({}, "a user or a phone number"),
        ({"user": 1, "phone": "+44 20 7946 0000"}, "one of the two"),
        ({"phone": "12345"}, "12345"),
    ],
)
def test_what_names_nobody_or_too_many_is_refused(
    ranked: World, said: dict[str, Any], named: str
) -> None:
    answers = [
        ranked.run(do_not_contact, reader=Reader(), **said, reason="asked", by="ann"),
        ranked.run(lift, CONTACT, reader=Reader(), **said, by="ann", why="asked"),
    ]
    for answer in answers:
        assert isinstance(answer, Refused)
        assert answer.code in {Code.MALFORMED, Code.NOT_SUPPRESSED}
        assert named in answer.reason
    assert standing(ranked, CONTACT) == []


def flap(world: World, user: int) -> None:
    """Their signature is there at the build and gone at the claim."""
    signature = "UPDATE crm.users SET current_signature_file_id = :file WHERE id = :user"
    world.execute(signature, user=user, file="file")
    world.regenerate(OUTSTANDING)
    world.execute(signature, user=user, file=None)
    world.release(world.held(1, OUTSTANDING))
    world.execute(signature, user=user, file="file")


def test_who_fails_repeatedly_for_an_unclear_reason_is_set_aside_until_released(
    ranked: World,
) -> None:
    for times in range(3):
        assert standing(ranked, QUARANTINE) == [], times
        flap(ranked, 21)
        ranked.now += HOUR
    assert standing(ranked, QUARANTINE) == [(21, None, "3 times unsigned", "claim")]
    assert why(ranked, 21, OUTSTANDING) == "quarantined"
    ranked.regenerate(OUTSTANDING)
    assert ranked.states(OUTSTANDING) == {22: "ready"}
    (suppressed,) = ranked.events("suppressed")
    assert (suppressed["user_id"], suppressed["details"]["kind"]) == (21, "quarantine")
    assert (
        ranked.run(lift, QUARANTINE, reader=Reader(), user=21, by="ann", why="the CRM is mended")
        == Done()
    )
    for _ in range(2):  # what was before the release does not count
        flap(ranked, 21)
        ranked.now += HOUR
    assert standing(ranked, QUARANTINE) == []
    ranked.regenerate(OUTSTANDING)
    assert ranked.held(2, OUTSTANDING).user_id == 21
    assert ranked.unhealthy() == []


def test_failures_of_another_day_and_those_with_a_reason_do_not_count(ranked: World) -> None:
    for _ in range(4):
        flap(ranked, 21)
        ranked.now += DAY / 2
    assert standing(ranked, QUARANTINE) == []
    enabled = "UPDATE crm.users SET is_enabled = :is_so WHERE id = 22"
    for _ in range(4):
        ranked.execute(enabled, is_so=True)
        ranked.regenerate(OUTSTANDING)
        ranked.execute(enabled, is_so=False)
        ranked.execute("UPDATE crm.users SET is_enabled = false WHERE id = 21")
        assert isinstance(ranked.ask(1, OUTSTANDING), Empty)
    assert standing(ranked, QUARANTINE) == []


def test_the_table_s_name_in_0_1_0_reads_and_writes_the_suppressions(ranked: World) -> None:
    ranked.execute(
        "INSERT INTO assignment.bars (kind, user_id, reason, since, by)"
        " VALUES ('quarantine', 3, 'failed', now(), 'claim') ON CONFLICT DO NOTHING"
    )
    assert standing(ranked, QUARANTINE) == [(3, None, "failed", "claim")]
    ranked.execute(
        "UPDATE assignment.bars SET lifted_at = now(), lifted_by = 'ann', lifted_why = 'seen to'"
    )
    assert standing(ranked, QUARANTINE) == []
    assert ranked.rows("SELECT user_id, lifted_by FROM assignment.bars") == [(3, "ann")]
