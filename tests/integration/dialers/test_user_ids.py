"""A CRM whose ids are UUIDs or texts: every interface takes and shows the CRM's own id."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
import uvicorn

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Code, Refused
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.crm.external_crm import configured
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.client import Assigned, Client, Finished, HttpClient
from assignment_workers.dialer import Dialer
from assignment_workers.errors import SchemaMismatch, UsageError
from assignment_workers.gateway.app import create_app as create_gateway
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from tests.gateway.stage import Gateway, Reply
from tests.integration.dialers.test_dialers import CASES
from tests.support.celery_programs import dialer_program
from tests.support.commands import type_in
from tests.support.dialers import DIALERS, EXAMPLES, using
from tests.support.example_crm import ExampleCrm, example_elsewhere
from tests.support.processes import Stack, wait_until
from tests.support.servers import free_port
from tests.support.world import World

HOSTILE = (
    "7",
    "007",
    "-1",
    "user 7",
    "D'; DROP TABLE assignment.events; --",
    '"quoted"',
    "<b>&amp;%20+",
    "a/../b?c=d#e",
    "all",
    "łódź \N{FAMILY} \N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
    "x" * 200,
    "\N{GRINNING FACE}" * 200,
)
"""Ids that a charity might have given to the donors; each is also a guest."""


@dataclass
class Doors:
    """A stack whose dialer is that of an example, and all its interfaces."""

    stack: Stack
    gateway: Gateway
    environment: Mapping[str, str]
    dialer: str

    @property
    def expected(self) -> list[UserId]:
        """The ids of the first dialer queue, in order."""
        return next(iter(CASES[self.dialer].expected.values()))

    def get(self, path: str, **options: Any) -> Reply:
        return self.gateway.get(path, bearer=None, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return self.gateway.post(path, body, bearer=None, **options)

    def typed(self, *words: str, code: int = 0) -> str:
        """What a command prints."""
        said = type_in(words, self.environment, self.stack.folder)
        assert said.returncode == code, said
        return said.stdout if code == 0 else said.stderr

    def send(self, task: str, **arguments: Any) -> Any:
        """The result of a Celery message on the assignment queue."""
        with dialer_program(self.stack.redis_url) as app:
            return app.send_task(task, kwargs=arguments, queue="assignment").get(timeout=20)

    def form(self, path: str, said: Mapping[str, str]) -> Reply:
        """Submit a form of the dashboard."""
        page = self.get("/do-not-contact", headers={"Accept": "text/html"}).text
        proof = page.partition('name="proof" value="')[2].partition('"')[0]
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
        return self.post(path, urlencode({**said, "proof": proof}), headers=headers)


@contextmanager
def opened(
    name: str,
    database_url: str,
    redis_url: str,
    folder: Path,
    further: str = "",
    *,
    crm: ExampleCrm | None = None,
) -> Iterator[Doors]:
    """Start the processes of an example and then fill its CRM, as its README says; `further` SQL.

    `crm`: the full CRM in another database.
    """
    file = EXAMPLES / name / "dialerconfig.py"
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    if crm is not None:
        servers |= {"CRM_DATABASE_URL": crm.url, "ASSIGNMENT_WORKERS_CRM_TIMEOUT_SECONDS": "5"}
    environment = {**servers, "ASSIGNMENT_WORKERS_DIALER_CONFIG": str(file)}
    with ExitStack() as keep:
        stack = Stack(database_url, redis_url, folder, keep)
        keep.enter_context(using(DIALERS[name]))
        found = configured(loaded(), Settings.from_environment(environment))
        use_fact_schema(stack.engine, loaded(), found)
        for process in ("sequencer", "maintenance"):
            stack.start(process, dialer_config=str(file), crm_timeout_seconds="5")
        stack.wait_for_leader()
        sql = (EXAMPLES / name / "crm.sql").read_text() + further
        if found is not None:
            keep.callback(found.close)
            sql = "".join(sql.partition("INSERT INTO public.agents")[1:])
        with stack.engine.begin() as connection:
            connection.exec_driver_sql(sql.replace("%", "%%"))
        app = create_gateway(
            Settings.from_environment(environment), stack.engine, crm=found, tokens=False
        )
        port = keep.enter_context(_served(app))
        yield Doors(stack, Gateway(stack, port, {}), environment, name)


@contextmanager
def _served(app: Any) -> Iterator[int]:
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the gateway")
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(params=["clinic", "charity", "clinic-elsewhere", "charity-elsewhere"])
def doors(
    request: pytest.FixtureRequest,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Doors]:
    name, _, elsewhere = request.param.partition("-")
    with ExitStack() as keep:
        crm = None
        if elsewhere:
            server = request.getfixturevalue("postgres_server")
            crm = keep.enter_context(example_elsewhere(name, server))
            monkeypatch.setenv("CRM_DATABASE_URL", crm.url)
        found = keep.enter_context(opened(name, database_url, redis_url, tmp_path, crm=crm))
        discover(found, sum(map(len, CASES[name].expected.values())))
        found.typed("regenerate", "--wait")
        yield found


def discover(doors: Doors, users: int) -> None:
    with dialer_program(doors.stack.redis_url) as app:
        app.send_task("queue.discover", queue="maintenance", ignore_result=True)
    sql = "SELECT count(*) FROM user_call_scores WHERE current_queue_type IS NOT NULL"
    wait_until(lambda: doors.stack.value(sql) == users, "the users in their pools")


def test_every_door_takes_and_shows_the_crm_s_own_id(doors: Doors) -> None:
    first, second, third = doors.expected[:3]
    after = doors.stack.value("SELECT max(id) FROM assignment.events")
    assigned = doors.post("/v1/requests", {"agent_id": 1}).json["assignment"]
    assert assigned["user_id"] == first
    assert doors.get("/v1/agents/1/assignment").json["user_id"] == first
    with Client.connect(doors.stack.redis_url) as client:
        match client.request_next(agent_id=2):
            case Assigned(assignment=held):
                assert held.user_id == second
            case other:
                raise AssertionError(other)
        done = client.release(held.id, agent_id=2, version=held.version)
        assert isinstance(done, Finished)
        assert done.assignment.user_id == second
        assert_again = client.request_next(agent_id=2)
        assert isinstance(assert_again, Assigned)
    third_held = json.loads(doors.typed("request", "3", "--json"))["assignment"]
    assert third_held["user_id"] == third
    with HttpClient(doors.gateway.url) as over_http:
        again = over_http.request_next(agent_id=3)
        assert isinstance(again, Assigned)
        assert again.assignment.user_id == third
    status = json.loads(doors.typed("status", "--json"))
    assert {each["user_id"] for each in status["holds"]} == {first, second, third}
    with doors.gateway.stream(bearer=None, last=after) as stream:
        assert stream.until("assigned", agent_id=1)["user_id"] == first
    page = doors.get("/holds", headers={"Accept": "text/html"}).text
    assert f">{first}</a>" in page
    for user in (first, second, third):
        _told(doors, user)
    assert json.loads(doors.typed("doctor", "--json"))


def _told(doors: Doors, user: UserId) -> None:
    """What is told of one user, who is held."""
    named = quote(str(user), safe="")
    explained = doors.get(f"/v1/users/{named}/explain")
    assert explained.status == 200, explained.text
    assert explained.json["user_id"] == user
    assert explained.json["hold"]["user_id"] == user
    assert json.loads(doors.typed("explain", "--json", "--", str(user)))["user_id"] == user
    exported = doors.get(f"/v1/users/{named}/export").json
    assert exported["user_id"] == user
    assert {each["user_id"] for each in exported["tables"]["assignments"]} == {user}
    refused = doors.post(f"/v1/users/{named}/forget")
    assert refused.status == 409
    assert f"user {user} is held" in refused.json["detail"]


def test_a_command_by_the_own_id_suppresses_that_user_and_forgets_them(doors: Doors) -> None:
    user, other, held = doors.expected[0], doors.expected[1], doors.expected[2]
    said = {"reason": "asked", "by": "ann"}
    assert doors.send("user.suppress", user_id=user, **said)["outcome"] == "done"
    assert doors.post("/v1/requests", {"agent_id": 1}).json["assignment"]["user_id"] == other
    assert doors.post("/v1/requests", {"agent_id": 2}).json["assignment"]["user_id"] == held
    listed = json.loads(doors.typed("do-not-contact", "list", "--json"))
    assert [each["user_id"] for each in listed] == [user]
    assert str(user) in doors.typed("do-not-contact", "export")
    for wrong in (7, True, "", "x" * 201, "a\x00b"):
        answer = doors.send("user.suppress", user_id=wrong, **said)
        assert (answer["outcome"], answer["code"]) == ("refused", Code.MALFORMED), wrong
    doors.typed("do-not-contact", "lift", "--user", str(user), "--why", "again")
    answer = doors.send("user.lift_suppression", kind="quarantine", user_id=user, by="ann", why="x")
    assert answer["reason"] == f"no quarantine stands for user {user}"
    doors.typed("person", "forget", "--", str(user))
    discover(doors, sum(map(len, CASES[doors.dialer].expected.values())) - 1)
    answer = doors.send(
        "user.lift_suppression", kind="do_not_contact", user_id=user, by="ann", why="x"
    )
    assert answer["reason"] == f"user {user} was forgotten, and stays so"
    exported = json.loads(doors.typed("person", "export", "--json", "--", str(user)))
    assert [each["user_id"] for each in exported["tables"]["forgotten"]] == [user]
    assert doors.get("/v1/users/nobody-has-this/explain").status in {404, 422}


@pytest.mark.timeout(400)  # some sixty commands, a second or two each
def test_hostile_ids_go_through_every_door(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    further = "".join(
        "INSERT INTO charity.donors VALUES"
        f" ({_literal(each)}, '+44207946{number:04}', true, '2025-01-01');"
        f"INSERT INTO charity.guests VALUES ({1000 + number}, {_literal(each)});"
        for number, each in enumerate((*HOSTILE, " blank", "x" * 201, "a\tb"), start=5000)
    )
    with opened("charity", database_url, redis_url, tmp_path, further) as doors:
        discover(doors, sum(map(len, CASES["charity"].expected.values())) + len(HOSTILE))
        doors.typed("regenerate", "guests", "--wait")
        with dialer_program(redis_url) as app:
            app.send_task("queue.reconcile", queue="maintenance", ignore_result=True)
        sql = "SELECT max(counts->>'unfit') FROM assignment.job_runs WHERE job = 'queue.reconcile'"
        wait_until(lambda: doors.stack.value(sql) == "3", "the unusable ids to be counted")
        usual = set(CASES["charity"].expected["guests"])
        met = set()
        while (said := doors.post("/v1/requests", {"agent_id": 1, "queue": "guests"}).json)[
            "outcome"
        ] == "assigned":
            hold = said["assignment"]
            met.add(hold["user_id"])
            if hold["user_id"] not in usual:
                _told(doors, hold["user_id"])
                _searched(doors, hold["user_id"])
            body = {"agent_id": 1, "outcome": "not_now"}
            assert doors.post(f"/v1/assignments/{hold['id']}/complete", body).status == 200
        assert met == usual | set(HOSTILE)
        for each in HOSTILE:
            answer = doors.form("/act/do_not_contact", {"user": each, "why": "asked"})
            assert answer.status == 303, answer.text
        rows = doors.stack.rows("SELECT user_id FROM assignment.suppressions")
        ids = user_ids.own(loaded(), doors.stack.engine, [row.user_id for row in rows])
        assert set(ids.values()) == set(HOSTILE)


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _searched(doors: Doors, user: str) -> None:
    """The search of the dashboard leads to the user's page, which names the user."""
    found = doors.form("/find", {"said": user})
    assert found.status == 303, found.text
    assert found.headers["location"] == f"/users/{quote(user, safe='')}"
    page = doors.get(found.headers["location"], headers={"Accept": "text/html"})
    assert page.status == 200
    assert "State of the user" in page.text


