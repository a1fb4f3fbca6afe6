"""A hold ends by its owner, once, with all that follows from it or with nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from assignment_workers.assignment.answers import Code, Empty, FinishAnswer, Finished, Held, Refused
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import (
    Complete,
    Move,
    Owner,
    Release,
    Renew,
    Skip,
)
from assignment_workers.policy.outcomes import LARGEST
from assignment_workers.policy.process_dialer import loaded
from tests.support.world import DAY, HOUR, SECOND, UNSIGNED, User, World, owner

# Section 4 of original-dialer: what an outcome adds to the score, hours until the next call, and
# whether it counts as successful. The score is 150 before.
SECTION_4: dict[str, tuple[int, int, bool]] = {
    "completed_form": (150, 24, True),
    "going_to_complete": (150, 72, True),
    "might_complete": (152, 24, False),
    "call_back": (150, 24, True),
    "no_answer": (151, 4, False),
    "missed_call": (150, 0, False),
    "hung_up": (152, 4, False),
    "bad_number": (200, 672, False),
    "no_claim": (200, 0, False),
    "not_interested": (250, 672, False),
    "do_not_contact": (200, 0, False),
}
ACTIONS = {
    "completed_form": ["send_sms"],
    "going_to_complete": ["send_magic_link", "send_sms", "review"],
    "might_complete": ["send_sms", "review"],
    "call_back": ["send_sms"],
    "no_answer": [],
    "missed_call": ["send_sms", "review"],
    "hung_up": [],
    "bad_number": ["flag_number", "review"],
    "no_claim": [],
    "not_interested": [],
    "do_not_contact": [],
}
"""What others are to do about a first call that ended so."""
NEED_A_CALLBACK = {"call_back", "missed_call"}
TAKE_A_CALLBACK = {"going_to_complete", "might_complete", *NEED_A_CALLBACK}


@pytest.fixture
def hold(world: World) -> Held:
    """Agent 1 holds user 1, of score 150; users 2 and 3 follow in the dialer queue."""
    world.add_agents(1, 2, 3)
    world.add_users([User(1, 150), User(2, 160), User(3, 170)])
    world.regenerate(UNSIGNED)
    held = world.held(1)
    assert held.user_id == 1
    return held


def everything(world: World) -> dict[str, list[Any]]:
    """All that a finish could change, events aside."""
    tables = (
        "assignment.assignments",
        "assignment.entries",
        "assignment.requests",
        "user_call_scores",
        "callbacks",
        "conversions",
    )
    return {each: world.rows(f"SELECT t::text FROM {each} t ORDER BY 1") for each in tables}


def refused(answer: FinishAnswer) -> Code:
    assert isinstance(answer, Refused), answer
    return answer.code


@pytest.mark.parametrize("outcome", loaded().outcomes_by_name)
def test_an_outcome_has_the_effects_of_section_4(world: World, hold: Held, outcome: str) -> None:
    score, hours, success = SECTION_4[outcome]
    callback_at = world.now + 2 * DAY if outcome in NEED_A_CALLBACK else None
    world.now += SECOND
    done = world.complete(hold, outcome, notes="said so", callback_at=callback_at)
    ended = hold.model_copy(update={"state": "completed", "version": 2})
    assert done == Finished(outcome="completed", assignment=ended)
    again_at = callback_at or (world.now + hours * HOUR if hours else None)
    assert world.rows(
        "SELECT current_score, total_attempts, successful_calls, last_outcome, is_active,"
        " next_call_after AT TIME ZONE 'UTC', last_call_at AT TIME ZONE 'UTC'"
        " FROM user_call_scores WHERE user_id = 1"
    ) == [(score, 1, int(success), outcome, True, again_at, world.now)]
    assert world.rows(
        "SELECT state, version, outcome, notes, ended_at, ended_xid IS NOT NULL"
        " FROM assignment.assignments"
    ) == [("completed", 2, outcome, "said so", world.now, True)]
    assert world.states() == {1: "out", 2: "ready", 3: "ready"}
    (event,) = world.events("completed")
    assert (event["assignment_id"], event["agent_id"]) == (hold.id, 1)
    assert event["details"] == {"outcome": outcome, "actions": ACTIONS[outcome]}
    assert world.unhealthy() == []


@pytest.mark.parametrize("outcome", sorted(TAKE_A_CALLBACK))
def test_a_promised_callback_is_kept_to_the_minute(world: World, hold: Held, outcome: str) -> None:
    at = world.now + timedelta(minutes=10)
    assert isinstance(world.complete(hold, outcome, callback_at=at), Finished)
    assert world.rows(
        "SELECT user_id, scheduled_for AT TIME ZONE 'UTC', callback_reason, preferred_agent_id,"
        " original_call_session_id, status, queue_type FROM callbacks"
    ) == [(1, at, outcome, 1, hold.id, "pending", UNSIGNED)]
    following = "SELECT next_call_after AT TIME ZONE 'UTC' FROM user_call_scores ORDER BY user_id"
    assert world.column(following) == [at, None, None]
    (event,) = world.events("callback_promised")
    assert event["details"]["callback_id"] == str(world.value("SELECT id FROM callbacks"))


def test_each_further_attempt_adds_its_own_step(world: World, hold: Held) -> None:
    world.release(hold)
    for attempts, score, outcome, after in (
        (4, 10, "no_answer", 11),
        (5, 10, "no_answer", 12),
        (9, 10, "no_answer", 12),
        (10, 10, "no_answer", 14),
        (30, 10, "completed_form", 13),
        (0, 199, "bad_number", 249),
        (10, 199, "completed_form", 200),
        (0, 230, "completed_form", 230),
        (0, -7, "hung_up", 0),
        (LARGEST, LARGEST - 1, "no_answer", LARGEST),  # as a dialer may have left them
    ):
        world.execute(
            "UPDATE user_call_scores SET current_score = :score, total_attempts = :attempts,"
            " next_call_after = NULL WHERE user_id = 1",
            score=score,
            attempts=attempts,
        )
        world.regenerate(UNSIGNED)
        world.execute("UPDATE user_call_scores SET is_active = user_id = 1")
        world.complete(world.held(1), outcome)
        assert world.rows(
            "SELECT current_score, total_attempts FROM user_call_scores WHERE user_id = 1"
        ) == [(after, min(attempts + 1, LARGEST))], (attempts, score, outcome)


def test_a_wrong_outcome_is_refused_and_changes_nothing(world: World, hold: Held) -> None:
    before = everything(world)
    for outcome, hours, notes in (
        ("won_the_lottery", None, None),
        ("call_back", None, None),
        ("missed_call", None, None),
        ("call_back", 0, None),
        ("call_back", -1, None),
        ("no_answer", 1, None),
        ("do_not_contact", None, None),
        ("do_not_contact", None, " \n"),
    ):
        callback_at = None if hours is None else world.now + hours * HOUR
        answer = world.complete(hold, outcome, notes=notes, callback_at=callback_at)
        code = Code.UNKNOWN_OUTCOME if outcome == "won_the_lottery" else Code.MALFORMED
        assert refused(answer) == code, (outcome, hours, notes)
    assert everything(world) == before


WAYS = ("completed", "skipped", "released", "renewed")


def say(world: World, way: str, who: Owner) -> FinishAnswer:
    """This word about a hold, in a turn of its own."""
    match way:
        case "completed":
            return world.move(Complete(who, "no_answer"))
        case "skipped":
            return world.move(Skip(who, world.settings.skip_everyone))
        case "released":
            return world.move(Release(who))
        case _:
            return world.move(Renew(who, world.settings.lease))


ENDS = ("completed", "skipped", "released")


@pytest.mark.parametrize("way", WAYS)
def test_hazard_b10_a_foreign_stale_or_unknown_word_is_refused_and_recorded(
    world: World, hold: Held, way: str
) -> None:
    before = everything(world)
    words = {
        Code.NOT_OWNER: owner(hold, agent=2),
        Code.STALE_VERSION: owner(hold, version=2),
        Code.UNKNOWN_ASSIGNMENT: Owner(UUID(int=1), 1, 1),
    }
    for code, who in words.items():
        assert refused(say(world, way, who)) == code
    assert everything(world) == before
    races = world.events("ASSIGNMENT_RACE_CONDITION")
    assert [race["details"]["kind"] for race in races] == [Code.NOT_OWNER, Code.STALE_VERSION]
    assert [(race["agent_id"], race["user_id"]) for race in races] == [(2, 1), (1, 1)]


@pytest.mark.parametrize("first", [*ENDS, "expired"])
@pytest.mark.parametrize("then", WAYS)
def test_hazard_d9_a_second_word_is_a_replay_if_it_is_the_same_and_refused_if_not(
    world: World, hold: Held, first: str, then: str
) -> None:
    if first == "expired":
        world.now = hold.lease_expires_at
        assert world.expire() == 1
    else:
        say(world, first, owner(hold))
    before, events = everything(world), len(world.events())
    world.now += SECOND
    answer = say(world, then, owner(hold))
    if first == then:
        ended = hold.model_copy(update={"state": first, "version": 2})
        assert answer == Finished.model_validate(
            {"outcome": first, "assignment": ended, "replayed": True}
        )
        assert len(world.events()) == events
    else:
        assert refused(answer) == Code.NOT_ACTIVE
        assert [event["kind"] for event in world.events()[events:]] == ["ASSIGNMENT_RACE_CONDITION"]
    assert everything(world) == before


def test_completing_again_with_another_outcome_is_refused(world: World, hold: Held) -> None:
    world.complete(hold, "no_answer")
    before = everything(world)
    assert refused(world.complete(hold, "hung_up")) == Code.NOT_ACTIVE
    assert everything(world) == before


def test_a_version_may_be_left_out(world: World, hold: Held) -> None:
    anyone = Owner(hold.id, hold.agent_id)
    for replayed in (False, True):
        answer = world.move(Release(anyone))
        assert isinstance(answer, Finished)
        assert answer.replayed is replayed


def test_a_released_user_is_claimable_at_once_at_the_same_place(world: World, hold: Held) -> None:
    before = world.rows("SELECT t::text FROM user_call_scores t ORDER BY 1")
    assert isinstance(world.release(hold), Finished)
    assert world.rows("SELECT t::text FROM user_call_scores t ORDER BY 1") == before
    assert world.states() == {1: "ready", 2: "ready", 3: "ready"}
    again = world.held(2)
    assert (again.user_id, again.rank) == (1, hold.rank)
    assert again.id != hold.id


def test_hazard_b16_a_skipped_user_waits_and_their_score_stays(world: World, hold: Held) -> None:
    before = world.rows("SELECT t::text FROM user_call_scores t ORDER BY 1")
    world.now += SECOND
    assert isinstance(world.skip(hold), Finished)
    assert world.rows("SELECT t::text FROM user_call_scores t ORDER BY 1") == before
    place = world.places(world.value("SELECT id FROM assignment.generations"))[0]
    assert (place.state, place.available_from) == (
        "waiting",
        world.now + world.settings.skip_everyone,
    )


def test_a_renewal_lengthens_the_lease_and_never_shortens_it(world: World, hold: Held) -> None:
    world.now = hold.lease_expires_at - SECOND
    until = world.now + world.settings.lease
    renewed = hold.model_copy(update={"lease_expires_at": until, "accepted_at": world.now})
    assert say(world, "renewed", owner(hold)) == Finished(outcome="renewed", assignment=renewed)
    world.set(lease=SECOND)
    assert say(world, "renewed", owner(hold)) == Finished(outcome="renewed", assignment=renewed)
    world.now = hold.lease_expires_at
    assert world.expire() == 0
    assert isinstance(world.complete(hold), Finished)


def test_whoever_comes_after_the_lease_but_before_anybody_noticed_is_in_time(
    world: World, hold: Held
) -> None:
    world.now = hold.lease_expires_at + HOUR
    assert isinstance(world.complete(hold), Finished)
    assert world.expire() == 0


@pytest.mark.parametrize("broken", ["callbacks", "assignment.events"])
def test_hazard_d6_a_completion_that_fails_half_way_leaves_nothing(
    world: World, hold: Held, broken: str
) -> None:
    before = everything(world), world.events()
    world.execute(f"ALTER TABLE {broken} ADD CONSTRAINT broken CHECK (false) NOT VALID")
    with pytest.raises(IntegrityError, match="broken"):
        world.complete(hold, "call_back", callback_at=world.now + DAY)
    assert (everything(world), world.events()) == before
    world.execute(f"ALTER TABLE {broken} DROP CONSTRAINT broken")
    assert isinstance(world.complete(hold, "call_back", callback_at=world.now + DAY), Finished)


def test_an_agent_is_given_the_next_user_after_finishing(world: World, hold: Held) -> None:
    world.complete(hold)
    second = world.held(1)
    assert second.user_id == 2
    world.skip(second)
    third = world.held(1)
    assert third.user_id == 3
    world.complete(third, "no_claim")
    assert isinstance(world.ask(1), Empty)
    assert world.unhealthy() == []


def test_a_score_row_that_is_gone_is_made_again(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    world.regenerate(UNSIGNED)
    hold = world.held(1)
    world.execute("DELETE FROM user_call_scores")
    world.complete(hold, "no_answer")
    sql = "SELECT user_id, current_score, total_attempts FROM user_call_scores"
    assert world.rows(sql) == [(1, 1, 1)]


def moves_of(world: World, holds: list[Held], chance: Random) -> list[Move]:
    """What agents could say about these holds in one moment, some of it twice and some of it wrong."""
    moves: list[Move] = []
    for _ in range(chance.randint(2, 12)):
        hold = chance.choice(holds)
        agent = chance.choices([hold.agent_id, 3], [6, 1])[0]
        version = chance.choices([1, 2, None], [6, 1, 2])[0]
        who = Owner(chance.choices([hold.id, UUID(int=1)], [9, 1])[0], agent, version)
        outcome = chance.choice(["no_answer", "no_claim", "call_back", "bad_number", "nonsense"])
        callback_at = chance.choice([None, world.now + HOUR, world.now - HOUR])
        may: list[Move] = [
            Complete(who, outcome, chance.choice([None, "said so"]), callback_at),
            Complete(who, "hung_up"),
            Skip(who, world.settings.skip_everyone),
            Release(who),
            Renew(who, chance.choice([SECOND, HOUR])),
        ]
        moves.append(chance.choice(may))
    return moves


def test_many_moves_of_one_turn_do_what_they_do_one_after_the_other(world: World) -> None:
    world.add_agents(1, 2, 3)
    world.add_users([User(each, each) for each in (1, 2, 3)])
    world.regenerate(UNSIGNED)
    holds = [world.held(2), world.held(1)]
    world.execute("DELETE FROM user_call_scores WHERE user_id = 2")
    world.now += SECOND
    chance = Random(11)
    answers: set[str] = set()
    for _ in range(60):
        moves = moves_of(world, holds, chance)
        apart = effects(world, [[move] for move in moves])
        together = effects(world, [moves])
        assert together == apart, moves
        answers |= {getattr(each, "code", each.outcome) for each in together[0]}
    assert answers == {
        *WAYS,
        Code.NOT_OWNER,
        Code.STALE_VERSION,
        Code.NOT_ACTIVE,
        Code.UNKNOWN_ASSIGNMENT,
        Code.UNKNOWN_OUTCOME,
        Code.MALFORMED,
    }


class _Undone(Exception):
    """The turn is not to be kept."""


def effects(
    world: World, lists: list[list[Move]]
) -> tuple[list[Finished | Refused], list[list[str]]]:
    """The answers, and every row as it then stands; all of it undone afterwards."""
    try:
        with world.transaction() as given:
            transaction = replace(given, randomness=Random(5))
            answers = [each for moves in lists for each in finish(transaction, moves)]
            stand = [
                transaction.connection.execute(
                    text(f"SELECT to_jsonb(t) - 'ended_xid' - {less} FROM {each} t")
                )
                .scalars()
                .all()
                for each, less in (
                    ("assignment.assignments", "''"),
                    ("assignment.entries", "''"),
                    ("assignment.events", "'id'"),
                    ("user_call_scores", "''"),
                    ("callbacks", "''"),
                )
            ]
            raise _Undone
    except _Undone:
        by_text = [sorted(map(repr, rows)) for rows in stand]
        return answers, by_text


def test_many_moves_cost_as_many_statements_as_one(world: World) -> None:
    world.add_agents(*range(1, 11))
    world.add_users([User(each, each) for each in range(1, 11)])
    world.regenerate(UNSIGNED)
    holds = [world.held(agent) for agent in range(1, 11)]
    sent: list[str] = []
    event.listen(world.engine, "before_cursor_execute", lambda *said: sent.append(said[2]))
    counts = []
    for some in (holds[:1], holds[1:]):
        sent.clear()
        moves = [Complete(owner(hold), "no_answer") for hold in some]
        assert all(isinstance(each, Finished) for each in world.run(finish, moves))
        counts.append(len(sent))
    assert counts == [3, 3]


def test_a_review_is_asked_for_at_the_third_call_that_nobody_answers(world: World) -> None:
    world.add_agents(1)
    world.add_users([User(1)])
    for _ in range(3):
        world.regenerate(UNSIGNED)
        world.complete(world.held(1), "no_answer")
        world.now += DAY
    told = [each["details"]["actions"] for each in world.events("completed")]
    assert told == [[], [], ["review"]]


def test_an_overridden_outcome_has_its_own_score_and_delay(world: World, hold: Held) -> None:
    outcomes = loaded().overridden({"no_answer": {"score": 7, "delay_seconds": 60}})
    moves = [Complete(owner(hold), "no_answer")]
    assert isinstance(world.run(finish, moves, outcomes=outcomes)[0], Finished)
    assert world.rows(
        "SELECT current_score, next_call_after AT TIME ZONE 'UTC' FROM user_call_scores"
        " WHERE user_id = 1"
    ) == [(157, world.now + 60 * SECOND)]
