"""Lanes: each turn writes only what is its lane's, or holds the other's row too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from psycopg import OperationalError
from sqlalchemy import text

from assignment_workers.assignment.answers import Assigned, Empty, Finished, RequestAnswer
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.lanes import ONE_LANE, Lanes, checked_lanes, lanes_of
from assignment_workers.assignment.lifecycle.expire import expire
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release, Skip
from assignment_workers.assignment.reports.status import sequencer_statuses
from assignment_workers.assignment.transaction import FencedTransaction, OtherLanes
from assignment_workers.errors import UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import DEFAULT_LANE
from assignment_workers.sequencer.term import APPLICATION, Candidacy
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from tests.support.processes import wait_until
from tests.support.sessions import WAITING
from tests.support.world import HOUR, OUTSTANDING, UNSIGNED, User, World, outstanding

OTHER = "outstanding"
LANES = Lanes({OUTSTANDING: OTHER})
SETTING = f"{OTHER}={OUTSTANDING}"


def line(world: World, lane: str = DEFAULT_LANE) -> TransactionRunner:
    """A lane's line under the world's term."""
    world.execute(
        "INSERT INTO assignment.sequencer (lane, term) VALUES (:lane, 1) ON CONFLICT DO NOTHING",
        lane=lane,
    )
    return TransactionRunner(world.engine, dialer=loaded(), term=1, lane=lane, lanes=LANES)


def ask(
    world: World,
    on: TransactionRunner,
    agent: int,
    queue: str | None = None,
    request_id: str | None = None,
) -> RequestAnswer:
    request = world.request(agent, queue, request_id=request_id)
    work = partial(claim, policies=world.policies, settings=world.settings)
    (answer,) = on.run(lambda transaction: work(transaction, [request]))
    assert answer is not None
    return answer


def assigned(answer: RequestAnswer) -> tuple[int, str]:
    assert isinstance(answer, Assigned), answer
    return answer.assignment.user_number, answer.assignment.queue


@contextmanager
def locked(world: World, lane: str) -> Iterator[None]:
    """While a turn of this lane is under way."""
    with world.engine.begin() as connection:
        connection.execute(
            text("SELECT 1 FROM assignment.sequencer WHERE lane = :lane FOR UPDATE"),
            {"lane": lane},
        )
        yield


def waits(world: World, what: Callable[[], object], lane: str) -> bool:
    """Whether this waits for the end of the lane's turn; it is done when this returns."""
    thread = threading.Thread(target=what)
    with locked(world, lane):
        thread.start()
        wait_until(lambda: not thread.is_alive() or world.column(WAITING), "it to end or to wait")
        waited = thread.is_alive()
    thread.join(20)
    assert not thread.is_alive()
    return waited


@pytest.fixture
def served(world: World) -> World:
    """An agent, and somebody in each dialer queue."""
    line(world, OTHER)
    world.add_agents(1, 2, 3)
    world.add_users([User(11, 1), User(12, 2), outstanding(21, 1), outstanding(22, 2)])
    world.regenerate()
    return world


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("outstanding", "'outstanding' is not of the form lane=dialer_queue"),
        ("a=nobody", "no dialer queue 'nobody'; there are unsigned_users, outstanding_requests"),
        (f"a={UNSIGNED}, b={UNSIGNED}", "dialer queue unsigned_users is in lane a already"),
        (f"a={UNSIGNED}, a={OUTSTANDING}", "lane a stands twice"),
        (f"Big={UNSIGNED}", "lane 'Big': a name is up to 20 small letters"),
        (f"default={UNSIGNED}", "lane 'default': a name is"),
    ],
)
def test_a_wrong_lane_is_told_in_one_line(said: str, wrong: str) -> None:
    with pytest.raises(UsageError) as told:
        checked_lanes(
            Settings.from_environment({"ASSIGNMENT_WORKERS_LANES": said}), loaded().policies
        )
    assert str(told.value).startswith(f"ASSIGNMENT_WORKERS_LANES={said!r}: ")
    assert wrong in str(told.value)
    assert "\n" not in str(told.value)


def test_dialer_queues_that_are_not_named_are_the_default_lanes() -> None:
    lanes = lanes_of(Settings.from_environment({"ASSIGNMENT_WORKERS_LANES": SETTING}))
    assert lanes.names == (DEFAULT_LANE, OTHER)
    assert lanes.queues(DEFAULT_LANE, loaded().policies) == [UNSIGNED]
    assert lanes.celery_queues == ["assignment", "assignment.outstanding"]
    assert lanes.way_to(UNSIGNED) == "assignment"
    assert lanes.way_to(OUTSTANDING) == "assignment.outstanding"
    assert lanes_of(Settings.from_environment({})) is ONE_LANE