@pytest.fixture
def texts(world: World) -> Iterator[World]:
    with using(DIALERS["charity"]):
        yield world


def test_generated_ids_have_one_number_each_and_come_back(texts: World) -> None:
    chance = Random(26)
    alphabet = [chr(each) for each in range(32, 0x2FFF) if not chr(each).isspace()] + list(
        "0'\"\\%"
    )
    made = {"".join(chance.choices(alphabet, k=chance.randint(1, 200))) for _ in range(400)}
    made |= {str(chance.randint(0, 999)).zfill(chance.randint(1, 6)) for _ in range(200)}
    fit = {each for each in made if _is_fit(each)}
    assert len(fit) > 500
    with texts.engine.begin() as connection:
        numbers = user_ids.numbered(
            loaded(), connection, [user_ids.read(loaded(), each) for each in fit]
        )
        assert user_ids.numbered(loaded(), connection, list(fit)) == numbers
        assert len(set(numbers.values())) == len(fit)
        assert {user_ids.number_of(loaded(), connection, each) for each in fit} == set(
            numbers.values()
        )
        assert user_ids.number_of(loaded(), connection, "none of them" * 3) == user_ids.NOBODY
    back = user_ids.own(loaded(), texts.engine, numbers.values())
    assert back == {number: each for each, number in numbers.items()}
    said: list[dict[str, Any]] = [
        {"user_id": number, "rank": number, "n": [1, True]} for number in back
    ]
    shown = user_ids.shown(loaded(), texts.engine, said)
    assert [each["user_id"] for each in shown] == [back[each["rank"]] for each in said]
    number = next(iter(back))
    refusal = Refused(code=Code.FORGOTTEN, reason=f"user {number} was forgotten")
    assert (
        user_ids.shown(loaded(), texts.engine, refusal).reason
        == f"user {back[number]} was forgotten"
    )
    typed = {"reason": f"user {number} said so", "user": number}
    assert user_ids.shown(loaded(), texts.engine, typed) == typed


