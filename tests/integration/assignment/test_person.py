"""A person is forgotten: afterwards nothing that was typed, and no number, is found anywhere."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest
import redis

from assignment_workers.assignment import jobs, person
from assignment_workers.assignment.answers import Refused
from assignment_workers.assignment.dead_letters import store_dead_letter
from assignment_workers.assignment.jobs import Job
from assignment_workers.assignment.lifecycle.moves import Close
from assignment_workers.assignment.pools.discover import discover
from assignment_workers.assignment.suppressions import (
    do_not_contact,
    lift,
)
from assignment_workers.client.erasing import forget_results
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import SuppressionKind
from tests.integration.assignment.typed_everywhere import MARK, PHONE, READER, everywhere, forget
from tests.support.world import UNSIGNED, User, World, owner


@pytest.fixture
def known(world: World) -> World:
    """User 1 as much as can be known of them; user 2 with the same words, who stays."""
    world.add_agents(1, 2)
    world.add_users([User(1, 1, phone=PHONE), User(2, 2, phone="+44 7700 900999")])
    world.regenerate(UNSIGNED)
    world.complete(
        world.held(1),
        "call_back",
        notes=f"{MARK} notes",
        callback_at=world.now + timedelta(hours=2),
    )
    hold = world.held(1)
    assert hold.user_id == 2
    world.complete(hold, notes="OTHER notes")
    world.execute(
        "UPDATE callbacks SET callback_reason = :mark WHERE user_id = 1", mark=f"{MARK} promise"
    )
    world.execute(
        "INSERT INTO missed_calls (phone_number, caller_name, user_id, missed_at, reason)"
        " VALUES (:phone, :mark, 1, now(), 'no_agent'), ('07700 900123', :mark, NULL, now(), 'x')",
        phone=PHONE,
        mark=f"{MARK} caller",
    )
    world.execute(
        "INSERT INTO conversions (user_id, previous_queue_type, conversion_type,"
        " conversion_reason, converted_at) VALUES (1, 'unsigned_users', 'x', :mark, now())",
        mark=f"{MARK} conversion",
    )
    world.run(do_not_contact, reader=Reader(), user=1, reason=f"{MARK} asked", by="operator")
    world.run(
        lift,
        SuppressionKind.DO_NOT_CONTACT,
        reader=Reader(),
        user=1,
        by="operator",
        why=f"{MARK} mistake",
    )
    world.execute(
        "INSERT INTO assignment.operator_actions (at, who, action, subject, why, outcome, ended_at)"
        " VALUES (now(), 'ann', 'lift', '1', :mark, 'refused: ' || :mark, now())",
        mark=f"{MARK} action",
    )
    assignment = world.value("SELECT id::text FROM assignment.assignments WHERE user_id = 1")
    told = json.dumps([[], {"assignment_id": assignment, "notes": f"{MARK} letter"}, {}])
    for body in (
        json.dumps({"args": [], "kwargs": {"user_id": 1, "reason": f"{MARK} letter"}}),
        json.dumps({"body": base64.b64encode(told.encode()).decode()}),
        json.dumps({"args": [], "kwargs": {"phone": "(07700) 900-123", "reason": MARK}}),
    ):
        store_dead_letter(
            world.engine,
            celery_queue="assignment",
            task="user.suppress",
            task_id="t",
            body=body,
            error=MARK,
        )
    store_dead_letter(
        world.engine, celery_queue="x", task="y", task_id="z", body='{"user_id": 12}', error="OTHER"
    )
    world.execute(
        "CREATE TABLE public.outstanding_requests_queue_before_adoption"
        " (user_id bigint, remark text)"
    )
    world.execute(
        "INSERT INTO public.outstanding_requests_queue_before_adoption VALUES (1, :mark), (2, 'OTHER')",
        mark=MARK,
    )
    return world


def test_after_forgetting_nothing_is_found_and_what_is_others_stays(known: World) -> None:
    encoded = base64.b64encode(b'"notes": "MARK').decode()[4:12]
    assert len(set(everywhere(known, MARK, "900123"))) >= 12
    others = everywhere(known, "OTHER")
    counts = forget(known, 1)
    assert everywhere(known, MARK, "900123", "900-123", encoded) == []
    assert everywhere(known, "OTHER") == others
    assert counts["dead_letters"] == 3
    rows = known.rows("SELECT user_id, outcome FROM assignment.assignments ORDER BY user_id")
    assert rows == [(1, "call_back"), (2, "no_answer")], "ids, times and outcomes stay"
    assert known.value("SELECT count(*) FROM callbacks WHERE status = 'pending'") == 0
    assert known.unhealthy() == []


def test_who_is_forgotten_never_comes_back(known: World) -> None:
    forget(known, 1)
    refused = known.run(
        lift, SuppressionKind.DO_NOT_CONTACT, reader=Reader(), user=1, by="operator", why="again"
    )
    assert isinstance(refused, Refused)
    assert refused.code == "forgotten"
    assert known.value("SELECT count(*) FROM user_call_scores WHERE user_id = 1") == 0
    known.execute("UPDATE crm.users SET created_at = now() AT TIME ZONE 'UTC'")
    known.execute("DELETE FROM user_call_scores")
    sent: list[int] = []
    jobs.run(
        known.engine,
        Job("queue.discover", "hand"),
        lambda work: discover(
            work, loaded(), None, known.policies, sent.extend, randomness=known.randomness
        ),
    )
    assert known.column("SELECT user_id FROM user_call_scores") == [2]
    known.regenerate(UNSIGNED)
    assert 1 not in known.states()


def test_an_export_has_all_that_is_known(known: World) -> None:
    with known.engine.connect() as connection:
        found = person.export(connection, loaded(), 1, READER)
    said = found.model_dump_json()
    for what in (
        "notes",
        "promise",
        "caller",
        "conversion",
        "asked",
        "mistake",
        "action",
        "letter",
    ):
        assert f"{MARK} {what}" in said or what == "letter", what
    assert len(found.tables["dead_letters"]) == 3
    assert "OTHER" not in said
    assert "outstanding_requests_queue_before_adoption" in found.tables


def test_a_hold_is_seen_before_anything_is_erased(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    hold = world.held(1)
    with world.engine.begin() as connection:
        assert person.is_held(connection, 1) == 1
    world.move(Close(owner(hold), "gone"))
    with world.engine.begin() as connection:
        assert person.is_held(connection, 1) is None


def test_results_in_redis_that_name_the_person_go(known: World, redis_url: str) -> None:
    with known.engine.connect() as connection:
        who = person.find(connection, loaded(), 1, READER)
    with redis.Redis.from_url(redis_url) as server:
        server.set("celery-task-meta-a", '{"result": {"assignment": {"user_id": 1}}}')
        server.set("celery-task-meta-b", '{"result": {"assignment": {"user_id": 11}}}')
        server.set("celery-task-meta-c", f'{{"result": "{PHONE}"}}')
        assert forget_results(server, who) == 2
        assert server.keys() == [b"celery-task-meta-b"]
