"""Addresses of PostgreSQL in every form of libpq's: each door connects to what libpq would read.

Nothing is contacted. psycopg's own connecting is replaced by one that notes what it was given and
fails, so that of several hosts each is tried.
"""

from __future__ import annotations

import asyncio
import os
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo
from sqlalchemy.exc import DBAPIError

from assignment_workers.addresses import (
    check_postgres,
    hosts_of,
    libpq_parameters,
    without_password,
)
from assignment_workers.errors import AssignmentWorkersError, UsageError
from assignment_workers.gateway.events.feed import Feed
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import hosts, migrate, roles
from assignment_workers.schema.engine import connect, direct_url, driver_url
from assignment_workers.schema.external_crm import reader
from assignment_workers.sequencer.term import Candidacy
from assignment_workers.settings import Settings
from assignment_workers.tasks.censored import without_passwords

SECRET = "hunter2"
ADDED = {
    *("application_name", "connect_timeout", "keepalives", "keepalives_idle", "tcp_user_timeout"),
    *("keepalives_interval", "keepalives_count", "options", "target_session_attrs"),
}
"""What a door adds, or says in place of the address."""

WORDS = st.text(string.ascii_letters + string.digits + " %+&=?#'\\é_-", min_size=1, max_size=8)
NAMES = st.from_regex(r"\A[a-z]{1,8}(\.[a-z]{1,6})?\Z")
HOSTS = (
    NAMES
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
    | NAMES.map(lambda name: f"/run/{name}")
)
PORTS = st.none() | st.integers(1, 65_535).map(str)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "sslmode": st.sampled_from(["disable", "require", "verify-full"]),
        "sslrootcert": st.just("/etc/ca +&.pem"),
        "sslcert": st.just("/etc/me.crt"),
        "sslkey": st.just("/etc/me.key"),
        "sslpassword": st.just(SECRET),
        "load_balance_hosts": st.sampled_from(["disable", "random"]),
        "target_session_attrs": st.sampled_from(["read-write", "primary"]),
        "channel_binding": st.just("require"),
        "options": st.just("-c work_mem=8MB"),
        "connect_timeout": st.just("3"),
    },
)


@dataclass(frozen=True)
class Said:
    """What somebody wants to connect to."""

    servers: list[tuple[str, str | None]]
    parameters: dict[str, str]

    @property
    def whole(self) -> dict[str, str]:
        """All of it, by libpq's names."""
        ports = [port or "" for _, port in self.servers]
        given = {"host": ",".join(host for host, _ in self.servers)} if self.servers else {}
        return given | ({"port": ",".join(ports)} if any(ports) else {}) | self.parameters


@st.composite
def wanted(draw: st.DrawFn) -> Said:
    servers = draw(st.lists(st.tuples(HOSTS, PORTS), min_size=1, max_size=3))
    password = f"{draw(WORDS)}{SECRET}{draw(WORDS)}@:/"
    own = {"user": draw(WORDS), "password": password, "dbname": draw(WORDS)}
    return Said(servers, own | draw(PARAMETERS))


def uri(said: Said, scheme: str) -> str:
    """As most write it: an IPv6 address in brackets, a socket's folder with %2F."""
    rest = dict(said.parameters)
    user, password, dbname = (_quoted(rest.pop(name)) for name in ("user", "password", "dbname"))
    at = ",".join(
        (f"[{host}]" if ":" in host else _quoted(host)) + (f":{port}" if port else "")
        for host, port in said.servers
    )
    return f"{scheme}://{user}:{password}@{at}/{dbname}{_query(rest)}"


def uri_of_parameters(said: Said, scheme: str) -> str:
    return f"{scheme}://{_query(said.whole)}"


def pairs(said: Said, _: str) -> str:
    return make_conninfo("", **said.whole)


def service(said: Said, _: str) -> str:
    """Everything but the password stands in a file."""
    rest = said.whole
    file = Path(os.environ["PGSERVICEFILE"])
    lines = [f"{name}={value}" for name, value in rest.items() if name != "password"]
    file.write_text("\n".join(["[other]", "host=x", "# ours", "[dialer]", *lines]), "utf-8")
    return make_conninfo("service=dialer", password=rest["password"])


FORMS: list[Callable[[Said, str], str]] = [uri, uri_of_parameters, pairs, service]
SCHEMES = ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"]


def libpq_reads(address: str, scheme: str, said: Said) -> dict[str, str]:
    """What libpq's own parser makes of the address; it knows only its own schemes."""
    parsed = conninfo_to_dict(address.replace(scheme, "postgresql", 1))
    found = {name: str(value) for name, value in parsed.items()}
    if name := found.pop("service", None):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PGSERVICE", name)
            defaults = {
                each.keyword.decode(): each.val.decode()
                for each in Conninfo.get_defaults()
                if each.val
            }
        found = {each: defaults[each] for each in said.whole if each in defaults} | found
    return found


def _quoted(word: str) -> str:
    return quote(word, safe="")


def _query(parameters: dict[str, str]) -> str:
    said = "&".join(f"{name}={_quoted(value)}" for name, value in parameters.items())
    return f"?{said}" if said else ""


@pytest.fixture(autouse=True)
def _of_this_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.NamedTemporaryFile() as file:
        monkeypatch.setenv("PGSERVICEFILE", file.name)
        yield


class Refused(psycopg.OperationalError):
    """The server that is not there."""