def _is_fit(each: str) -> bool:
    try:
        return user_ids.read(loaded(), each) == each
    except UsageError:
        return False


def test_an_id_is_read_as_the_crm_writes_it() -> None:
    named = UUID("c11c0000-0000-4000-8000-00000000000a")
    with using(DIALERS["clinic"]):
        assert (
            user_ids.read(loaded(), str(named).upper())
            == user_ids.read(loaded(), named.hex)
            == str(named)
        )
        for no_uuid in ("7", 7, "", None, f"{named}0"):
            with pytest.raises(UsageError, match="UUID"):
                user_ids.read(loaded(), no_uuid)
    assert [user_ids.read(loaded(), each) for each in (7, "7", "007", 2**63 - 1)] == [
        7,
        7,
        7,
        2**63 - 1,
    ]
    for wrong in (
        "",
        "-7",
        0,
        -7,
        2**63,
        "\N{ARABIC-INDIC DIGIT SEVEN}",
        "7.0",
        True,
        None,
        7.0,
        str(named),
    ):
        with pytest.raises(UsageError, match="whole number"):
            user_ids.read(loaded(), wrong)


def test_integers_ask_nothing(world: World) -> None:
    """A CRM whose ids are integers: no statement, no view, and the facts themselves come back."""
    facts = {"user_id": 7}
    assert user_ids.shown(loaded(), world.engine, facts) is facts
    assert user_ids.own(loaded(), world.engine, [7]) == {7: 7}
    assert fact_views.queries(loaded()) == {}
    options = world.engine.get_execution_options()
    world.read_crm(None)
    assert world.engine.get_execution_options() == options