def test_a_lane_hands_out_its_own_while_another_is_in_a_turn(served: World) -> None:
    default, other = line(served), line(served, OTHER)
    assert not waits(served, lambda: ask(served, other, 1, OUTSTANDING), DEFAULT_LANE)
    assert not waits(served, lambda: ask(served, default, 2, UNSIGNED), OTHER)
    assert served.rows("SELECT agent_id, user_id FROM assignment.assignments ORDER BY 1") == [
        (1, 21),
        (2, 11),
    ]


def test_a_request_without_a_queue_takes_the_first_that_has_one_whichever_lane_asks(
    served: World,
) -> None:
    """In the policies' order, as with one lane."""
    assert assigned(ask(served, line(served, OTHER), 1)) == (11, UNSIGNED)
    assert assigned(ask(served, line(served), 2)) == (12, UNSIGNED)
    assert assigned(ask(served, line(served), 3)) == (21, OUTSTANDING)
    assert served.unhealthy() == []


def test_it_takes_of_its_own_lane_without_the_other_where_that_has_nobody(served: World) -> None:
    for agent in (1, 2):
        ask(served, line(served), agent)
    taken: list[RequestAnswer] = []
    other = line(served, OTHER)
    assert not waits(served, lambda: taken.append(ask(served, other, 3)), DEFAULT_LANE)
    assert assigned(taken[0]) == (21, OUTSTANDING)


def test_who_has_waited_long_enough_in_another_lane_comes_first(served: World) -> None:
    default, other = line(served), line(served, OTHER)
    for agent in (1, 2):
        answer = ask(served, default, agent)
        assert isinstance(answer, Assigned)
        skip = Skip(Owner(answer.assignment.id, agent), served.settings.skip_everyone)
        default.run(partial(finish, moves=[skip]))
    served.execute(
        "UPDATE assignment.entries SET available_from = now() - interval '1 s' WHERE user_id = 11"
        " AND state = 'waiting'"
    )
    assert assigned(ask(served, other, 3)) == (11, UNSIGNED)


def test_one_request_id_has_one_answer_whichever_lanes_it_comes_to(served: World) -> None:
    first = ask(served, line(served), 1, UNSIGNED, "the same")
    again = ask(served, line(served, OTHER), 1, UNSIGNED, "the same")
    assert isinstance(first, Assigned)
    assert isinstance(again, Assigned)
    assert (again.assignment.id, again.replayed) == (first.assignment.id, True)