@contextmanager
def noted() -> Iterator[list[dict[str, Any]]]:
    """What psycopg is told to connect to, within; it never does."""
    found: list[dict[str, Any]] = []

    def note(conninfo: str = "", **given: Any) -> dict[str, Any]:
        own = {"autocommit", "context", "prepare_threshold", "row_factory", "cursor_factory"}
        told = {name: value for name, value in given.items() if name not in own}
        parameters = conninfo_to_dict(conninfo, **told)
        conninfo_to_dict(make_conninfo("", **parameters))  # libpq takes it
        return {name: str(value) for name, value in parameters.items()}

    def no_connection(_: Any, /, conninfo: str = "", **given: Any) -> Any:
        found.append(note(conninfo, **given))
        raise Refused("it is not there")

    async def no_connection_either(_: Any, /, conninfo: str = "", **given: Any) -> Any:
        no_connection(_, conninfo, **given)

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(psycopg.Connection, "connect", classmethod(no_connection))
        replaced.setattr(psycopg.AsyncConnection, "connect", classmethod(no_connection_either))
        replaced.setattr(hosts, "_KNOWN", {})
        yield found


def by_engine(url: str) -> None:
    """The pipeline's statements go over its connections, too."""
    made = connect(url, name="addresses", statement_timeout=timedelta(seconds=1))
    try:
        made.connect()
    finally:
        made.dispose()


def by_lock(url: str) -> None:
    Candidacy(url, dialer=loaded()).connect()


def by_start(url: str) -> None:
    direct_url(Settings.from_environment({"DATABASE_URL": "postgresql://x/", LOCK: url}))


def by_listening(url: str) -> None:
    engine = connect(url, name="addresses", statement_timeout=timedelta(seconds=1))
    try:
        asyncio.run(Feed(engine, url)._follow())
    finally:
        engine.dispose()


def by_migration(url: str) -> None:
    migrate.upgrade(url)


def by_roles(url: str) -> None:
    roles.apply(url)


def by_crm(url: str) -> None:
    reader(url, 1.0, pool=None).connect()


LOCK = "ASSIGNMENT_WORKERS_LOCK_DATABASE_URL"
DOORS = [by_engine, by_lock, by_start, by_listening, by_migration, by_roles, by_crm]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(said=wanted(), scheme=st.sampled_from(SCHEMES))
def test_every_door_connects_to_what_libpq_reads(
    door: Callable[[str], None], form: Callable[[Said, str], str], said: Said, scheme: str
) -> None:
    address = form(said, scheme)
    expected = libpq_reads(address, scheme, said)
    assert Settings.from_environment({"DATABASE_URL": address}).database == address
    with noted() as connected:
        with pytest.raises((AssignmentWorkersError, DBAPIError, psycopg.Error)) as failed:
            door(address)
    assert SECRET not in str(failed.value)
    tried = [host for each in connected for host in hosts_of(each)]
    assert tried == hosts_of(expected)
    for each in connected:
        rest = {name: value for name, value in each.items() if name not in {"host", "port"}}
        assert {name: rest[name] for name in rest.keys() - ADDED} == {
            name: expected[name] for name in expected.keys() - {"host", "port"} - ADDED
        }
        assert int(rest["connect_timeout"]) <= 5
        assert "work_mem" not in expected.get("options", "") or "work_mem" in rest["options"]
        if len(tried) > 1:
            assert door is by_crm or rest["target_session_attrs"] in hosts.WRITES


@pytest.mark.parametrize("form", FORMS[:3])
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    said=wanted(),
    scheme=st.sampled_from(SCHEMES),
    text=st.sampled_from(["{}", "at {}, it", "{};{}"]),
)
def test_no_log_and_no_page_shows_a_password(
    form: Callable[[Said, str], str], said: Said, scheme: str, text: str
) -> None:
    address = form(said, scheme)
    for shown in (without_password(text.format(address, address)), without_passwords([address])):
        assert SECRET not in str(shown)


@settings(max_examples=100)
@given(said=wanted(), data=st.data())
def test_an_address_that_was_mistyped_is_refused_without_its_password(
    said: Said, data: st.DataObject
) -> None:
    address = data.draw(st.sampled_from(FORMS[:3]))(said, "postgresql")
    place = data.draw(st.integers(0, len(address)))
    damage = data.draw(st.sampled_from(["", "@", ":", "/", "?", "[", "]", "=", "'", "%", "%zz"]))
    broken = address[:place] + damage + address[place + 1 :]
    said_of_it = ""
    try:
        check_postgres(broken)
    except ValueError as refused:
        said_of_it = str(refused)
    assert SECRET not in said_of_it
    assert "\n" not in said_of_it


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://u:pa@ss@h/d", "a host has an @"),
        ("postgresql://h:12a/d", "the port is not a number"),
        ("postgresql://h:70000/d", "the port is not a number"),
        ("postgresql://a:1,b:x/d", "the port is not a number"),
        ("host=a,b,c port=1,2", "3 hosts have 2 values of port"),
        ("postgresql://[::1/d", "libpq cannot read it"),
        ("host=a b", "libpq cannot read it"),
        ("postgresql://h/d?sslmod=require", "libpq has no parameter 'sslmod'"),
        ("postgresql://a,b/d?target_session_attrs=standby", "read-write"),
        ("postgresql://a,b/d?target_session_attrs=any", "read-write"),
    ],
)
def test_what_cannot_be_is_named(address: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        driver_url(address)


def test_a_parameter_of_another_program_does_not_hide_what_is_wrong() -> None:
    check_postgres("postgresql://h/d?connection_limit=5&schema=dialer")
    with pytest.raises(ValueError, match="the port is not a number"):
        check_postgres("postgresql://h:x/d?connection_limit=5")
    assert libpq_parameters("postgresql:///d?ssl=true") == {"dbname": "d", "sslmode": "require"}
