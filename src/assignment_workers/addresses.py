"""Addresses of servers as people write them: checked by their form, and shown without passwords.

A PostgreSQL address is what libpq takes: a URI or `name=value` pairs, with any number of hosts.
libpq's own parser reads it. Nothing here contacts a server. `listen` opens a socket to listen on.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from assignment_workers.errors import UsageError

POSTGRES = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")
"""The schemes of a PostgreSQL address that are accepted: those of libpq and of SQLAlchemy."""
REDIS = ("redis", "rediss", "sentinel")
"""The schemes of the address of a Redis or a Valkey."""
SENTINEL = "sentinel://"
SENTINEL_PORT = 26_379
HOST_PARAMETERS = ("host", "hostaddr", "port")
"""libpq's parameters that may be lists with a value for each server."""
HIDDEN = "**"
LARGEST_PORT = 65_535

_ENCODED = "special characters in a password are written as in %40 for @"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BEFORE_HOSTS = re.compile(r"[^:]+://(?:[^@/]*@)?")
"""The part of a URI before the hosts. As in libpq, user and password end at the first @ before a
slash.
"""


def check_address(value: str, *schemes: str) -> str:
    """Return the address unchanged. Raises ValueError if its scheme or port is not accepted.

    If `schemes` has `postgresql`, libpq's `name=value` pairs are accepted too. If it has
    `sentinel`, the address may name several Sentinels.
    """
    if "postgresql" in schemes and is_postgres(value):
        return check_postgres(value)
    if "sentinel" in schemes and value.startswith(SENTINEL):
        SentinelAddress.read(value)
        return value
    if "sentinel" in schemes and value == "none":
        raise ValueError(
            "answers and beat's schedule are in Redis, with RabbitMQ too; unset: `up` has its own"
        )
    return _check_url(value, schemes)


def _check_url(value: str, schemes: Sequence[str]) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:  # the error's message may hold a part of the password
        raise ValueError(f"the port is not a number up to 65535; {_ENCODED}") from None
    if parts.scheme not in schemes:
        raise ValueError(f"the scheme is {parts.scheme!r}; accepted: {', '.join(schemes)}")
    return value


@dataclass(frozen=True)
class SentinelAddress:
    """The address, in Celery's form, of a Redis whose primary server is found by Redis Sentinel.

    Example: `sentinel://:password@a:26379/0;sentinel://b:26379/0`. User, password and database are
    those of the Redis server, given once or repeated with each Sentinel. The query may have
    `master_name`, `sentinel_username`, `sentinel_password` and options for TLS (`ssl_...`).
    """

    sentinels: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = None
    db: int = 0
    master_name: str = "mymaster"
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict)
    """Options for TLS, such as `ssl_ca_certs`. If there are none, TLS is not used."""

    @classmethod
    def read(cls, value: str) -> SentinelAddress:
        """Parse the address `value`.

        Raises ValueError if the address is invalid. The error's message may name a parameter, but
        never contains its value, which may be a password.
        """
        sentinels: list[tuple[str, int]] = []
        said: dict[str, set[str]] = {}
        for each in value.split(";"):
            parts = urlsplit(_check_url(each, ["sentinel"]))
            if not parts.hostname:
                raise ValueError("sentinel:// needs a host, as in sentinel://host:26379")
            sentinels.append((parts.hostname, parts.port or SENTINEL_PORT))
            own = {"username": parts.username, "password": parts.password}
            own["db"] = parts.path.strip("/")
            decoded = {name: unquote(word) for name, word in own.items() if word}
            for name, word in [*decoded.items(), *parse_qsl(parts.query)]:
                said.setdefault(name, set()).add(word)
        if twice := sorted(name for name, words in said.items() if len(words) > 1):
            raise ValueError(f"sentinel:// has several values of {twice[0]}")
        one = {name: next(iter(words)) for name, words in said.items()}
        tls = {name: one.pop(name) for name in [*one] if name.startswith("ssl_")}
        if unknown := sorted(one.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"sentinel:// has no parameter {unknown[0]!r}")
        if not (db := one.pop("db", "0")).isdecimal():
            raise ValueError("the database of a Redis is a number, as in sentinel://host:26379/0")
        return cls(tuple(sentinels), **one, db=int(db), tls=tls)

    @property
    def for_celery(self) -> str:
        """The address in Celery's form: a part for each Sentinel, with a semicolon between parts.

        Each part has the host and port of one Sentinel, and repeats the user, password and database
        of the Redis server. The query of the parsed address is left out: its values, such as
        `master_name`, are not a part of this form, and have to be given to Celery as options.
        """
        user, password = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        at = f"{user}:{password}@" if user or password else ""
        return ";".join(
            f"{SENTINEL}{at}{f'[{host}]' if ':' in host else host}:{port}/{self.db}"
            for host, port in self.sentinels
        )


