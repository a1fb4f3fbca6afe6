"""What each PostgreSQL role may do where the CRM is elsewhere, with lists, and after an adoption."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from random import Random

import psycopg
import pytest
from sqlalchemy import Engine

from assignment_workers.assignment import jobs, person, phones
from assignment_workers.assignment.answers import Assigned
from assignment_workers.assignment.crm import mirror
from assignment_workers.assignment.crm.external_crm import configured
from assignment_workers.assignment.jobs import Counts, Job, Work
from assignment_workers.assignment.pools.discover import discover, reconcile
from assignment_workers.assignment.suppression_lists import Named, drop, flip, purge_lists, stage
from assignment_workers.assignment.suppressions import do_not_contact, subject
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import roles
from assignment_workers.schema.engine import connect
from assignment_workers.schema.tables import SuppressionKind
from tests.adoption import dialers
from tests.adoption.dialers import UNSIGNED as QUEUE_TABLE
from tests.adoption.dialers import connected
from tests.adoption.moving import moved
from tests.gateway.serving import with_roles
from tests.support.external_crm import OtherCrm
from tests.support.world import UNSIGNED, User, World, opened

NUMBERS = itertools.count(1)
READER = Reader(key="a-key-of-32-letters-or-more-for-numbers")
PHONE = "+44 7700 900123"


@pytest.fixture
def crm(postgres_server: str) -> Iterator[OtherCrm]:
    """A CRM elsewhere, empty."""
    name = f"crm_of_roles_{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    yield OtherCrm(f"{postgres_server.rpartition('/')[0]}/{name}", "people")
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def world(database_url: str, crm: OtherCrm) -> Iterator[World]:
    """Users of a CRM elsewhere, set up by the owner of everything."""
    with opened(database_url, crm) as made:
        made.set(crm_database_url=crm.url, crm_mapping=crm.name, crm_timeout=timedelta(seconds=2))
        made.add_agents(1)
        made.add_users([User(1, 1, phone=PHONE), User(2, 2, phone="+44 7700 900999")])
        made.execute("DROP SCHEMA crm CASCADE")
        yield made


@contextmanager
def under(world: World, url: str) -> Iterator[World]:
    """The same world, by a role's own connections."""
    owner = world.engine
    engine = connect(
        url,
        name="test",
        statement_timeout=timedelta(seconds=30),
        pool_size=6,
        index_plans_only=True,
    )
    found = configured(loaded(), world.settings)
    assert found is not None
    world.engine = engine
    world.read_crm(found)
    try:
        yield world
    finally:
        world.engine = owner
        engine.dispose()
        found.close()


def job(engine: Engine, name: str, work: Callable[[Work], Counts]) -> Counts:
    ran = jobs.run(engine, Job(name, "hand"), work)
    assert ran.skipped is None
    return ran.counts


def test_the_worker_reads_a_crm_elsewhere_and_the_gateway_exports_and_forgets(
    world: World, database_url: str
) -> None:
    login = with_roles(database_url)
    with under(world, login(roles.WORKER)) as at:
        assert at.external_crm is not None
        reading = partial(mirror.read_whole, dialer=loaded(), crm=at.external_crm)
        assert job(at.engine, "crm.mirror", reading)["users"] == 2
        numbers = at.policies[UNSIGNED].numbers
        assert job(at.engine, "phones.read", lambda work: phones.read(work, numbers))["read"] == 2
        job(
            at.engine,
            "queue.discover",
            lambda work: discover(
                work, loaded(), at.external_crm, at.policies, lambda _: None, randomness=Random(1)
            ),
        )
        job(
            at.engine,
            "queue.reconcile",
            lambda work: reconcile(work, loaded(), at.external_crm, at.policies, lambda _: None),
        )
        at.regenerate(UNSIGNED)
        given = at.ask(1)
        assert isinstance(given, Assigned)
        assert given.assignment.user_id == 1
        at.release(given.assignment)
        at.run(do_not_contact, reader=READER, phone=PHONE, reason="asked", by="operator")
        at.execute(
            "INSERT INTO assignment.commands (id, task, subject, position, answer, term,"
            " answered_at) VALUES ('a', 'user.suppress', :subject, 1, '{}', 1, now())",
            subject=subject(SuppressionKind.DO_NOT_CONTACT, READER, phone=PHONE),
        )
    with under(world, login(roles.GATEWAY)) as at:
        with at.engine.connect() as connection:
            exported = person.export(connection, loaded(), 1, READER)
        assert "900123" in exported.model_dump_json()
        with at.engine.begin() as connection:
            counts = person.forget(connection, loaded(), at.external_crm, 1, READER)
        assert counts["crm_mirror.users"] == counts["hashed_entries"] == counts["commands"] == 1
    with under(world, login(roles.READER)) as at:
        assert at.column("SELECT id FROM crm_mirror.users") == [2]
    with under(world, login(roles.WORKER)) as at:
        assert at.external_crm is not None
        reading = partial(mirror.read_whole, dialer=loaded(), crm=at.external_crm)
        job(at.engine, "crm.mirror", reading)
        assert at.column("SELECT id FROM crm_mirror.users") == [2], "who was forgotten stays away"


def test_the_worker_purges_a_list_whoever_imported_it(world: World, database_url: str) -> None:
    login = with_roles(database_url)
    named = Named(name="register", replaces=True, reason="bought", by="ann")
    with world.engine.connect() as connection:
        made = stage(connection, [(1, PHONE, None)], named, READER, queues=loaded().policies)
    assert made.list_id is not None
    with under(world, login(roles.WORKER)) as at:
        at.run(flip, made.list_id, by="ann", why="loaded")
        at.run(drop, "register", by="ann", why="over")
        autocommit = at.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with autocommit as connection:
            assert purge_lists(connection) == 1
    assert world.value("SELECT count(*) FROM assignment.suppressed_numbers") == 0


def test_a_role_without_the_right_is_told_so_in_one_line(world: World, database_url: str) -> None:
    login = with_roles(database_url)
    given = {name: each for name, each in os.environ.items() if "ASSIGNMENT" not in name}
    ran = subprocess.run(
        [sys.executable, "-m", "assignment_workers", "person", "export", "1"],
        env=given | {"DATABASE_URL": login(roles.WORKER), "REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == (
        "assignment-workers: permission denied for table operator_actions: this command needs"
        " another database role. Log in as a member of assignment_gateway, or of assignment_owner"
        " for `schema`, `token` and `do-not-contact import`\n"
    )


def test_roles_that_are_given_again_after_an_adoption_have_what_it_made(
    empty_database_url: str,
) -> None:
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
        dialers.queue(connection, QUEUE_TABLE, (1, 1, "pending", None), (2, 2, "pending", None))
    moved(empty_database_url)
    kept = f"{QUEUE_TABLE}_before_adoption"
    login = with_roles(empty_database_url)
    with psycopg.connect(login(roles.GATEWAY)) as gateway:
        assert gateway.execute(f"DELETE FROM {kept} WHERE user_id = 1".encode()).rowcount == 1
        assert gateway.execute(f"SELECT count(*) FROM {kept}".encode()).fetchone() == (1,)
        gateway.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            gateway.execute(f"UPDATE {kept} SET user_id = 3".encode())
    with psycopg.connect(login(roles.WORKER)) as worker:
        assert worker.execute(b"SELECT count(*) FROM public.user_call_scores").fetchone()