def test_views_follow_the_declaration_and_name_what_the_crm_lacks(world: World) -> None:
    world.execute("CREATE SCHEMA other")
    world.execute("CREATE TABLE other.folk (ref uuid PRIMARY KEY, tel text, at timestamp(3))")
    renamed = "of='other.folk', names={'id': 'ref', 'phone_number': 'tel', 'created_at': %r}"
    assert made(world, renamed % "at") == ["users"]
    assert made(world, renamed % "at") == []
    with pytest.raises(SchemaMismatch, match="cannot be read as declared: column c"):
        made(world, renamed % "when")


def test_a_check_of_another_file_leaves_the_views_that_are_in_use(
    world: World, database_url: str, tmp_path: Path
) -> None:
    world.execute("CREATE SCHEMA other")
    world.execute("CREATE TABLE other.folk (ref uuid PRIMARY KEY, tel text, at timestamp(3))")
    world.execute("ALTER TABLE other.folk ADD seen timestamp(3)")
    renamed = "of='other.folk', names={'id': 'ref', 'phone_number': 'tel', 'created_at': %r}"
    assert made(world, renamed % "at") == ["users"]
    view = "SELECT pg_get_viewdef('crm_facts.users'::regclass)"
    before = world.value(view)
    world.add_agents(7, allowed_queues=["a"])
    environment = {"DATABASE_URL": database_url}
    for column, code in (("seen", 0), ("when", 0)):
        (tmp_path / "dialerconfig.py").write_text(FILE % (renamed % column))
        said = type_in(["dialer", "check"], environment, tmp_path)
        assert said.returncode == code, said.stderr
        assert ("cannot be read as declared: column c" in said.stderr) == (column == "when")
        assert world.value(view) == before


FILE = """from assignment_workers.dialer import *
from sqlalchemy import Uuid
dialer = Dialer(
    [Queue('a', 'A', rules=[])], [Outcome('b', 'B')], persons=Persons(id_type=Uuid(), %s)
)
"""


def made(world: World, persons: str) -> list[str]:
    scope: dict[str, Any] = {}
    exec(FILE % persons, scope)  # noqa: S102 - a file as somebody writes it
    dialer: Dialer = scope["dialer"]
    with world.engine.begin() as connection:
        return fact_views.make(connection, fact_views.queries(dialer))
