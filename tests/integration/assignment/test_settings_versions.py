"""Operational settings: a change is in force from one transaction on, in every process, and stored."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assignment_workers.assignment import jobs
from assignment_workers.assignment.answers import Assigned, Done, Empty, Refused, RequestAnswer
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.generations import levels
from assignment_workers.assignment.generations.regenerate import regenerate
from assignment_workers.assignment.history.history import check
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.lanes import lanes_of
from assignment_workers.assignment.operational_settings import (
    NONE,
    OPERATIONAL,
    SettingChange,
    SettingScope,
    first_values,
    in_force,
    misfit,
)
from assignment_workers.assignment.reports.explain import explain, instant
from assignment_workers.assignment.reports.status import status
from assignment_workers.assignment.settings_changes import OWN_WHY, adopt, begin, change
from assignment_workers.assignment.settings_versions import (
    current,
    history,
    ignored,
    latest,
    of_transaction,
    version_of,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import DEFAULT_LANE, UNMARKED
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from assignment_workers.tasks.requests import answer
from tests.support.dialers import using
from tests.support.world import (
    OUTSTANDING,
    UNSIGNED,
    User,
    World,
    outstanding,
)

BY = {"by": "token ann", "why": "a test"}
ALWAYS = "mon-sun 00:00-24:00"
LANES = "outstanding=outstanding_requests"


def never(at: datetime) -> str:
    """Calling hours that are closed for two days from this instant, wherever the user is."""
    day = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(at.weekday() + 4) % 7]
    return f"{day} 09:00-17:00"


class Process:
    """A sequencer's or a gateway's process: what it was started with, and its own objects."""

    def __init__(self, world: World, lane: str = DEFAULT_LANE, **environment: str) -> None:
        self.world = world
        self.settings = Settings.from_environment(environment)
        lanes = lanes_of(self.settings)
        with world.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO assignment.sequencer (lane, term) VALUES (%s, 1)"
                " ON CONFLICT (lane) DO UPDATE SET term = 1",
                (lane,),
            )
        self.runner = TransactionRunner(
            world.engine, dialer=loaded(), term=1, term_id=UNMARKED, lane=lane, lanes=lanes
        )

    def ask(self, agent: int, queue: str | None = UNSIGNED) -> RequestAnswer:
        (given,) = answer(self.runner, [self.world.request(agent, queue)], self.settings)
        return given

    def set(self, *changes: SettingChange, **values: str | None) -> Done | Refused:
        made = [*changes, *(SettingChange(name=name, value=each) for name, each in values.items())]
        return self.runner.run(lambda each: change(each, made, given=self.settings, **BY))

    def adopt(self) -> bool:
        return self.runner.run(lambda each: adopt(each, self.settings)) is not None

    def begin(self) -> int | None:
        """What precedes the first message of a term: the version that it made."""
        made = self.runner.run(lambda each: begin(each, self.settings))
        return None if made is None else made.version

    def now(self) -> Settings:
        with self.world.engine.connect() as connection:
            return current(connection, loaded(), self.settings)

    def why(self, user: int, queue: str = UNSIGNED) -> str:
        """What a gateway with this environment explains."""
        with self.world.engine.connect() as connection:
            settings = current(connection, loaded(), self.settings)
            found = explain(
                connection,
                loaded(),
                None,
                user,
                policies=policies_of(loaded(), settings),
                settings=settings,
                now=instant(connection),
            )
        assert found is not None
        assert found.settings_version == version_of(settings)
        (verdict,) = [each for each in found.queues if each.queue == queue]
        return verdict.why


@pytest.fixture
def desk(world: World) -> World:
    """Agents, and users in both dialer queues, published."""
    world.add_agents(*range(1, 9))
    numbers = {each: f"0161496{each:04}" for each in range(1, 26)}
    world.add_users([User(each, each, phone=numbers[each]) for each in range(1, 6)])
    world.add_users([replace(outstanding(each), phone=numbers[each]) for each in range(21, 26)])
    world.regenerate()
    return world


def test_the_next_claim_of_each_lane_and_each_gateway_obeys(desk: World) -> None:
    first = Process(desk, ASSIGNMENT_WORKERS_LANES=LANES)
    second = Process(desk, "outstanding", ASSIGNMENT_WORKERS_LANES=LANES)
    assert isinstance(first.ask(1), Assigned)
    assert isinstance(second.ask(2, OUTSTANDING), Assigned)
    closed = never(desk.now)
    said = first.set(calling_hours=closed)
    assert said == Done(counts={"version": 2})
    for process, queue, agent in ((first, UNSIGNED, 3), (second, OUTSTANDING, 4)):
        empty = process.ask(agent, queue)
        assert isinstance(empty, Empty)
        assert empty.why == {queue: "outside_calling_hours"}
    gateways = Process(desk), Process(desk)
    assert {each.now().calling_hours for each in gateways} == {closed}
    assert second.set(calling_hours=None) == Done(counts={"version": 3})
    desk.regenerate()
    assert isinstance(first.ask(3), Assigned)
    assert isinstance(second.ask(4, OUTSTANDING), Assigned)
    assert {each.why(3) for each in gateways} == {"claimable"}


def test_a_longer_day_is_obeyed_at_once_by_users_who_wait_for_the_next(desk: World) -> None:
    process = Process(desk)
    desk.skip(desk.held(1))
    desk.execute(
        "UPDATE assignment.entries SET state = 'waiting', available_from = now() + interval '1 day'"
        " WHERE state = 'ready' AND user_id < 10"
    )
    assert isinstance(process.ask(2), Empty)
    process.set(calling_hours=ALWAYS)
    assert sorted(desk.states().values()) == ["ready"] * 4 + ["waiting"]
    assert isinstance(process.ask(3), Assigned)
    assert len(desk.events("wait_ended")) == 4


def test_the_environment_gives_the_first_values_only(desk: World) -> None:
    variables = {
        "ASSIGNMENT_WORKERS_LEASE_SECONDS": "600",
        "ASSIGNMENT_WORKERS_CALLS_PER_DAY": f"{OUTSTANDING}=2,{UNSIGNED}=3",
        "ASSIGNMENT_WORKERS_SESSION_CALLS": "100, night=80",
        "ASSIGNMENT_WORKERS_QUEUE_PRIORITY": f"{OUTSTANDING}, {UNSIGNED}; night={UNSIGNED}",
    }
    process = Process(desk, **variables)
    assert process.now() is process.settings
    assert process.adopt()
    assert not process.adopt()
    other = Process(desk, ASSIGNMENT_WORKERS_LEASE_SECONDS="60", ASSIGNMENT_WORKERS_QUEUE_LIMIT="9")
    assert not other.adopt()
    for name in OPERATIONAL.keys() - {"calls_per_day"}:
        assert getattr(process.now(), name) == getattr(process.settings, name), name
        assert getattr(other.now(), name) == getattr(process.settings, name), name
    assert other.now().calls_per_day == f"{UNSIGNED}=3, {OUTSTANDING}=2"
    with desk.engine.connect() as connection:
        assert ignored(connection, loaded(), process.settings) == []
        lines = ignored(connection, loaded(), other.settings)
        stored = latest(connection)
    assert [each.partition(" ")[0] for each in lines] == [
        "ASSIGNMENT_WORKERS_QUEUE_LIMIT",
        "ASSIGNMENT_WORKERS_LEASE_SECONDS",
    ]
    assert stored is not None
    assert (stored.version, stored.who) == (1, "sequencer")
    assert {each.after for each in stored.changes} >= {"600", "100", "80", "3", "2"}


def test_a_new_lane_and_a_new_term_judge_by_what_is_in_force(desk: World) -> None:
    process = Process(desk)
    process.set(lease="77")
    with process.runner.transaction() as transaction:
        assert of_transaction(transaction, process.settings).lease == timedelta(seconds=77)
        assert of_transaction(transaction, Settings.from_environment({})).lease.seconds == 77


def test_each_change_is_stored_with_who_when_why_from_what_to_what(desk: World) -> None:
    process = Process(desk)
    process.set(lease="60")
    process.set(
        SettingChange(name="lease", queue=UNSIGNED, value="90"),
        SettingChange(name="lease", value=None),
    )
    assert process.set(SettingChange(name="lease", queue=UNSIGNED, value="90")) == Done(
        replayed=True, counts={"version": 3}
    )
    with desk.engine.connect() as connection:
        versions = history(connection, most=10)
    assert [each.version for each in versions] == [3, 2, 1]
    newest = versions[0]
    assert (newest.who, newest.why) == ("token ann", "a test")
    assert {(each.queue, each.before, each.after) for each in newest.changes} == {
        (UNSIGNED, None, "90"),
        (None, "60", None),
    }
    assert abs(newest.at - datetime.now(UTC)) < timedelta(minutes=1)
    told = desk.events("settings_changed")
    assert [each["details"]["version"] for each in told] == [1, 2, 3]
    with desk.engine.connect() as connection:
        found = status(
            connection, loaded(), None, application="test", settings=Settings.from_environment({})
        )
    assert found.settings_version == 3


def test_values_differ_by_dialer_queue_and_by_team(desk: World) -> None:
    process = Process(desk)
    desk.execute("UPDATE public.agents SET team = 'night' WHERE id = 2")
    process.set(
        SettingChange(name="offer", queue=OUTSTANDING, value="30"),
        SettingChange(name="lease", queue=OUTSTANDING, value="45"),
        SettingChange(name="queue_priority", team="night", value=f"{OUTSTANDING}, {UNSIGNED}"),
        SettingChange(name="level_minimum", queue=OUTSTANDING, value="2"),
    )
    day, night = process.ask(1, None), process.ask(2, None)
    assert isinstance(day, Assigned)
    assert isinstance(night, Assigned)
    assert (day.assignment.queue, night.assignment.queue) == (UNSIGNED, OUTSTANDING)
    lasts = [each.assignment.lease_expires_at - each.assignment.claimed_at for each in (day, night)]
    assert lasts == [timedelta(minutes=2), timedelta(seconds=30)]
    now = process.now()
    assert now.of(OUTSTANDING).lease == timedelta(seconds=45)
    desk.execute("UPDATE assignment.generations SET built_at = now() - interval '1 day'")
    with desk.engine.connect() as connection:
        assert levels.low(connection, [UNSIGNED, OUTSTANDING], settings=now) == [UNSIGNED]


def test_a_build_under_way_names_its_version_and_the_claim_judges_by_the_new_one(
    desk: World,
) -> None:
    process = Process(desk)
    process.set(attempts_maximum="5")
    desk.execute("UPDATE public.user_call_scores SET total_attempts = 4 WHERE user_id = 1")
    old = process.now()

    def work(given: Work) -> Counts:
        number, _ = regenerate(
            given,
            loaded(),
            None,
            policies_of(loaded(), old)[UNSIGNED],
            trigger="hand",
            settings_version=version_of(old),
        )
        assert isinstance(process.set(attempts_maximum="4"), Done)
        return {"generation": number}

    ran = jobs.run(desk.engine, Job("queue.regenerate", "hand", queue=UNSIGNED), work)
    number = ran.counts["generation"]
    desk.publish(number)
    assert desk.value(
        "SELECT settings_version FROM assignment.generations WHERE id = :id", id=number
    ) == version_of(old)
    given = process.ask(1)
    assert isinstance(given, Assigned)
    assert given.assignment.user_id == 2
    assert process.why(1) == "attempts_used_up"


def test_the_recorded_history_knows_each_change(desk: World) -> None:
    process = Process(desk)
    assert isinstance(process.ask(1), Assigned)
    process.set(lease="3600", offer="3000", skip_agent="7200", calls_per_day="9")
    assert isinstance(process.ask(2), Assigned)
    process.set(offer=None)
    assert isinstance(process.ask(3), Assigned)
    with desk.engine.connect() as connection:
        assert (
            check(connection, dialer=loaded(), settings=process.settings, bound=timedelta(hours=1))
            == []
        )
    desk.tamper("DELETE FROM assignment.events WHERE kind = 'settings_changed'")
    with desk.engine.connect() as connection:
        assert (
            check(connection, dialer=loaded(), settings=process.settings, bound=timedelta(hours=1))
            != []
        )


WRONG: dict[str, list[SettingChange]] = {
    name: [
        *(
            SettingChange(name=name, value=value)
            for value in ("", "x" * 501, "a\nb", "mon-", "-1", "1e400", "\u0660")
        ),
        SettingChange(name=name, queue="no_such_queue", value="1"),
        SettingChange(name=name, team="a=b", value="1"),
        *([SettingChange(name=name, value=NONE)] if not setting.is_optional else []),
        *(
            [SettingChange(name=name, queue=UNSIGNED, value="1")]
            if setting.scope is not SettingScope.QUEUE
            else []
        ),
        *(
            [SettingChange(name=name, team="night", value="1")]
            if setting.scope is not SettingScope.TEAM
            else []
        ),
    ]
    for name, setting in OPERATIONAL.items()
}


@pytest.mark.parametrize("name", OPERATIONAL)
def test_a_wrong_value_is_refused_in_one_line_that_names_what_is_accepted(name: str) -> None:
    for wrong in WRONG[name]:
        line = misfit(wrong, loaded().policies)
        assert line, wrong
        assert "\n" not in line
        assert len(line) < 700
        named = ("accepted", "there are", "by dialer queue", "by team", "one value for all")
        assert any(each in line for each in named), line


def test_an_unknown_setting_is_refused_with_those_there_are(desk: World) -> None:
    process = Process(desk)
    wrong = SettingChange(name="database_url", value="postgresql://x")
    said = process.set(wrong)
    assert isinstance(said, Refused)
    assert "calling_hours" in said.reason
    assert desk.value("SELECT count(*) FROM assignment.settings") == 0
    twice = process.set(SettingChange(name="lease", value="1"), SettingChange(name="lease"))
    assert isinstance(twice, Refused)


GOOD = {
    "calling_hours": "mon-thu 10:00-19:00, fri 10:00-18:00",
    "calling_holidays": "GB-ENG, US",
    "queue_priority": f"{OUTSTANDING}, {UNSIGNED}",
}


@pytest.mark.parametrize("name", OPERATIONAL)
def test_a_value_in_force_is_that_of_the_environment(name: str) -> None:
    setting = OPERATIONAL[name]
    value = GOOD.get(name, "7")
    text = f"{UNSIGNED}=7, {OUTSTANDING}=7" if setting.names_queue else value
    given = Settings.from_environment({setting.variable: text})
    none = Settings.from_environment({})
    assert misfit(SettingChange(name=name, value=value), loaded().policies) is None
    by_operator = in_force(loaded(), none, 2, {(name, None, None): value})
    by_environment = in_force(
        loaded(), none, 1, {each.key: each.value for each in first_values(loaded(), given)}
    )
    assert getattr(by_operator, name) == getattr(by_environment, name) == getattr(given, name)
    assert getattr(in_force(loaded(), given, 3, {}), name) == setting.default


def with_values(**values: Any) -> Dialer:
    """The dialer, with values of its own for the second dialer queue."""
    first, second = loaded().queues
    return replace(loaded(), queues=[first, replace(second, **values)])


def test_a_dialer_queue_s_own_hours_holidays_and_limit_are_its_first_values(desk: World) -> None:
    closed = never(desk.now)
    with using(with_values(calling_hours=closed, holidays="GB-ENG", size_limit=2)):
        process = Process(desk, ASSIGNMENT_WORKERS_CALLING_HOURS=ALWAYS)
        own = process.now().of(OUTSTANDING)
        assert version_of(process.now()) is None
        assert (own.calling_hours, own.calling_holidays, own.queue_limit) == (closed, "GB-ENG", 2)
        assert process.now().of(UNSIGNED).calling_hours == ALWAYS
        assert process.begin() == 1
        assert process.begin() is None
        with desk.engine.connect() as connection:
            (version,) = history(connection, most=9)
            assert ignored(connection, loaded(), process.settings) == []
        assert {(each.name, each.queue): each.value for each in version.values} == {
            ("calling_hours", None): ALWAYS,
            ("calling_hours", OUTSTANDING): closed,
            ("calling_holidays", OUTSTANDING): "GB-ENG",
            ("queue_limit", OUTSTANDING): "2",
        }
        assert isinstance(process.ask(1), Assigned)
        empty = process.ask(2, OUTSTANDING)
        assert isinstance(empty, Empty)
        assert empty.why == {OUTSTANDING: "outside_calling_hours"}
        in_force_now = process.now()
        desk.settings = in_force_now
        assert policies_of(loaded(), in_force_now)[OUTSTANDING].limit == 2
        assert policies_of(loaded(), in_force_now)[UNSIGNED].limit is None
        assert len(desk.places(desk.build(OUTSTANDING))) == 2


def test_what_a_file_gives_later_is_taken_once_and_what_operators_set_stays(desk: World) -> None:
    assert Process(desk).begin() == 1
    with using(with_values(calling_hours=ALWAYS)):
        process = Process(desk)
        assert process.begin() == 2
        with desk.engine.connect() as connection:
            version = latest(connection)
        assert version is not None
        assert (version.why, version.who) == (OWN_WHY, "sequencer")
        assert [(each.name, each.queue, each.after) for each in version.changes] == [
            ("calling_hours", OUTSTANDING, ALWAYS)
        ]
        closed = SettingChange(name="calling_hours", queue=OUTSTANDING, value=never(desk.now))
        assert process.set(closed) == Done(counts={"version": 3})
        assert process.begin() is None
        assert process.set(closed.model_copy(update={"value": None})).outcome == "done"
        assert process.begin() is None
        assert process.now().of(OUTSTANDING).calling_hours is None
        with desk.engine.connect() as connection:
            (line,) = ignored(connection, loaded(), process.settings)
        assert line == (
            f"queue {OUTSTANDING}: calling_hours of the dialer's file is ignored: version 4 of the"
            " settings has another value of calling_hours; `assignment-workers settings show"
            " calling_hours` prints it"
        )
