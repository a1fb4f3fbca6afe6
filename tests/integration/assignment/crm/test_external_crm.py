"""The CRM in another database: another PostgreSQL, or a real MariaDB, under two mappings."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import make_url, text

from assignment_workers.adoption.compare import compare
from assignment_workers.assignment.answers import Assigned, Empty, Refused, Unavailable
from assignment_workers.assignment.claims.reassign import reassign
from assignment_workers.assignment.crm import external_crm as crm_module
from assignment_workers.assignment.crm import mirror
from assignment_workers.assignment.crm.external_crm import FAILURES, Crm, configured
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.pools import convert, discover
from assignment_workers.assignment.reports.explain import explain
from assignment_workers.assignment.reports.figures import figures
from assignment_workers.errors import CrmUnavailable, SchemaMismatch, UsageError
from assignment_workers.health.model import Component, HealthState
from assignment_workers.health.monitor import read_repeatedly
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.crm import ClaimRequirement, CrmUser
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings
from assignment_workers.tasks.process import TURN_SECONDS
from tests.adoption.test_adopting import dialer
from tests.integration.assignment.crm.seeing import (
    TIMEOUT,
    age_mirror,
    crm_told,
    nobody_was_removed,
    seeing,
    silent,
    verdicts,
)
from tests.support.external_crm import OtherCrm
from tests.support.servers import Maria, free_port, wire
from tests.support.sessions import END
from tests.support.suppressed_number import nobody_is_offered
from tests.support.world import (
    OUTSTANDING,
    UNSIGNED,
    Claim,
    Requirement,
    User,
    World,
    opened,
    outstanding,
)

NUMBERS = itertools.count(1)

KINDS = [("postgresql", "people"), ("mariadb", "original")]


@pytest.fixture(params=KINDS, ids="-".join)
def crm(request: pytest.FixtureRequest, postgres_server: str) -> Iterator[OtherCrm]:
    """A CRM elsewhere, empty."""
    kind, mapping = request.param
    name = f"crm_{next(NUMBERS)}"
    if kind == "mariadb":
        server: Maria = request.getfixturevalue("maria")
        server.run(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        yield OtherCrm(f"{server.url}{name}", mapping)
        server.run(f"DROP DATABASE {name}")
        return
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    yield OtherCrm(f"{postgres_server.rpartition('/')[0]}/{name}", mapping)
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def world(database_url: str, crm: OtherCrm) -> Iterator[World]:
    """A dialer whose CRM is elsewhere. In its own schema `crm` there is nobody."""
    with opened(database_url, crm) as made, seeing(made, crm.url):
        yield made


def test_a_claim_judges_by_the_facts_as_they_are_there_now(world: World, crm: OtherCrm) -> None:
    world.add_agents(1, 2, 3, 4)
    world.add_users([User(number) for number in range(1, 7)])
    world.regenerate()
    assert list(world.states()) == [6, 5, 4, 3, 2, 1]
    crm.sign(6)
    crm.change(CrmUser, 5, is_enabled=False)
    crm.cancel(40)
    crm.remove(CrmUser, 3)
    assert world.held(1).user_id == 2
    assert {each["user_id"]: each["details"]["reason"] for each in world.events("taken_out")} == {
        6: "signed",
        5: "disabled",
        4: "all_claims_cancelled",
        3: "not_in_crm",
    }
    assert world.held(2).user_id == 1
    given = world.ask(3)
    assert isinstance(given, Empty)
    assert world.unhealthy() == []


def test_words_are_compared_as_the_crm_does(world: World, crm: OtherCrm) -> None:
    world.add_agents(1, 2)
    world.add_users([outstanding(1), outstanding(2), outstanding(3)])
    crm.change(ClaimRequirement, "10-0", status="pending")
    crm.change(ClaimRequirement, "20-0", type="cfa")
    crm.change(CrmUser, 3, current_signature_file_id="")
    world.regenerate()
    assert list(world.states(OUTSTANDING)) == [1]
    crm.change(ClaimRequirement, "10-0", type="CFA")
    world.ask(1, OUTSTANDING)
    folds = crm.url.startswith("mysql")
    assert (world.states(OUTSTANDING)[1] == "out") == folds


def test_a_build_has_whom_the_crm_says_and_reads_it_once(world: World, crm: OtherCrm) -> None:
    world.add_users([User(1), User(2, signature="f"), outstanding(3), User(4, is_enabled=None)])
    world.regenerate()
    assert list(world.states()) == [1]
    assert list(world.states(OUTSTANDING)) == [3]
    runs = world.rows("SELECT trigger, status FROM assignment.job_runs WHERE job = 'crm.mirror'")
    assert runs == [("needed", "succeeded")]
    crm.remove(CrmUser, 1)
    crm.change(CrmUser, 2, current_signature_file_id=None)
    crm.add(CrmUser, [{"id": 9, "is_enabled": True}])
    age_mirror(world)
    world.regenerate()
    assert list(world.states()) == [2]
    mirrored = world.rows("SELECT id, current_signature_file_id FROM crm_mirror.users ORDER BY id")
    assert mirrored == [(2, None), (3, "file"), (4, None), (9, None)]
    (*_, counts) = world.column(
        "SELECT counts FROM assignment.job_runs WHERE job = 'crm.mirror' ORDER BY id"
    )
    assert counts["users"] == 4
    assert counts["changed"] == 3  # one is gone, one was changed, one is new


def test_who_converted_there_leaves_with_one_conversion(world: World, crm: OtherCrm) -> None:
    world.add_users([outstanding(1), outstanding(2), User(3)])
    world.regenerate()
    crm.settle("10-0")
    crm.sign(3)
    age_mirror(world)
    world.regenerate()
    policy = world.policies[OUTSTANDING]
    with world.engine.connect() as connection:
        assert convert.converted(connection, policy, after=0, now=world.now) == [1]
    done = world.run(convert.remove_converted, policy, [1, 2], policies=world.policies)
    assert done.counts == {"converted": 1}


def test_it_may_be_explained_and_reassigned_by_facts_of_now(world: World, crm: OtherCrm) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1)])
    world.regenerate()
    hold = world.held(1)
    crm.sign(1)
    with world.engine.connect() as connection:
        found = explain(
            connection,
            loaded(),
            world.external_crm,
            1,
            policies=world.policies,
            settings=world.settings,
            now=world.now,
        )
    assert found is not None
    broken = [each.rule for each in found.queues[0].rules if not each.holds]
    assert broken == ["signed"]
    answer = world.run(
        reassign, hold.id, 2, by="x", why="y", policies=world.policies, settings=world.settings
    )
    assert isinstance(answer, Refused)
    assert answer.reason.endswith("signed")


def test_nobody_with_any_form_of_a_suppressed_number_is_ever_offered(
    world: World, crm: OtherCrm
) -> None:
    nobody_is_offered(world, "+61894000000" if crm.name == "people" else "+442079460123")


def test_while_it_is_away_the_answer_is_unavailable_and_nobody_is_removed(
    world: World,
    crm: OtherCrm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1), User(2), User(3)])
    world.regenerate()
    hold = world.held(1)
    monkeypatch.setattr(crm_module, "PROBE_SECONDS", 0.2)
    with wire(crm.url) as line, seeing(world, line.url, crm_timeout=timedelta(seconds=0.2)):
        line.cut()
        said = world.ask(2)
        assert isinstance(said, Unavailable)
        assert said.reason == "the CRM cannot be read"
        assert "the CRM cannot be read: no answer within 0.2 s" in capsys.readouterr().out
        assert said.retry_after > 0
        age_mirror(world)
        with pytest.raises(CrmUnavailable):
            world.build()
        again = world.ask(1)
        assert isinstance(again, Assigned)
        assert again.replayed
        world.complete(hold)
    assert nobody_was_removed(world)
    states = world.column(
        "SELECT state FROM assignment.generations WHERE queue = :q ORDER BY id", q=UNSIGNED
    )
    assert states == ["published", "failed"]
    monkeypatch.undo()
    with seeing(world, crm.url):
        assert world.held(2).user_id == 2
    assert world.unhealthy() == []


def test_a_crm_that_takes_connections_and_says_nothing_is_waited_for_briefly(
    world: World, crm: OtherCrm, capsys: pytest.CaptureFixture[str]
) -> None:
    world.add_agents(1, 2, 3)
    world.add_users([User(1)])
    world.regenerate()
    with silent(crm.url) as url, seeing(world, url, crm_timeout=timedelta(seconds=1)) as found:
        for agent in range(1, FAILURES + 1):
            began = time.monotonic()
            said = world.ask(agent)
            assert isinstance(said, Unavailable)
            assert time.monotonic() - began < 3.0 + 1.0
        assert found.is_open
        began = time.monotonic()
        said = world.ask(3)
        assert isinstance(said, Unavailable)
        assert said.reason == "the CRM cannot be read"
        assert "tried again soon" in capsys.readouterr().out
        assert 0 < said.retry_after <= 5.0
        assert time.monotonic() - began < 1.0
    assert nobody_was_removed(world)


def test_users_validated_lately_are_handed_out_if_the_setting_allows(
    world: World, crm: OtherCrm
) -> None:
    world.add_agents(1, 2, 3, 4)
    world.add_users([User(1), User(2), User(3)])
    world.regenerate()
    world.execute("UPDATE crm_mirror.users SET current_signature_file_id = 'f' WHERE id = 3")
    with silent(crm.url) as url:
        soon = {"crm_timeout": timedelta(seconds=0.1), "crm_grace": timedelta(minutes=10)}
        with seeing(world, url, **soon):
            assert world.held(1).user_id == 2
            assert world.held(2).user_id == 1
            assert isinstance(world.ask(3), Unavailable)
            assert world.states() == {3: "waiting", 2: "held", 1: "held"}
            age_mirror(world)
            world.add_users([User(4)])
            assert isinstance(world.ask(3), Unavailable)
    (told,) = world.events("put_off")
    assert (told["user_id"], told["details"]["reason"]) == (3, "unknown")
    assert nobody_was_removed(world, but="put_off")


def test_a_crm_that_can_never_be_read_stops_the_start_with_one_line(crm: OtherCrm) -> None:
    def complaint(url: str, mapping: str = crm.name) -> str:
        made = Crm(url, loaded().external_facts(mapping, {}), timeout=TIMEOUT)
        with pytest.raises((UsageError, SchemaMismatch)) as caught:
            made.check()
        made.close()
        return str(caught.value)

    Crm(crm.url, crm.declared, timeout=TIMEOUT).check()
    assert complaint(crm.url.replace("/crm_", "/no_such_")).startswith("CRM_DATABASE_URL: ")
    wrong = make_url(crm.url).set(password="not-the-one")
    told = complaint(wrong.render_as_string(hide_password=False))
    assert re.match("CRM_DATABASE_URL: .*(password authentication failed|Access denied)", told)
    assert "not-the-one" not in told
    assert "\n" not in told
    other, table = ("people",) * 2 if crm.name == "original" else ("original", "users")
    assert complaint(crm.url, other) == f"CRM_DATABASE_URL: the CRM has no table {table}"
    column = crm.column(CrmUser, "phone_number")
    with crm.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {crm.tables[CrmUser].name} DROP COLUMN {column}"))
    name = crm.tables[CrmUser].name
    assert complaint(crm.url) == f"CRM_DATABASE_URL: the CRM's table {name} lacks {column}"


def test_operators_see_where_the_crm_is_and_whether_it_answers(world: World, crm: OtherCrm) -> None:
    world.add_users([User(1)])
    told = crm_told(world)
    assert (told.elsewhere, told.trouble, told.mirror_age_seconds) == (True, None, None)
    world.regenerate()
    age_mirror(world, 600)
    age = crm_told(world).mirror_age_seconds
    assert age is not None
    assert 600 <= age < 700
    with silent(crm.url) as url, seeing(world, url, crm_timeout=timedelta(seconds=0.1)):
        told = crm_told(world)
        assert told.trouble == "the CRM cannot be read: no answer within 0.1 s"
        with world.engine.connect() as connection:
            found = figures(connection, loaded(), world.external_crm, application="nobody")
    assert (found.crm_up, found.crm.elsewhere) == (False, True)
    assert world.unhealthy() == []
    age_mirror(world, 600)
    assert world.unhealthy() == ["the mirror of a CRM elsewhere is younger than 20 minutes"]
    with world.engine.begin() as connection:
        mirror.forget(connection)
    assert world.unhealthy() == []


def test_a_frozen_crm_is_named_within_seconds_and_is_good_again_by_itself(
    world: World, crm: OtherCrm, request: pytest.FixtureRequest
) -> None:
    """A whole server where it is one of ours, else the way to it."""
    world.set(crm_timeout=timedelta(seconds=1))
    with ExitStack() as keep:
        line = keep.enter_context(wire(crm.url))
        server = request.getfixturevalue("maria") if "mysql" in crm.url else None
        fail, mend = (server.freeze, server.thaw) if server else (line.cut, line.mend)
        given = world.settings.model_copy(
            update={
                "database_url": world.engine.url.render_as_string(hide_password=False),
                "crm_database_url": line.url,
            }
        )
        readings = keep.enter_context(closing(read_repeatedly(given)))

        def until(state: HealthState, seconds: float) -> Component:
            began = time.monotonic()
            while True:
                asked = time.monotonic()
                named = next(readings).of("crm")
                assert time.monotonic() - asked < 3
                assert named is not None
                if named.state is state:
                    return named
                assert time.monotonic() - began < seconds, named

        until(HealthState.GOOD, 10)
        fail()
        try:
            named = until(HealthState.DOWN, 5)
        finally:
            mend()
        assert named.title == "CRM"
        assert "cannot be read" in named.finding
        assert str(urlsplit(crm.url).hostname) not in named.finding
        assert "Calls can be finished" in named.meaning
        until(HealthState.GOOD, 10)


def test_the_schema_is_inspected_where_the_crm_is(world: World, crm: OtherCrm) -> None:
    users, claims, requirements = (f"the CRM's {each.of}" for each in crm.declared.sources)
    assert verdicts(world) == {users: "ours", claims: "ours", requirements: "ours"}
    column = crm.column(CrmUser, "phone_number")
    with crm.engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {crm.tables[ClaimRequirement].name}"))
        connection.execute(text(f"ALTER TABLE {crm.tables[CrmUser].name} DROP COLUMN {column}"))
    assert verdicts(world) == {users: "unknown", claims: "ours", requirements: "absent"}
    with seeing(world, f"postgresql://nobody@127.0.0.1:{free_port()}/none"):
        assert verdicts(world) == {"the CRM": "unknown"}


def test_a_dialer_is_compared_before_its_migration_by_the_facts_that_are_there(
    empty_database_url: str, crm: OtherCrm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as with the CRM in the schema `crm`, whichever batches its users fall into."""
    dialer(empty_database_url)
    settings = Settings.from_environment({}).model_copy(
        update={"crm_database_url": crm.url, "crm_mapping": crm.name, "crm_timeout": TIMEOUT}
    )
    engine = connect(empty_database_url, name="test", statement_timeout=timedelta(seconds=60))
    now = datetime.now(UTC)
    with engine.begin() as connection:
        expected = compare(connection, None, now=now)
        facts = connection.execute(
            text("SELECT id, is_enabled, current_signature_file_id, created_at FROM crm.users")
        )
        crm.add(CrmUser, [dict(row) for row in facts.mappings()])
        connection.execute(text("DROP SCHEMA crm CASCADE"))
    assert {each.only for each in expected} == {"ours", "theirs"}
    made = configured(loaded(), settings)
    assert made is not None
    use_fact_schema(engine, loaded(), made)
    for users in (1, 2, 5_000):
        monkeypatch.setattr("assignment_workers.adoption.compare.USERS_AT_A_TIME", users)
        with engine.connect() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            assert sorted(map(str, compare(connection, made, now=now))) == sorted(
                map(str, expected)
            )
    made.close()
    engine.dispose()


