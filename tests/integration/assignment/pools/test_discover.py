"""Who is new enters the pools, and who is in none or the wrong one is put right; wherever the CRM is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from assignment_workers.assignment import jobs
from assignment_workers.assignment.crm.external_crm import configured
from assignment_workers.assignment.crm.mirror import freshen
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.pools import discover
from assignment_workers.errors import CrmUnavailable
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.crm import Claim as CrmClaim
from assignment_workers.schema.crm import ClaimRequirement, CrmUser
from tests.support.external_crm import OtherCrm
from tests.support.servers import free_port
from tests.support.world import OUTSTANDING, UNSIGNED, Claim, User, World, opened, outstanding

NUMBERS = itertools.count(1)
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["here", "elsewhere"])
def world(
    request: pytest.FixtureRequest, database_url: str, postgres_server: str
) -> Iterator[World]:
    """A dialer whose CRM is in its own database, or in another."""
    if request.param == "here":
        with opened(database_url) as made:
            yield made
        return
    name = f"new_{next(NUMBERS)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        crm = OtherCrm(f"{postgres_server.rpartition('/')[0]}/{name}", "original")
        with opened(database_url, crm) as made:
            made.set(crm_database_url=crm.url, crm_timeout=timedelta(seconds=2))
            with reading(made):
                yield made
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def reading(world: World) -> Iterator[None]:
    """Let the world read its CRM as its settings say."""
    found = configured(loaded(), world.settings)
    assert found is not None
    world.read_crm(found)
    yield
    found.close()


def appear(world: World, *users: int, at: datetime, **facts: Any) -> None:
    """New users of the CRM, made at this time."""
    facts = {"is_enabled": True, "current_signature_file_id": None, "created_at": at} | facts
    world.add_facts(CrmUser, [{"id": user, **facts} for user in users])


def ask_for(world: World, user: int, *, at: datetime | None, type_: str = "payslip") -> None:
    """A new requirement of a claim of the user's."""
    claim = user * 10
    world.add_facts(CrmClaim, [{"id": claim, "user_id": user, "status": "open"}])
    facts = {"claim_id": claim, "type": type_, "status": "PENDING", "created_at": at}
    world.add_facts(ClaimRequirement, [{"id": f"{claim}-0", **facts}])


def run(world: World, *, place: bool = True) -> Counts:
    """One run of the discovery, and of what it sends for."""
    sent: list[int] = []
    given = world.policies

    def work(each: Work) -> Counts:
        at = replace(each, now=world.now)
        return discover.discover(
            at, loaded(), world.external_crm, given, sent.extend, randomness=world.randomness
        )

    ran = jobs.run(world.engine, Job("queue.discover", "hand"), work)
    if place and sent:
        world.run(discover.assign_to_queue, sent, given)
    return ran.counts


def reconcile(world: World) -> Counts:
    sent: list[int] = []

    def work(each: Work) -> Counts:
        freshen(world.engine, loaded(), world.external_crm)
        return discover.reconcile(
            replace(each, now=world.now), loaded(), world.external_crm, world.policies, sent.extend
        )

    ran = jobs.run(world.engine, Job("queue.reconcile", "hand"), work)
    if sent:
        world.run(discover.assign_to_queue, sent, world.policies)
    world.execute("DELETE FROM assignment.crm_reads")  # the next run reads the CRM again
    return ran.counts


def pools(world: World) -> dict[int, str | None]:
    sql = "SELECT user_id, current_queue_type FROM user_call_scores ORDER BY user_id"
    return dict(world.rows(sql))


def test_who_is_new_has_a_score_row_where_they_belong(world: World) -> None:
    appear(world, 1, 2, at=world.now)
    appear(world, 3, at=world.now, current_signature_file_id="f")
    appear(world, 4, at=world.now, current_signature_file_id="f")
    appear(world, 5, at=world.now, is_enabled=False)
    ask_for(world, 4, at=world.now)
    assert run(world)["created"] == 5
    assert pools(world) == {1: UNSIGNED, 2: UNSIGNED, 3: None, 4: OUTSTANDING, 5: None}
    scores = "SELECT DISTINCT current_score, is_active FROM user_call_scores"
    assert world.rows(scores) == [(0, True)]
    assert len(world.events("discovered")) == 5
    assert world.unhealthy() == []


def test_no_window_is_missed_however_late_a_run_is(world: World) -> None:
    appear(world, 1, at=world.now - 1000 * MINUTE)
    assert run(world)["created"] == 1
    appear(world, 2, at=world.now - 500 * MINUTE)
    appear(world, 3, at=world.now - 2 * MINUTE)
    world.now += timedelta(days=9)
    appear(world, 4, at=world.now)
    assert run(world)["created"] == 3
    assert run(world)["created"] == 0
    assert list(pools(world)) == [1, 2, 3, 4]


def test_rows_that_commit_late_are_found_within_the_overlap(world: World) -> None:
    appear(world, 1, at=world.now)
    run(world)
    appear(world, 2, at=world.now - discover.OVERLAP + MINUTE)
    appear(world, 3, at=world.now - discover.OVERLAP - MINUTE)
    assert run(world)["created"] == 1
    assert reconcile(world)["in_none"] == 1
    assert list(pools(world)) == [1, 2, 3]


def test_a_row_of_tomorrow_does_not_hide_those_of_today(world: World) -> None:
    appear(world, 1, at=world.now + timedelta(days=1))
    run(world)
    appear(world, 2, at=world.now)
    assert run(world)["created"] == 1


def test_a_run_goes_on_where_the_last_one_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover, "BATCHES_AT_MOST", 2)
    # All of one instant: more than a run takes, and more than the overlap lets go by.
    appear(world, *range(1, 2_501), at=world.now)
    assert run(world)["created"] == 2_000
    assert world.value("SELECT reached FROM assignment.watermarks WHERE source = 'users'") is None
    assert run(world)["created"] == 500
    assert run(world)["created"] == 0
    assert len(pools(world)) == 2_500