def shown(value: str) -> str:
    """Return the hosts and ports in the address of a Redis or a RabbitMQ, as text."""
    found = []
    for each in value.split(";"):
        parts = urlsplit(each)
        found.append(f"{parts.hostname or ''}:{parts.port or ''}")
    return ", ".join(found)


def is_postgres(value: str) -> bool:
    """Return True if the address has PostgreSQL's form: a URI or `name=value` pairs."""
    scheme = _SCHEME.match(value)
    return scheme.group(1).lower() in POSTGRES if scheme else "=" in value


def check_postgres(value: str) -> str:
    """Return a PostgreSQL address unchanged. Raises ValueError if libpq does not accept its form.

    Unknown parameters in the query of a URI are ignored, because other programs add their own.
    """
    libpq_parameters(value, lambda query: {n: v for n, v in query.items() if n in _knows()})
    return value


def libpq_parameters(
    value: str, translate: Callable[[Mapping[str, str]], Mapping[str, str]] = dict
) -> dict[str, str]:
    """Parse a PostgreSQL address as libpq does; return its parameters by libpq's names.

    `translate` gets the parameters of a URI's query and returns those to pass to libpq. Raises
    ValueError if the address is invalid. The error's message may name an unknown parameter, but
    never contains its value, which may be a password.
    """
    from psycopg import pq
    from psycopg.errors import OperationalError

    text = value
    if _SCHEME.match(value):
        text = f"postgresql{value[value.index('://') :]}"
        begins = _BEFORE_HOSTS.match(text)
        hosts, mark, query = text[begins.end() if begins else 0 :].partition("?")
        said = translate(_query(query))
        if unknown := sorted(said.keys() - _knows()):
            raise ValueError(f"libpq has no parameter {unknown[0]!r}")
        text = f"{begins.group() if begins else ''}{hosts}{mark}" + "&".join(
            f"{name}={quote(each, safe='')}" for name, each in said.items()
        )
    try:
        options = pq.Conninfo.parse(text.encode())
    except OperationalError:  # its message repeats the address
        raise ValueError(f"libpq cannot read it; {_ENCODED}") from None
    found = {each.keyword.decode(): each.val.decode() for each in options if each.val is not None}
    _check_hosts(found)
    return found


