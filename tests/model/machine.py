"""The machine of the assignment model: agents, time, builds, the CRM, operators and jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, initialize, invariant, multiple, rule

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Done, Refused
from assignment_workers.assignment.callbacks import missed_calls
from assignment_workers.assignment.generations.drain import drain
from assignment_workers.assignment.generations.pause import pause, resume
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.lifecycle import agent_status
from assignment_workers.assignment.pools import convert
from assignment_workers.assignment.reports.doctor import repair
from assignment_workers.assignment.reports.explain import explain, funnel
from assignment_workers.assignment.reports.explanation import QueueVerdict
from assignment_workers.assignment.suppressions import do_not_contact, lift
from assignment_workers.errors import StaleTerm
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import SuppressionKind
from tests.model.agent_steps import AgentSteps
from tests.model.choices import (
    BEGINNINGS,
    CALLERS,
    FACTS,
    MOVES,
    PLACES,
    QUEUES,
    USERS,
    Move,
    call_centres,
)
from tests.model.compared import TABLES, as_dialled, as_the_model_has, empty, rows_of
from tests.model.dialer import small
from tests.model.rules import MINUTE, Missed, Person
from tests.support.world import SECOND, User

IS_ACTIVE = "UPDATE user_call_scores SET is_active = NOT is_active WHERE user_id = :user"


class Machine(AgentSteps):
    """Every step that the assignment model takes."""

    generations = Bundle("generations")

    @initialize(
        target=generations,
        which=some.integers(0, 3),
        begins=some.sampled_from(BEGINNINGS),
        place=PLACES,
        are_all=some.sampled_from([True] * 7 + [False]),
    )
    def open(self, which: int, begins: datetime, place: str, *, are_all: bool) -> object:
        """Most runs begin with all dialer queues published, at an hour that is open somewhere."""
        given, rules = list(call_centres(self.centre).values())[which]
        begins = rules.opens(place, begins)
        empty(self.world, begins, given, self.trade)
        self.dialer = small(begins, self.world.settings, rules)
        people = list(self.dialer.users.values())
        self.trade.fill(self.world, people)
        self.world.add_scores(
            User(each.id, each.score, queue=each.queue, created_at=each.created_at)
            for each in people
            if each.has_score_row
        )
        self._read()
        numbers = [self.build(queue) for queue in self.centre.names[: None if are_all else 1]]
        for number in numbers:
            self.publish(number)
        return multiple(*numbers)

    def _read(self) -> None:
        """The facts are the CRM's; what follows from them is what is looked at."""
        users = self.dialer.users
        for user, facts in self.trade.facts(self.world, users).items():
            users[user].facts = facts

    @rule(
        target=AgentSteps.holds,
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
        """Agents work while two generations are built, which may be published in the wrong order."""
        new = self._work(before)
        numbers = [self.build(queue)]
        self.wait(seconds)
        new += self._work(between)
        numbers.append(self.build(queue))
        for each in order:
            self.publish(numbers[each])
        return multiple(*new)

    @rule()
    def tend(self) -> None:
        """The sessions of whoever fell silent end."""
        with self.world.engine.connect() as connection:
            silent = agent_status.silent(connection, self.world.now)
        done = self.world.run(agent_status.end_sessions, silent, silent_at=self.world.now)
        assert done == Done(counts={"ended": self.dialer.tend()})

    @rule(place=PLACES, seconds=some.sampled_from([-1, 0, 300]))
    def wait_for_the_opening(self, place: str, seconds: int) -> None:
        """Until it is open there, or just not yet."""
        until = self.dialer.rules.opens(place, self.dialer.now) + seconds * SECOND
        self.wait(max(0, int((until - self.dialer.now).total_seconds())))

    @rule(target=generations, queue=QUEUES)
    def build(self, queue: str) -> int:
        number = self.world.build(queue)
        self.dialer.build(number, queue)
        return number

    @rule(number=generations)
    def publish(self, number: int) -> None:
        answer = self.world.publish(number)
        assert self._shown(answer) == self.dialer.publish(number)

    @rule(user=USERS, fact=FACTS)
    def change(self, user: int, fact: str) -> None:
        """A fact about a user turns over, in the CRM or in their score row."""
        person = self.dialer.users[user]
        if fact == "is_active":
            assert self.world.execute(IS_ACTIVE, user=user) == person.has_score_row
            person.is_active = person.is_active != person.has_score_row
        elif fact == "in_crm" or person.in_crm:
            self.world.execute(self.trade.changes[fact], user=user)
            self._read()

    @rule(target=AgentSteps.holds, user=USERS, moves=MOVES)
    def come_and_go(self, user: int, moves: Sequence[Move]) -> object:
        """The CRM loses a user and has them again, twice, each time with a build between."""
        new = []
        for _ in range(2):
            for _ in range(2):
                self.change(user, "in_crm")
                new += self._work(moves)
            for queue in self.centre.names:
                self.publish(self.build(queue))
        return multiple(*new)

    @rule(queue=QUEUES, user=USERS)
    def clean_conversions(self, queue: str, user: int) -> None:
        """Somebody reaches what the dialer queue is for, while held if anybody is."""
        self.change(min(self.dialer.held(), default=user), self.trade.goals[queue])
        policy = loaded().policies[queue]
        with self.world.engine.connect() as connection:
            found = convert.converted(connection, policy, after=0, now=self.world.now)
        done = self.world.run(
            convert.remove_converted, policy, list(self.dialer.users), policies=loaded().policies
        )
        assert found == self.dialer.remove_converted(queue, list(self.dialer.users))
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

    @rule(queue=QUEUES)
    def drain(self, queue: str) -> None:
        done = self.world.run(drain, queue, by="test")
        assert done == Done(counts={"drained": self.dialer.drain(queue)})

    @rule(user=USERS, by_phone=some.booleans())
    def suppress_or_lift(self, user: int, *, by_phone: bool) -> None:
        """A user, or whoever has their number, asks not to be called; or thinks better of it."""
        person = self.dialer.users[user]
        phone = person.phone if by_phone else None
        is_suppressed = person.is_phone_suppressed if phone else person.is_suppressed
        whom: dict[str, Any] = {"phone": phone} if phone else {"user": user}
        if is_suppressed:
            kind = SuppressionKind.DO_NOT_CONTACT
            answer = self.world.run(
                lift, kind, reader=Reader(), **whom, by="test", why="asked again"
            )
        else:
            answer = self.world.run(
                do_not_contact, reader=Reader(), **whom, reason="asked", by="test"
            )
        assert answer == Done()
        for each in self.dialer.users.values():
            if phone and each.phone == phone:
                each.is_phone_suppressed = not is_suppressed
        if phone is None:
            person.is_suppressed = not is_suppressed

    @rule(user=USERS)
    def let_go(self, user: int) -> None:
        """An operator releases whoever is set aside, or is told that nobody is."""
        found = [each.id for each in self.dialer.users.values() if each.is_set_aside]
        whom = found[0] if found else user
        answer = self.world.run(
            lift, SuppressionKind.QUARANTINE, reader=Reader(), user=whom, by="test", why="seen to"
        )
        assert isinstance(answer, Done if self.dialer.let_go(whom) else Refused)

    @rule(user=USERS, queue=QUEUES)
    def open_again(self, user: int, queue: str) -> None:
        """An operator opens a dialer queue that an agent closed for a user."""
        closed = [
            (each.id, its) for each in self.dialer.users.values() for its in sorted(each.closed)
        ]
        whom, where = closed[0] if closed else (user, queue)
        kind = SuppressionKind.CLOSED
        answer = self.world.run(
            lift, kind, reader=Reader(), user=whom, queue=where, by="test", why="is back"
        )
        assert isinstance(answer, Done if closed else Refused)
        self.dialer.users[whom].closed.discard(where)

    @rule(user=USERS, queue=QUEUES, minutes=some.sampled_from([-20, 0, 5]))
    def others_promise(self, user: int, queue: str, minutes: int) -> None:
        """The dialer's own code promises a callback, for a dialer queue that it guesses."""
        at = self.world.now + minutes * MINUTE
        self.world.execute(
            "INSERT INTO callbacks (user_id, scheduled_for, queue_type, original_call_session_id)"
            " VALUES (:user, timezone('UTC', CAST(:at AS timestamptz)), :queue, gen_random_uuid())",
            user=user,
            at=at,
            queue=queue,
        )
        self.dialer.promise(user, None, queue, at)

    @rule(target=AgentSteps.holds, callers=some.lists(CALLERS, min_size=1, max_size=3), moves=MOVES)
    def call_in(self, callers: Sequence[int], moves: Sequence[Move]) -> object:
        """Users call and nobody is there; webhooks come twice; then agents work."""
        for caller in callers:
            for _ in range(1 + caller % 2):
                self._miss(caller, f"{self.world.now} {caller}")
        self.match()
        return multiple(*self._work(moves))

    @rule(which=some.integers(0, 100))
    def webhook_again(self, which: int) -> None:
        """The telephony tells of a call that was told of before."""
        if self.dialer.missed:
            call = self.dialer.missed[which % len(self.dialer.missed)].call
            self._miss(int(call.split()[-1]), call)

    def _miss(self, caller: int, call: str) -> None:
        known = self.dialer.users.get(caller)
        phone = (known.phone if known else "+442079461234" if caller else None) or "anonymous"
        at = self.world.now - (1 + len(self.dialer.missed)) * timedelta(milliseconds=1)
        self.world.execute(
            "INSERT INTO missed_calls (phone_number, missed_at, reason, twilio_call_sid) VALUES"
            " (:phone, timezone('UTC', CAST(:at AS timestamptz)), 'agents_busy', :call)",
            phone=as_dialled(phone),
            at=at,
            call=call,
        )
        self.dialer.miss(Missed(phone, at, call))

    @rule()
    def match(self) -> None:
        """The job that finds who called."""
        ran = jobs.run(self.world.engine, Job("missed_calls.match", "hand"), self._match)
        assert (ran.counts["matched"], ran.counts["for_operator"]) == self.dialer.match()

    def _match(self, work: Work) -> Counts:
        at = Work(work.connection, work.side_connection, self.world.now, work.job, work.number)
        return missed_calls.match(at, loaded(), None, self.world.settings)

    @rule()
    def restart(self) -> None:
        """Another sequencer takes over: what the one before still tries is refused."""
        world = self.world
        world.execute("UPDATE assignment.sequencer SET term = term + 1")
        with pytest.raises(StaleTerm):
            world.expire()
        world.term += 1
        world.execute(
            "INSERT INTO assignment.events (at, kind, term) VALUES (:at, 'term_begun', :term)",
            at=world.now,
            term=world.term,
        )

    @rule(user=USERS, queue=QUEUES)
    def explain(self, user: int, queue: str) -> None:
        """Where a user stands, rule by rule, and where all of a pool do."""
        dialer, world = self.dialer, self.world
        with world.engine.connect() as connection:
            found = explain(
                connection,
                loaded(),
                None,
                user,
                policies=world.policies,
                settings=world.settings,
                now=world.now,
            )
            counted = funnel(
                connection, world.policies[queue], settings=world.settings, now=world.now
            )
        person = dialer.users[user]
        if found is None:
            assert not person.in_crm
            assert not person.has_score_row
        else:
            assert [(each.source, each.why) for each in found.due] == dialer.due(user)
            for verdict in found.queues:
                self._is_true(user, verdict.queue, verdict.why)
                if person.in_crm:
                    assert {each.rule: each.until for each in verdict.rules if not each.holds} == (
                        person.broken_rules(verdict.queue, dialer.now, dialer.rules)
                    )
                    self._is_meant(person, verdict)
        stands = Counter(dialer.stands(each, queue) for each in dialer.pool(queue))
        assert counted.claimable == stands.pop("claimable", 0)
        assert {each.why: each.users for each in counted.steps} == stands

    def _is_meant(self, person: Person, verdict: QueueVerdict) -> None:
        """The dialer's own rules are what their texts say."""
        for each in verdict.rules:
            if (meaning := self.trade.meanings.get(each.rule)) is not None:
                assert each.holds is not meaning(person, self.dialer.now), each

    def _is_true(self, user: int, queue: str, why: str) -> None:
        stands = self.dialer.stands(user, queue)
        if stands in {"not_in_generation", "drained", "taken_out", "waiting", "claimable"}:
            if queue in self.dialer.paused:
                stands = "paused"
            elif queue not in self.dialer.published():
                stands = "never_built"
        assert why == stands

    @invariant()
    def tables_are_those_of_the_model(self) -> None:
        """Every row that the operations write, in one read."""
        found = self.world.value(
            f"SELECT json_build_object({', '.join(map(as_the_model_has, TABLES))})"
        )
        known = rows_of(self.dialer)
        for table in TABLES:
            assert Counter(map(tuple, found[table] or ())) == Counter(known[table]), table

    def teardown(self) -> None:
        """The history that the events tell breaks nothing either, and there is nothing to mend."""
        if not hasattr(self, "dialer"):
            return  # it was not opened
        with self.world.engine.connect() as connection:
            breaches = check(
                connection,
                dialer=loaded(),
                settings=self.world.settings,
                bound=timedelta(seconds=1 << 30),
            )
        assert breaches == []
        assert self.world.unhealthy() == []
        assert self.world.run(repair) == Done(counts={"marked_held": 0, "given_back": 0})