def test_a_crm_without_anybody_is_taken_for_sick(world: World, crm: OtherCrm) -> None:
    world.add_users([User(1)])
    world.regenerate()
    crm.remove(CrmUser, 1)
    age_mirror(world)
    with pytest.raises(CrmUnavailable, match="its users are all gone: it is taken for sick"):
        world.build()
    assert world.column("SELECT id FROM crm_mirror.users") == [1]


def test_a_connection_that_the_server_closed_is_not_the_crm_being_away(
    world: World, crm: OtherCrm
) -> None:
    world.add_agents(1, 2)
    world.add_users([User(1), User(2)])
    world.regenerate()
    world.held(1)
    with crm.engine.begin() as connection:
        if crm.url.startswith("mysql"):
            others = connection.execute(
                text(
                    "SELECT id FROM information_schema.processlist"
                    " WHERE db = database() AND id <> connection_id()"
                )
            ).scalars()
            for number in others.all():
                connection.execute(text(f"KILL {number}"))
        else:
            connection.execute(text(END))
    assert world.held(2).user_id == 1


def test_the_stopped_server_comes_back_and_all_goes_on_by_itself(
    database_url: str, maria: Maria
) -> None:
    maria.run("CREATE DATABASE stopped")
    crm = OtherCrm(f"{maria.url}stopped", "original")
    with opened(database_url, crm) as world, seeing(world, crm.url) as found:
        world.add_agents(1, 2)
        world.add_users([User(1), User(2)])
        world.regenerate()
        hold = world.held(1)
        maria.stop()
        said = world.ask(2)
        assert isinstance(said, Unavailable)
        assert said.reason == "the CRM cannot be read"
        world.complete(hold)
        age_mirror(world)
        with pytest.raises(CrmUnavailable):
            world.build()
        assert nobody_was_removed(world)
        maria.start()
        deadline = time.monotonic() + 30
        while found.trouble() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert world.held(2).user_id == 1
        assert world.unhealthy() == []


