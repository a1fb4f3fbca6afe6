"""Claims: the best eligible user, one holder each, by facts as they are at that moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from assignment_workers.assignment.answers import Assigned, Empty, Unavailable
from assignment_workers.assignment.claims.candidates import INELIGIBLE_AT_MOST
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Complete
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.errors import StaleTerm
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import connect
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.world import (
    DAY,
    HOUR,
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    Claim,
    Place,
    User,
    World,
    outstanding,
    owner,
)

TICK = timedelta(milliseconds=1)


@pytest.fixture
def ranked(world: World) -> World:
    """Agents 1 to 5, and users 1 to 4 at these ranks of `unsigned_users`."""
    world.add_agents(1, 2, 3, 4, 5)
    world.add_users([User(each, each) for each in (1, 2, 3, 4)])
    world.regenerate(UNSIGNED)
    return world


def test_hazard_d15_an_answer_is_a_hold_a_place_an_event_and_a_kept_request_that_agree(
    ranked: World,
) -> None:
    given = ranked.ask(3, request_id="ask")
    assert isinstance(given, Assigned)
    hold = given.assignment
    assert (hold.user_id, hold.agent_id, hold.queue, hold.rank) == (1, 3, UNSIGNED, 1)
    assert (hold.source, hold.reason, hold.version, hold.state) == ("queue", "high", 1, "active")
    assert hold.claimed_at == ranked.now
    assert hold.lease_expires_at == ranked.now + ranked.settings.offer
    (generation,) = ranked.column("SELECT id FROM assignment.generations WHERE state = 'published'")
    row = (
        "SELECT id, request_id, user_id, agent_id, queue, source, generation_id, rank, score,"
        " reason, state, version, term, claimed_at, lease_expires_at, ended_at, outcome"
        " FROM assignment.assignments"
    )
    lease = (hold.claimed_at, hold.lease_expires_at)
    place = (generation, 1, 1, "high", "active", 1, 1)
    assert ranked.rows(row) == [
        (hold.id, "ask", 1, 3, UNSIGNED, "queue", *place, *lease, None, None)
    ]
    assert ranked.states() == {1: "held", 2: "ready", 3: "ready", 4: "ready"}
    (event,) = ranked.events("assigned")
    assert (event["assignment_id"], event["request_id"]) == (hold.id, "ask")
    assert (event["user_id"], event["agent_id"], event["term"], event["at"]) == (
        1,
        3,
        1,
        ranked.now,
    )
    assert ranked.rows(
        "SELECT request_id, agent_id, outcome, assignment_id, answered_at FROM assignment.requests"
    ) == [("ask", 3, "assigned", hold.id, ranked.now)]
    assert ranked.unhealthy() == []


def test_requests_of_one_turn_get_different_users_in_the_order_of_the_requests(
    ranked: World,
) -> None:
    given = ranked.answer(*(ranked.request(agent) for agent in (4, 2, 5, 1, 3)))
    users = [each.assignment.user_id for each in given if isinstance(each, Assigned)]
    assert users == [1, 2, 3, 4]
    assert isinstance(given[-1], Empty)
    assert ranked.unhealthy() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM crm.users WHERE id = 1", "not_in_crm"),
        ("UPDATE crm.users SET is_enabled = false WHERE id = 1", "disabled"),
        ("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id = 1", "signed"),
        ("UPDATE crm.claims SET status = 'cancelled' WHERE user_id = 1", "all_claims_cancelled"),
        ("UPDATE user_call_scores SET last_outcome = 'no_claim' WHERE user_id = 1", "opted_out"),
        ("UPDATE user_call_scores SET is_active = false WHERE user_id = 1", "inactive"),
        ("DELETE FROM user_call_scores WHERE user_id = 1", "in_other_queue"),
    ],
)
def test_hazard_b4_a_user_whose_facts_changed_since_the_build_is_out_and_the_next_is_given(
    ranked: World, change: str, reason: str
) -> None:
    ranked.execute(change)
    assert ranked.held(1).user_id == 2
    (place, *_) = ranked.places(ranked.value("SELECT max(id) FROM assignment.generations"))
    assert (place.user_id, place.state, place.reason) == (1, "out", reason)
    (event,) = ranked.events("taken_out")
    assert (event["user_id"], event["queue"], event["details"]) == (1, UNSIGNED, {"reason": reason})
    assert ranked.unhealthy() == []


@pytest.mark.parametrize(
    ("change", "reason", "rest"),
    [
        ("next_call_after = :now + interval '1 hour'", "cooling_down", HOUR),
        ("created_at = :now - interval '1 hour'", "too_new", HOUR),
        (
            "next_call_after = :now + interval '1 minute', created_at = :now",
            "cooling_down",
            2 * HOUR,
        ),
    ],
    ids=["cooling down", "too new", "both"],
)
def test_a_user_who_rests_keeps_their_place_and_is_back_by_themselves(
    ranked: World, change: str, reason: str, rest: timedelta
) -> None:
    naive = ranked.now.replace(tzinfo=None)
    ranked.execute(
        "UPDATE user_call_scores SET "
        + change.replace(":now", "CAST(:now AS timestamp)")
        + " WHERE user_id = 1",
        now=naive,
    )
    assert ranked.held(1).user_id == 2
    back = ranked.now + rest
    (place, *_) = ranked.places(1)
    assert place == Place(1, 1, "waiting", available_from=back)
    (event,) = ranked.events("put_off")
    assert (event["user_id"], event["queue"], event["generation_id"]) == (1, UNSIGNED, 1)
    assert event["details"]["reason"] == reason
    ranked.now = back - TICK
    assert ranked.held(2).user_id == 2  # whose hold has expired
    ranked.now = back
    hold = ranked.held(3)
    assert (hold.user_id, hold.rank) == (1, 1)
    assert len(ranked.events("put_off")) == 1
    assert ranked.unhealthy() == []


def test_hazard_b12_who_rests_again_when_their_time_comes_waits_again(ranked: World) -> None:
    ranked.execute(
        "UPDATE user_call_scores SET next_call_after = :at WHERE user_id = 1",
        at=(ranked.now + HOUR).replace(tzinfo=None),
    )
    ranked.release(ranked.held(1))
    ranked.execute(
        "UPDATE user_call_scores SET next_call_after = :at WHERE user_id = 1",
        at=(ranked.now + 2 * HOUR).replace(tzinfo=None),
    )
    ranked.now += HOUR
    ranked.release(ranked.held(1))
    assert ranked.places(1)[0] == Place(1, 1, "waiting", available_from=ranked.now + HOUR)
    ranked.now += HOUR
    assert ranked.held(1).user_id == 1


def test_hazard_b5_a_long_run_of_ineligible_users_is_taken_out_turn_by_turn(world: World) -> None:
    count = INELIGIBLE_AT_MOST * 2
    world.add_agents(1)
    world.add_users(User(each, each) for each in range(1, count + 2))
    world.regenerate(UNSIGNED)
    world.execute("UPDATE crm.users SET is_enabled = false WHERE id <= :count", count=count)
    request = world.request(1)
    turns = 0
    answer = None
    while answer is None:
        turns += 1
        with world.transaction() as transaction:
            (answer,) = claim(
                transaction, [request], policies=loaded().policies, settings=world.settings
            )
        (out,) = world.column("SELECT count(*) FROM assignment.entries WHERE state = 'out'")
        assert out <= turns * 2 * INELIGIBLE_AT_MOST
    assert turns > 1
    assert isinstance(answer, Assigned)
    assert answer.assignment.user_id == count + 1
    assert len(world.events("taken_out")) == count


def test_hazard_b13_a_user_who_moved_to_another_dialer_queue_is_held_in_both(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1), outstanding(2, score=5)])
    world.regenerate(UNSIGNED)
    world.execute("UPDATE crm.users SET current_signature_file_id = 'file'")
    world.execute("UPDATE user_call_scores SET current_queue_type = :queue", queue=OUTSTANDING)
    world.execute(
        "INSERT INTO crm.claim_requirements (id, claim_id, type, status)"
        " VALUES ('new', 10, 'payslip', 'PENDING')"
    )
    world.regenerate(OUTSTANDING)
    assert world.held(1, OUTSTANDING).user_id == 1
    assert world.states(UNSIGNED) == {1: "held"}
    world.execute("UPDATE crm.users SET current_signature_file_id = NULL")
    assert isinstance(world.ask(2, UNSIGNED), Empty)
    assert world.unhealthy() == []


def test_a_user_held_by_another_lane_is_passed_over_and_marked_held(ranked: World) -> None:
    ranked.held(1)
    ranked.execute("UPDATE assignment.entries SET state = 'ready'")
    assert ranked.held(2).user_id == 2
    assert ranked.states() == {1: "held", 2: "held", 3: "ready", 4: "ready"}


@pytest.mark.parametrize(
    ("user", "agent", "index"),
    [(1, 99, "uq_assignments_active_user"), (99, 1, "uq_assignments_active_agent")],
)
def test_the_database_refuses_a_second_active_assignment(
    ranked: World, user: int, agent: int, index: str
) -> None:
    assert ranked.held(1).user_id == 1
    with pytest.raises(IntegrityError, match=index):
        ranked.execute(
            "INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank,"
            " score, reason, term, claimed_at, lease_expires_at) VALUES (:id, 'forged', :user,"
            " :agent, 'unsigned_users', 1, 0, 'new', 1, now(), now() + interval '5 minutes')",
            id=UUID(int=1),
            user=user,
            agent=agent,
        )


def test_hazard_b8_a_lapsed_hold_ends_in_the_claim_that_hands_its_user_out_again(
    ranked: World,
) -> None:
    lapsed = ranked.held(1)
    ranked.now = lapsed.lease_expires_at - SECOND
    assert ranked.held(2).user_id == 2
    ranked.now = lapsed.lease_expires_at
    given = ranked.held(3)
    assert given.user_id == lapsed.user_id
    assert given.id != lapsed.id
    assert ranked.rows(
        "SELECT state, version, ended_at FROM assignment.assignments WHERE id = :id", id=lapsed.id
    ) == [("expired", 2, ranked.now)]
    (event,) = ranked.events("offer_lapsed")
    assert (event["assignment_id"], event["agent_id"], event["user_id"]) == (lapsed.id, 1, 1)


def test_a_skipped_user_waits_and_then_has_their_place_again(ranked: World) -> None:
    begun = ranked.now
    ranked.skip(ranked.held(1))
    assert ranked.held(1).user_id == 2
    assert ranked.states() == {1: "waiting", 2: "held", 3: "ready", 4: "ready"}
    ranked.now = begun + ranked.settings.skip_everyone
    assert ranked.held(3).user_id == 1


def test_hazard_b3_who_skips_a_user_is_not_offered_them_for_an_hour(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    begun = world.now
    world.skip(world.held(1))
    world.now = begun + world.settings.skip_everyone - SECOND
    assert world.ask(2) == Empty(queue=UNSIGNED, retry_after=1.0, why={UNSIGNED: "waiting"})
    world.now = begun + world.settings.skip_everyone
    given = world.ask(1)
    assert given == Empty(queue=UNSIGNED, retry_after=30.0, why={UNSIGNED: "skipped_by_agent"})
    world.release(world.held(2))
    world.now = begun + world.settings.skip_agent - SECOND
    assert isinstance(world.ask(1), Empty)
    world.now = begun + world.settings.skip_agent
    assert world.held(1).user_id == 1


def test_empty_says_why(world: World) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1)])
    never_built = world.ask(1)
    assert isinstance(never_built, Unavailable)
    world.regenerate()
    hold = world.held(1)
    assert world.ask(2, None) == Empty(
        queue=None, retry_after=30.0, why={UNSIGNED: "all_held", OUTSTANDING: "none_in_pool"}
    )
    world.now = hold.lease_expires_at - 7 * SECOND
    assert world.ask(2) == Empty(queue=UNSIGNED, retry_after=7.0, why={UNSIGNED: "all_held"})
    world.complete(hold)
    assert world.ask(2) == Empty(queue=UNSIGNED, retry_after=30.0, why={UNSIGNED: "cooling_down"})


def test_hazard_d7_a_turn_of_a_term_that_is_over_commits_nothing(ranked: World) -> None:
    ranked.execute("UPDATE assignment.sequencer SET term = 2")
    with pytest.raises(StaleTerm, match="term 1 is over: the current term is 2"):
        ranked.ask(1)
    assert ranked.rows("SELECT * FROM assignment.requests") == []
    ranked.term = 2
    assert ranked.held(1).user_id == 1


def test_a_generation_without_users_is_empty_and_one_user_with_no_claims_is_handed_out(
    world: World,
) -> None:
    world.add_agents(1)
    world.regenerate(UNSIGNED)
    assert isinstance(world.ask(1), Empty)
    world.add_users([User(1, claims=()), User(2, claims=(Claim("cancelled"),))])
    world.now += DAY
    world.regenerate(UNSIGNED)
    assert world.held(1).user_id == 1


@pytest.fixture
def sequencer(world: World) -> Iterator[TransactionRunner]:
    """The line as a sequencer's process has it."""
    url = world.engine.url.render_as_string(hide_password=False)
    limit = timedelta(seconds=30)
    engine = connect(url, name="turns", statement_timeout=limit, index_plans_only=True)
    yield TransactionRunner(engine, dialer=loaded(), term=world.term)
    engine.dispose()