def test_a_run_that_fails_keeps_what_it_committed_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    appear(world, *range(1, 1_501), at=world.now)
    monkeypatch.setattr(discover, "BATCHES_AT_MOST", 1)
    run(world)
    watermark = "SELECT at, key FROM assignment.watermarks WHERE source = 'users'"
    before = world.rows(watermark)

    def fails(*_: object) -> None:
        raise RuntimeError("the process dies here")

    with monkeypatch.context() as broken:
        broken.setattr(Work, "store_counts", fails)
        with pytest.raises(RuntimeError):
            run(world)
    assert world.rows(watermark) == before
    assert len(pools(world)) == 1_000
    assert run(world)["created"] == 500


def test_a_new_requirement_moves_its_user(world: World) -> None:
    world.add_users([User(1, queue=None, signature="f"), User(2, queue=None, signature="f")])
    run(world)
    ask_for_more(world, 1, at=world.now)
    ask_for_more(world, 2, at=world.now, type_="cfa")
    run(world)
    assert pools(world) == {1: OUTSTANDING, 2: None}
    (told,) = world.events("pool_changed")
    assert told["details"] == {"moved_from": None, "moved_to": OUTSTANDING}


def ask_for_more(world: World, user: int, *, at: datetime, type_: str = "payslip") -> None:
    facts = {"claim_id": user * 10, "type": type_, "status": "PENDING", "created_at": at}
    world.add_facts(ClaimRequirement, [{"id": f"{user}-more", **facts}])


def test_hazard_d1_a_user_under_another_word_is_put_where_they_belong(world: World) -> None:
    world.add_users(
        [
            User(1, queue="manual_call"),
            replace(outstanding(2), queue="direct_call"),
            User(3, queue="manual_call", is_enabled=False),
            User(4, queue="inbound_call", last_outcome="do_not_contact", is_active=False),
        ]
    )
    assert reconcile(world)["other_word"] == 4
    assert pools(world) == {1: UNSIGNED, 2: OUTSTANDING, 3: None, 4: None}
    assert world.column("SELECT user_id FROM user_call_scores WHERE NOT is_active") == [4]
    assert reconcile(world)["other_word"] == 0


def test_hazard_d14_a_requirement_older_than_any_window_puts_its_user_in_the_pool(
    world: World,
) -> None:
    world.add_users([replace(outstanding(1), queue=None), User(2, has_score_row=False)])
    appear(world, 3, at=world.now, current_signature_file_id="f")
    ask_for(world, 3, at=None)
    told = reconcile(world)
    assert (told["looked_at"], told["in_none"]) == (3, 3)
    assert pools(world) == {1: OUTSTANDING, 2: UNSIGNED, 3: OUTSTANDING}
    assert len(world.events("discovered", "pool_changed")) == 3


def test_reconciliation_leaves_alone_whom_it_should(world: World) -> None:
    world.add_agents(1)
    world.add_users(
        [
            User(1),
            User(2, signature="f"),  # has converted: the cleanup's
            User(3, queue=OUTSTANDING, in_crm=False),  # nobody knows
            User(4, is_enabled=False),  # in their pool, and blocked by its rules
            User(5, is_active=False),
            User(6, claims=(Claim("cancelled"),)),
            User(7, queue=None, last_outcome="no_claim"),
        ]
    )
    world.regenerate()
    world.held(1)
    world.execute(
        "UPDATE user_call_scores SET current_queue_type = 'manual_call' WHERE user_id = 1"
    )
    before = pools(world)
    told = reconcile(world)
    assert {name: count for name, count in told.items() if name != "looked_at"} == {
        "in_none": 0,
        "in_wrong": 0,
        "other_word": 0,
    }
    assert pools(world) == before
    assert world.run(discover.assign_to_queue, list(before), world.policies).counts["moved"] == 0
    assert pools(world) == before


def test_who_is_in_the_wrong_pool_is_moved_once_by_facts_of_now(world: World) -> None:
    world.add_users([User(1, queue=OUTSTANDING), replace(outstanding(2), queue=OUTSTANDING)])
    assert reconcile(world)["in_wrong"] == 1
    assert pools(world) == {1: UNSIGNED, 2: OUTSTANDING}
    assert reconcile(world)["in_wrong"] == 0
    assert len(world.events("pool_changed")) == 1


def test_reconciliation_goes_on_where_it_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_users([User(number, queue=None) for number in range(1, 6)])
    monkeypatch.setattr(discover, "WINDOW", 2)
    monkeypatch.setattr(discover, "WINDOWS_AT_MOST", 1)
    assert [reconcile(world)["looked_at"] for _ in range(4)] == [2, 2, 1, 2]
    assert set(pools(world).values()) == {UNSIGNED}


def test_what_the_crm_cannot_say_is_not_acted_on(world: World) -> None:
    if world.crm is None:
        pytest.skip("a CRM in our own database answers as long as that does")
    world.add_users([User(1, queue=None)])
    run(world)
    appear(world, 2, at=world.now)
    world.set(
        crm_database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        crm_timeout=timedelta(seconds=0.2),
    )
    before = world.rows("SELECT * FROM assignment.watermarks")
    with reading(world):
        with pytest.raises(CrmUnavailable):
            run(world)
        with pytest.raises(CrmUnavailable):
            reconcile(world)
        with pytest.raises(CrmUnavailable):
            world.run(discover.assign_to_queue, [1, 2], world.policies)
    assert world.rows("SELECT * FROM assignment.watermarks") == before
    assert 2 not in pools(world)