@pytest.mark.parametrize("queues", [(UNSIGNED, UNSIGNED), (UNSIGNED, OUTSTANDING)])
def test_it_has_one_answer_where_both_lanes_come_to_it_at_once(
    served: World, queues: tuple[str, str]
) -> None:
    """The second finds the first's row as it writes its own, and tries again."""
    answers: list[RequestAnswer] = []
    ready = threading.Barrier(2)

    def slowly(transaction: FencedTransaction, queue: str) -> list[RequestAnswer | None]:
        request = served.request(1, queue, request_id="the same")
        found = claim(transaction, [request], policies=served.policies, settings=served.settings)
        if not ready.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                ready.wait(0.5)  # broken: the other waits for this one's row
        return found

    def work(lane: str, queue: str) -> None:
        (answer,) = line(served, lane).run(lambda transaction: slowly(transaction, queue))
        assert answer is not None
        answers.append(answer)

    threads = [
        threading.Thread(target=work, args=each)
        for each in zip((DEFAULT_LANE, OTHER), queues, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 2
    assert len({assigned(each) for each in answers}) == 1
    assert served.value("SELECT count(*) FROM assignment.assignments") == 1


def test_a_finish_that_comes_to_another_lane_waits_for_the_users_own(served: World) -> None:
    answer = ask(served, line(served), 1, UNSIGNED)
    assert isinstance(answer, Assigned)
    done: list[object] = []
    owner = Owner(answer.assignment.id, 1)
    other = line(served, OTHER)

    def release() -> None:
        done.extend(other.run(lambda transaction: finish(transaction, [Release(owner)])))

    assert waits(served, release, DEFAULT_LANE)
    assert isinstance(done[0], Finished)
    assert served.unhealthy() == []


def test_a_user_with_places_in_two_lanes_is_held_in_both_and_given_back_in_both(
    served: World,
) -> None:
    """Who signed since the last build stands in both dialer queues until the next."""
    served.execute("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id = 11")
    served.execute(
        "INSERT INTO crm.claim_requirements (id, claim_id, type, status, claim_requirement_reason)"
        " VALUES ('new', 110, 'payslip', 'PENDING', 'asked')"
    )
    served.execute(
        f"UPDATE public.user_call_scores SET current_queue_type = '{OUTSTANDING}',"
        " current_score = 0 WHERE user_id = 11"
    )
    served.regenerate(OUTSTANDING)
    other = line(served, OTHER)
    answers: list[RequestAnswer] = []
    assert waits(served, lambda: answers.append(ask(served, other, 1, OUTSTANDING)), DEFAULT_LANE)
    assert assigned(answers[0]) == (11, OUTSTANDING)
    assert served.column("SELECT state FROM assignment.entries WHERE user_id = 11") == ["held"] * 2
    served.execute(
        "UPDATE assignment.assignments SET claimed_at = now() - interval '1 hour',"
        " lease_expires_at = now() - interval '1 s'"
    )
    lapse = partial(expire, settings=served.settings)
    assert waits(served, lambda: other.run(lapse), DEFAULT_LANE)
    assert served.column("SELECT state FROM assignment.entries WHERE user_id = 11") == ["ready"] * 2


def test_lapsed_holds_end_on_their_own_lane(served: World) -> None:
    default, other = line(served), line(served, OTHER)
    ask(served, default, 1, UNSIGNED)
    ask(served, other, 2, OUTSTANDING)
    served.execute(
        "UPDATE assignment.assignments SET claimed_at = now() - interval '1 hour',"
        " lease_expires_at = now() - interval '1 s'"
    )
    assert len(other.run(partial(expire, settings=served.settings)).ended) == 1
    assert served.rows("SELECT agent_id, state FROM assignment.assignments ORDER BY 1") == [
        (1, "active"),
        (2, "expired"),
    ]
    assert assigned(ask(served, other, 1, OUTSTANDING)) == (21, OUTSTANDING), "not the lapsed one"


def test_a_publication_waits_for_every_lane(served: World) -> None:
    number = served.build(UNSIGNED)
    default = line(served)
    assert waits(
        served, lambda: default.run(lambda transaction: publish(transaction, number)), OTHER
    )
    assert (
        served.value("SELECT state FROM assignment.generations WHERE id = :number", number=number)
        == "published"
    )


def test_with_one_lane_no_turn_asks_for_another(served: World) -> None:
    with TransactionRunner(served.engine, dialer=loaded(), term=1).transaction() as transaction:
        transaction.require_lanes(OUTSTANDING)
        transaction.require_all_lanes()
        assert transaction.queues_of_other_lanes == []
    with line(served).transaction() as transaction, pytest.raises(OtherLanes):
        transaction.require_lanes(OUTSTANDING)


def test_terms_of_lanes_never_meet_and_sequencers_that_disagree_do_not_lead(
    world: World, database_url: str
) -> None:
    default = Candidacy(database_url, dialer=loaded(), lanes=LANES)
    other = Candidacy(database_url, dialer=loaded(), lane=OTHER, lanes=LANES)
    old = Candidacy(database_url, dialer=loaded())
    try:
        first, second = default.try_to_lead(), other.try_to_lead()
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (2, 3)
        statuses = {}
        with world.engine.connect() as connection:
            for one in sequencer_statuses(
                connection, application=APPLICATION, lanes=LANES, queues=loaded().policies
            ):
                statuses[one.lane] = (one.term, one.leader is not None, one.standbys)
        assert statuses == {DEFAULT_LANE: (2, True, 0), OTHER: (3, True, 0)}
        default.close()
        wrong = old.disagreement()
        assert wrong is not None
        assert wrong.startswith("lane outstanding is led with outstanding_requests")
        with pytest.raises(OperationalError, match="ASSIGNMENT_WORKERS_LANES"):
            old.try_to_lead()
        old.close()
        third = default.try_to_lead()
        assert third is not None
        assert third.number == 4
        assert default.earlier[0] == first.mark
        other.close()
        default.close()
        last = old.try_to_lead()
        assert last is not None, "nobody else leads: the new lanes stand"
        assert last.number == 5
    finally:
        for each in (default, other, old):
            each.close()
    settings = Settings.from_environment({"ASSIGNMENT_WORKERS_LANES": SETTING})
    with world.engine.connect() as connection:
        assert check(connection, dialer=loaded(), settings=settings, bound=HOUR) == []


def test_where_nobody_is_claimable_in_either_lane_both_say_why(served: World) -> None:
    default, other = line(served), line(served, OTHER)
    for agent in (1, 2):
        ask(served, default, agent, UNSIGNED)
    served.execute("DELETE FROM assignment.entries WHERE user_id IN (21, 22)")
    for on in (default, other):
        answer = ask(served, on, 3)
        assert isinstance(answer, Empty), answer
        assert answer.why is not None
        assert answer.why.keys() == {UNSIGNED, OUTSTANDING}


def test_that_there_is_nobody_is_said_only_while_no_other_lane_can_give_somebody_back(
    served: World,
) -> None:
    default, other = line(served), line(served, OTHER)
    for agent in (1, 2):
        ask(served, default, agent, UNSIGNED)
    served.execute("DELETE FROM assignment.entries WHERE user_id IN (21, 22)")
    answers: list[RequestAnswer] = []
    assert waits(served, lambda: answers.append(ask(served, other, 3)), DEFAULT_LANE)
    assert isinstance(answers[0], Empty)
