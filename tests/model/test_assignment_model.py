"""The real operations, in any order, against the dialer in memory (guarantees 1, 2, 4, 5 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from assignment_workers.assignment import convert
from assignment_workers.assignment.answers import (
    Assigned,
    CommandAnswer,
    Done,
    FinishAnswer,
    Finished,
    Held,
    RequestAnswer,
)
from assignment_workers.assignment.doctor import repair
from assignment_workers.assignment.finish import Owner, complete, release, renew, skip
from assignment_workers.assignment.history import check
from assignment_workers.assignment.pause import pause, resume
from assignment_workers.assignment.request import Request
from assignment_workers.policy.queues import POLICIES
from tests.model.dialer import CALLBACK_AFTER, OUTCOMES, Dialer, Hold, Said, small
from tests.world import BOTH, OUTSTANDING, SECOND, UNSIGNED, Claim, Requirement, User, World, opened

AGENTS = some.sampled_from([1, 2, 3, 4])
ANYBODY = some.sampled_from([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5, 99])
LATE = some.sampled_from([None, None, None, None, None, -1, 0, 1])
QUEUES = some.sampled_from(BOTH)
ANY_QUEUE = some.sampled_from([None, *BOTH])
VERSIONS = some.sampled_from([1, 1, None, 2])
FOREIGN = some.sampled_from([None, None, None, 1, 2])
WAYS = some.sampled_from(["completed", "completed", "skipped", "released", "renewed"])
CALLED = some.sampled_from(list(OUTCOMES))
Move = tuple[int, str | None, str, str]
MOVES = some.lists(some.tuples(AGENTS, ANY_QUEUE, WAYS, CALLED), min_size=2, max_size=6)
WAITS = some.sampled_from([1, 60, 299, 300, 900, 3600, 4 * 3600])
USERS = some.integers(1, 14)
FACTS = {
    "is_enabled": "UPDATE crm.users SET is_enabled = NOT is_enabled WHERE id = :user",
    "is_signed": "UPDATE crm.users SET current_signature_file_id"
    " = CASE coalesce(current_signature_file_id, '') WHEN '' THEN 'file' ELSE '' END"
    " WHERE id = :user",
    "has_live_claim": "UPDATE crm.claims SET status"
    " = CASE status WHEN 'open' THEN 'cancelled' ELSE 'open' END WHERE user_id = :user",
    "has_pending_requirement": "UPDATE crm.claim_requirements SET status"
    " = CASE status WHEN 'PENDING' THEN 'COMPLETED' ELSE 'PENDING' END WHERE claim_id = :user * 10",
    "is_active": "UPDATE user_call_scores SET is_active = NOT is_active WHERE user_id = :user",
}


class Machine(RuleBasedStateMachine):
    """Does each step to the database and to the dialer in memory; they must say the same."""

    holds = Bundle("holds")
    requests = Bundle("requests")
    generations = Bundle("generations")

    def __init__(self, world: World) -> None:
        super().__init__()
        empty(world)
        self.world = world
        self.dialer: Dialer = small(world.now, world.settings)
        self.held: dict[str, Held] = {}
        """By the request that they answered first."""
        world.add_users(
            User(
                user.id,
                user.score,
                queue=user.queue,
                signature="file" if user.is_signed else None,
                claims=(Claim("open", (Requirement(),)),),
                created_at=user.created_at,
            )
            for user in self.dialer.users.values()
        )

    @initialize(target=generations, queues=some.sampled_from([BOTH] * 7 + [(UNSIGNED,)]))
    def open(self, queues: tuple[str, ...]) -> object:
        """Most runs begin with both dialer queues published."""
        numbers = [self.build(queue) for queue in queues]
        for number in numbers:
            self.publish(number)
        return multiple(*numbers)

    @rule(target=holds, moves=MOVES)
    def work(self, moves: Sequence[Move]) -> object:
        """What agents do all day: ask for a user, and finish whom they have."""
        return multiple(*self._work(moves))

    @rule(
        target=holds,
        queue=QUEUES,
        before=MOVES,
        between=MOVES,
        seconds=some.sampled_from([0, 0, 300, 900]),
        order=some.permutations([0, 1]),
    )
    def rebuild(
        self,
        queue: str,
        before: Sequence[Move],
        between: Sequence[Move],
        *,
        seconds: int,
        order: Sequence[int],
    ) -> object:
        """The same, while two generations are built; they may be published in the wrong order."""
        new = self._work(before)
        numbers = [self.build(queue)]
        self.wait(seconds)
        new += self._work(between)
        numbers.append(self.build(queue))
        for each in order:
            self.publish(numbers[each])
        return multiple(*new)

    def _work(self, moves: Sequence[Move]) -> list[str]:
        new: list[str] = []
        for agent, queue, way, outcome in moves:
            hold = self.dialer.active().get(agent)
            if hold is not None:
                self._finish(hold.request_id, agent, hold.version, way, outcome)
            else:
                new += self._ask([self.world.request(agent, queue)])
        return new

    @rule(target=holds, agent=ANYBODY, queue=ANY_QUEUE, late=LATE)
    def ask_alone(self, agent: int, queue: str | None, late: int | None) -> object:
        deadline = None if late is None else self.world.now + late * SECOND
        return multiple(*self._ask([self.world.request(agent, queue, deadline=deadline)]))

    @rule(target=holds, asks=some.lists(some.tuples(ANYBODY, ANY_QUEUE), min_size=2, max_size=9))
    def ask_together(self, asks: list[tuple[int, str | None]]) -> object:
        return multiple(*self._ask([self.world.request(*each) for each in asks]))

    @rule(agent=ANYBODY, queue=ANY_QUEUE, which=some.integers(0, 100))
    def ask_again(self, agent: int, queue: str | None, which: int) -> None:
        """A request id that was answered before, by whom it may be."""
        known = list(self.dialer.answers)
        if known:
            name = known[which % len(known)]
            owner = self.dialer.answers[name][0]
            self._ask([self.world.request(each, queue, request_id=name) for each in (owner,)])
            self._ask([self.world.request(agent, queue, request_id=name)])

    def _ask(self, requests: Sequence[Request]) -> list[str]:
        """Ask in one turn; returns the new holds."""
        answers = self.world.answer(*requests)
        new = set()
        for request, said, answer in zip(requests, self.dialer.ask(requests), answers, strict=True):
            if isinstance(answer, Assigned) and not answer.replayed:
                self.held[request.request_id] = answer.assignment
                new.add(request.request_id)
            assert self._shown(answer) == said, (request, answer)
        return sorted(new)

    def _shown(self, answer: RequestAnswer | FinishAnswer | CommandAnswer) -> Said:
        hold = None
        if isinstance(answer, Assigned | Finished):
            shown = answer.assignment
            (hold,) = [name for name, held in self.held.items() if held.id == shown.id]
            known = self.dialer.holds[hold]
            assert (shown.user_id, shown.agent_id) == (known.user, known.agent)
            assert (shown.queue, shown.rank) == (known.queue, known.rank)
        return Said(
            answer.outcome,
            getattr(answer, "code", None),
            hold,
            replayed=getattr(answer, "replayed", False),
        )

    @rule(name=holds, foreign=FOREIGN, version=VERSIONS, way=WAYS, outcome=CALLED)
    def finish(
        self, name: str, foreign: int | None, version: int | None, way: str, outcome: str
    ) -> None:
        """A word about a hold that may have ended, from its agent or another."""
        agent = foreign or self.dialer.holds[name].agent
        self._finish(name, agent, version, way, outcome)

    @rule(name=holds, way=WAYS, outcome=CALLED)
    def finish_twice(self, name: str, way: str, outcome: str) -> None:
        """The same message comes twice."""
        for _ in range(2):
            self._finish(name, self.dialer.holds[name].agent, 1, way, outcome)

    def _finish(self, name: str, agent: int, version: int | None, way: str, outcome: str) -> None:
        who = Owner(self.held[name].id, agent, version)
        came = outcome if way == "completed" else None
        said = self.dialer.finish(name, agent, version, way, came)
        assert self._shown(self._say(who, way, outcome)) == said

    def _say(self, who: Owner, way: str, outcome: str) -> FinishAnswer:
        world = self.world
        match way:
            case "completed":
                at = world.now + CALLBACK_AFTER if outcome == "call_back" else None
                return world.run(complete, who, outcome, notes="said so", callback_at=at)
            case "skipped":
                return world.run(skip, who, settings=world.settings)
            case "released":
                return world.run(release, who)
            case _:
                return world.run(renew, who, settings=world.settings)

    @rule(seconds=WAITS)
    def wait(self, seconds: int) -> None:
        """Time goes by: leases lapse, who was skipped has rested."""
        self.world.now += timedelta(seconds=seconds)
        self.dialer.now = self.world.now

    @rule()
    def expire(self) -> None:
        assert self.world.expire() == self.dialer.expire()

    @rule(target=generations, queue=QUEUES)
    def build(self, queue: str) -> int:
        number = self.world.build(queue)
        self.dialer.build(number, queue)
        return number

    @rule(number=generations)
    def publish(self, number: int) -> None:
        answer = self.world.publish(number)
        assert self._shown(answer) == self.dialer.publish(number)

    @rule(user=USERS, fact=some.sampled_from(list(FACTS)))
    def change(self, user: int, fact: str) -> None:
        """A fact about a user turns over, in the CRM or in their score row."""
        assert self.world.execute(FACTS[fact], user=user) == 1
        person = self.dialer.users[user]
        setattr(person, fact, not getattr(person, fact))

    @rule(queue=QUEUES, user=USERS)
    def clean_conversions(self, queue: str, user: int) -> None:
        """Somebody reaches what the dialer queue is for, while held if anybody is."""
        fact = "is_signed" if queue == UNSIGNED else "has_pending_requirement"
        self.change(min(self.dialer.held(), default=user), fact)
        policy = POLICIES[queue]
        with self.world.engine.connect() as connection:
            found = convert.converted(connection, policy, after=0, now=self.world.now)
        done = self.world.run(
            convert.remove_converted, policy, list(self.dialer.users), policies=POLICIES
        )
        assert found == self.dialer.remove_converted(queue)
        assert isinstance(done, Done)
        assert done.counts == {"converted": len(found)}

    @rule(queue=QUEUES)
    def pause_or_resume(self, queue: str) -> None:
        """At most one dialer queue is paused at a time, or hardly anybody would be handed out."""
        for each in self.dialer.paused or {queue}:
            operation = resume if each in self.dialer.paused else pause
            assert self.world.run(operation, each) == Done()
            again = self.world.run(operation, each)
            assert again == Done(replayed=True)
        self.dialer.paused = set() if self.dialer.paused else {queue}

    @invariant()
    def assignments_are_those_of_the_model(self) -> None:
        found = self.world.rows(
            "SELECT request_id, user_id, agent_id, queue, rank, lease_expires_at, state, version,"
            " ended_at, outcome FROM assignment.assignments"
        )
        assert {name: Hold(name, *row) for name, *row in found} == self.dialer.holds

    @invariant()
    def places_are_those_of_the_model(self) -> None:
        """But for who was found ineligible: the reason must be true, and they are out from then.

        Or they wait, until their rest ends.
        """
        assert dict(self.world.rows("SELECT id, state FROM assignment.generations")) == {
            number: build.state for number, build in self.dialer.builds.items()
        }
        found = self.world.rows(
            "SELECT g.queue, e.user_id, e.rank, e.state, e.available_from, e.reason"
            " FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
            " WHERE g.state = 'published' ORDER BY g.queue, e.user_id"
        )
        published = self.dialer.published()
        now = self.dialer.now
        for queue, user, _, state, until, reason in found:
            place = published[queue].places[user]
            due = place.until is not None and place.until <= now
            if state == "out" and (place.state == "ready" or due):
                assert reason == self.dialer.users[user].broken(queue, now)
                place.become("out", reason=reason)
            elif state == "waiting" and until > now and (place.state == "ready" or due):
                assert until == self.dialer.users[user].rests_until(queue, now)
                place.become("waiting", until)
        assert [_rested(row, now) for row in found] == [
            _rested((queue, user, place.rank, place.state, place.until, place.reason), now)
            for queue, build in sorted(published.items())
            for user, place in sorted(build.places.items())
        ]

    @invariant()
    def requests_have_the_one_answer_of_the_model(self) -> None:
        assert self.world.rows(
            "SELECT r.request_id, r.agent_id, r.outcome, a.request_id FROM assignment.requests r"
            " LEFT JOIN assignment.assignments a ON a.id = r.assignment_id ORDER BY r.request_id"
        ) == sorted(
            (name, agent, said.outcome, said.hold)
            for name, (agent, said) in self.dialer.answers.items()
        )

    @invariant()
    def score_rows_are_those_of_the_model(self) -> None:
        assert self.world.rows(
            "SELECT user_id, current_queue_type, current_score, total_attempts,"
            " next_call_after AT TIME ZONE 'UTC' FROM user_call_scores ORDER BY user_id"
        ) == [
            (user.id, user.queue, user.score, user.attempts, user.next_call_after)
            for user in self.dialer.users.values()
        ]
        for table, users in (
            ("conversions", self.dialer.conversions),
            ("callbacks", self.dialer.callbacks),
        ):
            found = self.world.column(f"SELECT user_id FROM {table} ORDER BY 1")
            assert found == sorted(users)

    @invariant()
    def the_doctor_finds_nothing(self) -> None:
        assert self.world.unhealthy() == []

    def teardown(self) -> None:
        """The history that the events tell breaks nothing either, and there is nothing to mend."""
        with self.world.engine.connect() as connection:
            breaches = check(
                connection, settings=self.world.settings, bound=timedelta(seconds=1 << 30)
            )
        assert breaches == []
        assert self.world.run(repair) == Done(counts={"marked_held": 0, "given_back": 0})


def _rested(row: tuple[Any, ...], now: Any) -> tuple[Any, ...]:
    """A place whose time has come is as good as ready."""
    queue, user, rank, state, until, reason = row
    if state == "waiting" and until <= now:
        return (queue, user, rank, "ready", None, reason)
    return row


def empty(world: World) -> None:
    """The world as it was, but for its clock, which is the database's again."""
    for number in world.column("SELECT id FROM assignment.generations"):
        world.execute(f"DROP TABLE IF EXISTS assignment.entries_{number}")
    world.execute(
        "TRUNCATE assignment.generations, assignment.assignments, assignment.requests,"
        " assignment.events, assignment.job_runs, callbacks, conversions, user_call_scores,"
        " crm.users, crm.claims, crm.claim_requirements"
    )
    world.execute("UPDATE assignment.queues SET paused_at = NULL, paused_by = NULL")
    world.now = world.value("SELECT date_trunc('milliseconds', clock_timestamp())")


@pytest.mark.timeout(420)
def test_operations_in_any_order_do_what_the_model_says(database_url: str) -> None:
    with opened(database_url) as world:
        world.add_agents(1, 2, 3)
        world.add_agents(4, allowed_queues=[OUTSTANDING])
        world.add_agents(5, is_active=False, allowed_queues=[UNSIGNED])
        begun: Any = partial(Machine, world)
        run_state_machine_as_test(
            begun,
            settings=settings(
                max_examples=30, stateful_step_count=30, deadline=None, database=None
            ),
        )
