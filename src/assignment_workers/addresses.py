"""Addresses of servers as people write them: checked by their form, and shown without passwords.

A PostgreSQL address is what libpq takes: a URI or `name=value` pairs, with any number of hosts.
libpq's own parser reads it. Nothing here contacts a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

POSTGRES = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")
"""The schemes of a PostgreSQL address, libpq's own and SQLAlchemy's."""
HOST_PARAMETERS = ("host", "hostaddr", "port")
"""libpq's parameters that are lists, with a value for each server."""
HIDDEN = "**"
LARGEST_PORT = 65_535

_ENCODED = "special characters in a password are written as in %40 for @"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BEFORE_HOSTS = re.compile(r"[^:]+://(?:[^@/]*@)?")
"""libpq's rule: the user and the password end at the first @ before a slash."""


def check_address(value: str, *schemes: str) -> str:
    """Return the address unchanged. Raises ValueError for another scheme or port.

    With PostgreSQL's schemes, `name=value` pairs are an address too.
    """
    if "postgresql" in schemes and is_postgres(value):
        return check_postgres(value)
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:  # the error's message may hold a part of the password
        raise ValueError(f"the port is not a number up to 65535; {_ENCODED}") from None
    if parts.scheme not in schemes:
        raise ValueError(f"the scheme is {parts.scheme!r}; accepted: {', '.join(schemes)}")
    return value


def is_postgres(value: str) -> bool:
    """Return True if the address is one of PostgreSQL by its form: a URI, or `name=value` pairs."""
    scheme = _SCHEME.match(value)
    return scheme.group(1).lower() in POSTGRES if scheme else "=" in value


def check_postgres(value: str) -> str:
    """Return a PostgreSQL address unchanged. Raises ValueError if libpq would not take its form.

    The names of the parameters of a URI are not checked, because other programs add their own.
    """
    libpq_parameters(value, lambda query: {n: v for n, v in query.items() if n in _knows()})
    return value


def libpq_parameters(
    value: str, translate: Callable[[Mapping[str, str]], Mapping[str, str]] = dict
) -> dict[str, str]:
    """Return the parameters of a PostgreSQL address by libpq's names, as libpq reads the address.

    `translate` gets the parameters of a URI's query and returns those that libpq is to read. Raises
    ValueError, a line without any part of the address except the name of an unknown parameter.
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

    Empty if they name none: libpq then takes its defaults. Raises ValueError if the numbers of
    hosts and ports differ.
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
    """Return the parameters with those of the service file that `service` names, as libpq does it.

    Parameters of the address win. Without `service` they are returned unchanged, and also if the
    file or the service is not found here: libpq then looks for it, and reports it. Raises
    ValueError for hosts and ports of different numbers.
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
    """Return a text with the password of every address in it hidden, whatever the address is of."""
    for secret, left in (
        (_USER_INFO, rf"\1{HIDDEN}@"),
        (_IN_QUERY, rf"\1{HIDDEN}"),
        (_IN_PAIRS, rf"\1{HIDDEN}"),
    ):
        said = secret.sub(left, said)
    return said


_USER_INFO = re.compile(r"(?<=://)([^:/?#\s]*:)(?:(?!://)[^\s])*@")
"""The user and the password of an address, greedy up to the last @."""
_SECRETS = r"(?:ssl|sentinel_|oauth_)?(?:password|client_secret)"
_IN_QUERY = re.compile(rf"([?&]{_SECRETS}=)[^&;\s]*", re.IGNORECASE)
_IN_PAIRS = re.compile(
    rf"((?<![?&\w]){_SECRETS}\s*=\s*)('(?:[^'\\]|\\.)*'|(?:\\.|\S)*)", re.IGNORECASE
)
"""A password of libpq's `name=value` pairs, which ends at a space or a quote."""


def _knows() -> set[str]:
    from psycopg import pq

    return {each.keyword.decode() for each in pq.Conninfo.get_defaults()} | {"ssl"}


def query_of(value: str) -> dict[str, str]:
    """Return the parameters in the query of a PostgreSQL URI; empty for `name=value` pairs."""
    begins = _BEFORE_HOSTS.match(value) if _SCHEME.match(value) else None
    return _query(value[begins.end() :].partition("?")[2]) if begins else {}


def _query(query: str) -> dict[str, str]:
    """Return the parameters of a URI's query as libpq reads them: a plus sign is a plus sign."""
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
    """Return the parameters of the service `name` in the text of libpq's service file."""
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