def test_a_row_that_makes_no_sense_is_passed_over_and_holds_nobody_up(
    world: World, crm: OtherCrm
) -> None:
    if crm.name == "original":
        pytest.skip("a boolean column cannot hold nonsense")
    world.add_agents(1)
    world.add_users([User(1), User(2)])
    world.regenerate()
    with crm.engine.begin() as connection:
        connection.execute(text("UPDATE people SET enabled_flag = '?' WHERE people_id = 2"))
    assert world.held(1).user_id == 1
    assert world.states() == {2: "waiting", 1: "held"}
    assert nobody_was_removed(world, but="put_off")


def test_a_whole_batch_is_judged_within_the_time_of_a_turn(world: World, crm: OtherCrm) -> None:
    """The facts are parameters, without an index: each user's are not looked for one by one."""
    asked = (Requirement(),) * 4
    several = (Claim("open", asked),) * 4
    numbers = range(1, discover.AT_A_TIME + 1)
    nowhere = (replace(outstanding(each), claims=several, queue=None) for each in numbers)
    world.add_users(nowhere)
    # Measured is the statement that judges, not how fast a busy machine reads so many facts.
    with (
        seeing(world, crm.url, crm_timeout=timedelta(seconds=60)),
        world.transaction() as transaction,
    ):
        transaction.connection.execute(text(f"SET LOCAL statement_timeout TO '{TURN_SECONDS} s'"))
        done = discover.assign_to_queue(transaction, numbers, world.policies)
    assert done.counts["moved"] == len(numbers)