def hosts_of(parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return `host`, `hostaddr` and `port` of each server that libpq's parameters name, in order.

    Returns an empty list if the parameters name no server; libpq then uses its defaults. Raises
    ValueError if the numbers of hosts, host addresses and ports differ. A single port is allowed:
    it applies to all hosts.
    """
    lists = {
        name: str(parameters[name]).split(",") for name in HOST_PARAMETERS if parameters.get(name)
    }
    count = max(len(lists.get("host", ())), len(lists.get("hostaddr", ())))
    if count == 0:
        return []
    if len(lists.get("port", ())) == 1:
        lists["port"] *= count
    if wrong := [name for name, each in lists.items() if len(each) != count]:
        raise ValueError(f"{count} hosts have {len(lists[wrong[0]])} values of {wrong[0]}")
    rows = zip(*lists.values(), strict=True)
    return [{name: each for name, each in zip(lists, row, strict=True) if each} for row in rows]


def with_service(parameters: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return `parameters` and those that libpq's service file adds to them.

    The parameter `service`, or else PGSERVICE in `environment`, names a service in that file. A
    value in `parameters` takes precedence over the file's. If no service is named, or the file or
    the service is not found, `parameters` are returned unchanged. libpq then reports a missing
    file or service. Raises ValueError if the file's values lead to an invalid host or port, or to
    different numbers of hosts and ports.
    """
    name = parameters.get("service") or environment.get("PGSERVICE")
    if not name:
        return dict(parameters)
    files = [Path(environment.get("PGSERVICEFILE") or "~/.pg_service.conf").expanduser()]
    if system := environment.get("PGSYSCONFDIR"):
        files.append(Path(system, "pg_service.conf"))
    for file in files:
        if file.is_file() and (found := _service(file.read_text(encoding="utf-8"), name)):
            made = {**found, **{n: v for n, v in parameters.items() if n != "service"}}
            _check_hosts(made)
            return made
    return dict(parameters)


def without_password(said: str) -> str:
    """Return the text `said` with the password of every address in it hidden."""
    for secret, left in (
        (_USER_INFO, rf"\1{HIDDEN}@"),
        (_IN_QUERY, rf"\1{HIDDEN}"),
        (_IN_PAIRS, rf"\1{HIDDEN}"),
    ):
        said = secret.sub(left, said)
    return said


_USER_INFO = re.compile(r"(?<=://)([^:/?#\s]*:)(?:(?!://)[^\s])*@")
"""The user and the password of an address, up to the last @."""
_SECRETS = r"(?:ssl|sentinel_|oauth_)?(?:password|client_secret)"
_IN_QUERY = re.compile(rf"([?&]{_SECRETS}=)[^&;\s]*", re.IGNORECASE)
_IN_PAIRS = re.compile(
    rf"((?<![?&\w]){_SECRETS}\s*=\s*)('(?:[^'\\]|\\.)*'|(?:\\.|\S)*)", re.IGNORECASE
)
"""The pattern of a password in libpq's `name=value` pairs, which `without_password` hides.

The password ends at a space or, if it is quoted, at the closing quote.
"""


def _knows() -> set[str]:
    from psycopg import pq

    return {each.keyword.decode() for each in pq.Conninfo.get_defaults()} | {"ssl"}


def query_of(value: str) -> dict[str, str]:
    """Return the parameters in the query of a PostgreSQL URI; empty for `name=value` pairs."""
    begins = _BEFORE_HOSTS.match(value) if _SCHEME.match(value) else None
    return _query(value[begins.end() :].partition("?")[2]) if begins else {}


def _query(query: str) -> dict[str, str]:
    """Parse the query of a URI as libpq does; return the parameters by name.

    Unlike in a web form, a plus sign stays a plus sign.
    """
    pairs = (each.partition("=") for each in query.split("&") if each)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def _check_hosts(parameters: Mapping[str, str]) -> None:
    for each in hosts_of(parameters):
        if each.get("host", "").find("@") > 0:  # a first one names an abstract socket
            raise ValueError(f"a host has an @ in it; {_ENCODED}")
    for port in parameters.get("port", "").split(","):
        if port and not (port.isascii() and port.isdecimal() and 1 <= int(port) <= LARGEST_PORT):
            raise ValueError(f"the port is not a number up to 65535; {_ENCODED}")


def _service(text: str, name: str) -> dict[str, str]:
    """Return the parameters of the service `name` in `text`, a libpq service file."""
    found: dict[str, str] = {}
    within = False
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            within = line == f"[{name}]"
        elif within:
            key, _, value = line.partition("=")
            found.setdefault(key, value)
    return found


def listen(setting: str, host: str, port: int, *, backlog: int | None = None) -> socket.socket:
    """Return a socket that listens on the address. `setting` is the name of the port's setting.

    Raises `UsageError` if listening fails.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise cannot_listen(setting, host, port, error) from None


def cannot_listen(setting: str, host: str, port: int, error: OSError) -> UsageError:
    """Return the error for an address on which listening failed.

    `setting` names the port's setting.
    """
    return UsageError(
        f"{setting}={port}: {host} port {port} cannot be listened on: {error.strerror or error}; "
        "each process on a host needs a port of its own"
    )