def test_what_a_claim_reads_does_not_grow_with_the_calls_that_have_ended(
    world: World, sequencer: TransactionRunner
) -> None:
    agents = range(1, 65)
    world.add_agents(*agents)
    world.add_users(User(each, each) for each in range(1, 3_000))
    world.regenerate(UNSIGNED)
    few = _read_by_calls(world, sequencer, agents, rounds=8)  # by now the plans are kept
    many = _read_by_calls(world, sequencer, agents, rounds=30)
    assert 0 < many < few * 1.5


def _read_by_calls(
    world: World, runner: TransactionRunner, agents: Sequence[int], *, rounds: int
) -> int:
    """What the last of so many rounds reads: all ask together, and nobody answers."""
    before = 0
    for _ in range(rounds):
        before = _read(world)
        asked = [world.request(agent) for agent in agents]
        given = runner.run(partial(_claim, world, asked))
        moves = [Complete(owner(answer.assignment), "no_answer") for answer in given]
        runner.run(partial(_finish, world, moves))
    return _read(world) - before


def _claim(
    world: World, asked: Sequence[ClaimRequest], transaction: FencedTransaction
) -> list[Assigned]:
    now = replace(transaction, now=world.now)
    given = claim(now, asked, policies=loaded().policies, settings=world.settings)
    return [each for each in given if isinstance(each, Assigned)]


def _finish(world: World, moves: Sequence[Complete], transaction: FencedTransaction) -> None:
    finish(replace(transaction, now=world.now), moves)
    transaction.connection.execute(text("SELECT pg_stat_force_next_flush()"))


def _read(world: World) -> int:
    """Entries of our indexes, and assignments that were gone through whole."""
    (count,) = world.column(
        "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname = 'assignment')"
        " + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'assignments')"
    )
    return int(count)


def test_user_ids_beyond_32_bits_go_all_the_way(world: World) -> None:
    first, second = 1 << 40, (1 << 40) + 1
    world.add_agents(1)
    world.add_users([User(first, 1), User(second, 2)])
    world.regenerate(UNSIGNED)
    hold = world.held(1)
    world.skip(hold)
    world.regenerate(UNSIGNED)
    given = world.held(1)
    assert (hold.user_id, given.user_id) == (first, second)
    world.complete(given)
    assert world.states() == {first: "waiting", second: "out"}
