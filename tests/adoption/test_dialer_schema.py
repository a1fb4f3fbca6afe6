"""A dialer whose tables are not in `public`: named by the address or the search path, and served."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from assignment_workers.adoption.inspect import inspect
from assignment_workers.adoption.rollback import rollback
from assignment_workers.assignment.answers import Finished
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.errors import SchemaMismatch, UsageError
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import migrate as migrations
from assignment_workers.schema import roles
from assignment_workers.schema.engine import connect
from tests.adoption import dialers
from tests.adoption.dialers import OUTSTANDING, UNSIGNED, connected
from tests.adoption.moving import moved, rows
from tests.adoption.test_adopting import run_command
from tests.gateway.serving import with_roles
from tests.support.world import HOUR, User, World, opened
from tests.support.world import UNSIGNED as UNSIGNED_USERS

IN_PUBLIC = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
VIEW = "CREATE VIEW of_both AS SELECT user_id FROM unsigned_users_queue JOIN public.mine USING (id)"


def elsewhere(url: str, name: str = "deployed", schema: str = "dialer") -> None:
    """A dialer in a schema of its own, with users 1 to 4 in line and 3 held by agent 7."""
    with connected(url) as connection:
        connection.execute(f"CREATE SCHEMA {schema}; SET search_path TO {schema}".encode())
        dialers.STATES[name](connection)
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at)"
            " SELECT gen_random_uuid(), n, CASE n WHEN 4 THEN 'outstanding_requests'"
            " ELSE 'unsigned_users' END, now() FROM generate_series(1, 4) n"
        )
        dialers.queue(
            connection,
            UNSIGNED,
            (1, 2, "pending", None),
            (2, 1, "pending", None),
            (3, 3, "assigned", 7),
        )
        dialers.queue(connection, OUTSTANDING, (4, 1, "pending", None))
        connection.execute("CREATE TABLE public.mine (id uuid)")
        connection.execute(VIEW)


def by_address(url: str) -> str:
    return make_url(url).update_query_dict({"schema": "dialer"}).render_as_string(False)


def by_path(url: str) -> str:
    with connected(url) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path TO dialer, public',"
            " current_database()); END $$"
        )
    return url


WAYS: dict[str, Callable[[str], str]] = {"address": by_address, "search_path": by_path}


@pytest.mark.parametrize(
    ("way", "name"),
    [("address", "target"), ("search_path", "deployed"), ("search_path", "widened")],
)
def test_a_dialer_in_another_schema_is_taken_over_served_and_given_back(
    empty_database_url: str, tmp_path: Path, way: str, name: str
) -> None:
    plain = empty_database_url
    elsewhere(plain, name)
    url = WAYS[way](plain)
    for words in ("inspect", "migrate --dry-run"):
        done = run_command(url, tmp_path, "schema", *words.split())
        assert (done.returncode, done.stderr) == (words == "inspect", ""), words
        if words == "inspect":
            assert re.search(rf"{UNSIGNED}\W+(deployed|target)", done.stdout)
        assert "public." not in done.stdout.replace("public.mine", "")
    moved(url)
    assert rows(plain, IN_PUBLIC) == [(1,)]
    # From here on the database knows by itself: the address need not say it.
    for address in (url, plain):
        engine = connect(address, name="test", statement_timeout=timedelta(seconds=30))
        world = World(engine)
        with engine.connect() as connection:
            migrations.check(connection)
            assert inspect(connection, None).is_ours
            connection.rollback()
            assert [each for each in examine(connection, loaded()) if not each.ok] == []
        engine.dispose()
    world.execute(
        "INSERT INTO crm.users (id, is_enabled, created_at) SELECT n, true, now()"
        " FROM generate_series(1, 4) n"
    )
    world.execute(
        "INSERT INTO crm.claims (id, user_id, status) SELECT n, n, 'open'"
        " FROM generate_series(1, 4) n"
    )
    assert world.held(8).user_id == 2
    assert rows(plain, f"SELECT user_id, status FROM dialer.{UNSIGNED} ORDER BY 1") == [
        (1, "pending"),
        (2, "assigned"),
        (3, "assigned"),
    ]
    _two_worlds(plain)
    moved(url)
    assert rollback(plain) == [f"dialer.{UNSIGNED}", f"dialer.{OUTSTANDING}"]
    assert rows(plain, f"SELECT user_id, status FROM dialer.{UNSIGNED} ORDER BY 1") == [
        (1, "pending"),
        (2, "assigned"),
        (3, "assigned"),
    ]
    with connected(plain) as connection:
        connection.execute("SET search_path TO pg_catalog")
        found = connection.execute("SELECT pg_get_viewdef('dialer.of_both'::regclass)").fetchone()
    assert f"dialer.{UNSIGNED}" in str(found)
    assert "public.mine" in str(found)
    moved(url)
    engine.dispose()


def _two_worlds(url: str) -> None:
    """The dialer promises and claims by its own statements; its claim is a hold of ours."""
    with connected(url) as connection:
        connection.execute("SET search_path TO dialer")
        for _ in range(2):
            connection.execute(
                "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id)"
                " VALUES (gen_random_uuid(), 1, now(), gen_random_uuid())"
            )
        assert connection.execute(
            "SELECT status, count(*) FROM callbacks WHERE user_id = 1 GROUP BY 1 ORDER BY 1"
        ).fetchall() == [("cancelled", 1), ("pending", 1)]
        connection.execute(
            "UPDATE callbacks SET status = 'assigned', assigned_to_agent_id = 9"
            " WHERE status = 'pending'"
        )
        with pytest.raises(psycopg.errors.FeatureNotSupported, match=r"dialer\.unsigned_users"):
            connection.execute(f"DELETE FROM {UNSIGNED}")
    held = "SELECT user_id, agent_id FROM assignment.assignments WHERE state = 'active' ORDER BY 1"
    assert rows(url, held)[0] == (1, 9)


def test_an_address_that_names_another_schema_than_the_one_taken_over_is_refused(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    elsewhere(url)
    with connected(url) as connection:
        connection.execute("CREATE SCHEMA other")
    moved(by_address(url))
    for schema in ("other", "public"):
        with pytest.raises(UsageError, match=f"schema={schema}: this database was taken over with"):
            moved(make_url(url).update_query_dict({"schema": schema}).render_as_string(False))


def test_a_schema_that_is_not_there_is_named_and_nothing_is_changed(
    empty_database_url: str,
) -> None:
    with pytest.raises(UsageError, match="schema=dialer: there is no such schema"):
        moved(by_address(empty_database_url))
    assert rows(empty_database_url, "SELECT to_regnamespace('assignment')::text") == [(None,)]


def test_one_taken_over_in_public_stays_so_whatever_a_search_path_finds_later(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.deployed(connection)
    moved(url)
    elsewhere(url)
    by_path(url)
    engine = connect(url, name="test", statement_timeout=timedelta(seconds=30))
    with engine.connect() as connection:
        migrations.check(connection)
        assert (
            connection.execute(text("SELECT count(*) FROM public.user_call_scores")).scalar() == 0
        )
    engine.dispose()
    with pytest.raises(SchemaMismatch, match="leads to the dialer's tables in the schema dialer"):
        moved(url)


def test_the_roles_of_least_privilege_work_there_and_are_to_be_made_again_after_an_upgrade(
    empty_database_url: str, tmp_path: Path
) -> None:
    plain = empty_database_url
    elsewhere(plain)
    url = by_address(plain)
    moved(url)
    with opened(url):
        pass  # the CRM's tables are there before the rights on them
    done = run_command(url, tmp_path, "schema", "migrate", "--roles")
    assert (done.returncode, done.stderr) == (0, "")
    login = with_roles(url)
    with opened(url) as world:
        world.add_users([User(user, has_score_row=False) for user in range(1, 5)])
        owner, world.engine = world.engine, worker_engine(login(roles.WORKER))
        hold = world.held(8)
        said = {"callback_at": world.now + HOUR}
        assert isinstance(world.complete(hold, "call_back", **said), Finished)
        world.regenerate(UNSIGNED_USERS)
        world.engine.dispose()
        world.engine = owner
    assert rows(plain, "SELECT user_id FROM dialer.callbacks") == [(hold.user_id,)]
    kept = f"dialer.{UNSIGNED}_before_adoption"
    with connected(login(roles.GATEWAY).partition("?")[0]) as gateway:
        assert gateway.execute(f"DELETE FROM {kept} WHERE user_id = 1".encode()).rowcount == 1
        for denied in (f"UPDATE {kept} SET user_id = 3", "DELETE FROM dialer.agents"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                gateway.execute(denied.encode())
    with connected(login(roles.READER).partition("?")[0]) as reader:
        assert reader.execute(b"SELECT count(*) FROM dialer.callbacks").fetchone() == (1,)
    # What a later version adds has no grants yet, and whoever migrates is told.
    assert "--roles" not in run_command(url, tmp_path, "schema", "migrate").stdout
    with connected(plain) as connection:
        connection.execute(
            "REVOKE UPDATE (notes) ON assignment.assignments FROM assignment_gateway"
        )
    told = run_command(url, tmp_path, "schema", "migrate").stdout
    assert "(1, such as UPDATE on assignments for assignment_gateway)" in told
    assert "run `assignment-workers schema migrate --roles`" in told


def worker_engine(url: str) -> Engine:
    limit = timedelta(seconds=30)
    return connect(url, name="test", statement_timeout=limit, pool_size=6, index_plans_only=True)
