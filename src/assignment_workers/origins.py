"""The rule by which a server refuses HTTP requests that pages of other origins cause.

A page of another site can make a browser send a request to any address that the browser reaches,
with the cookies and logins that the browser has for that address. The rule refuses such an HTTP
request before its sender is authenticated. The rule recognizes it by its headers Host, Origin and
Sec-Fetch. A program that is not a browser sends the header Host, but no Origin and no Sec-Fetch
headers. Its request is refused only if Host does not name this server.

Two kinds of requests from pages of other origins are allowed: those from the origins in
`Origins.pages`, and the visit of a person who follows a link to this server.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

SAFE = frozenset({"GET", "HEAD"})
ANY = "*"
OPAQUE = "null"
"""The Origin header of a page whose origin the browser does not reveal."""


@dataclass(frozen=True)
class Refusal:
    """The HTTP status and the reason for a request that is refused because of its origin."""

    status: HTTPStatus
    detail: str


@dataclass(frozen=True)
class Origins:
    """The host names of a server, and the other origins whose pages may call it."""

    hosts: frozenset[str] = frozenset()
    """Host names of the server besides `localhost` and IP addresses. `.example.com` stands for all
    names below it.
    """
    pages: frozenset[str] = frozenset()
    """Other origins whose pages may call the server, such as `https://dialer.example`."""

    @classmethod
    def of(cls, hosts: str | None, pages: str | None = None, *, listens: str = "") -> Origins:
        """Make the object from two comma-separated settings, `hosts` and `pages`.

        `listens`: the host name on which the server listens, which is accepted too.
        """
        return cls(_listed(hosts) | _listed(listens), _listed(pages))

    def refusal(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return a `Refusal` if the request must be refused; None if it is allowed.

        `headers` are keyed by lower-case names.
        """
        host = headers.get("host", "")
        if host and not self.answers_to(host):
            return Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server does not answer to that Host: ASSIGNMENT_WORKERS_ALLOWED_HOSTS "
                "names the hosts that it answers to",
            )
        if self._from_elsewhere(method, host, headers):
            return Refusal(HTTPStatus.FORBIDDEN, "a page of another origin may not call this")
        return None

    def answers_to(self, host: str) -> bool:
        """Return True if `host`, a Host header, is accepted as a name of this server.

        Accepted are `localhost`, names below it, the names in `hosts`, and every IP address. A port
        is ignored. If `hosts` has `*`, all names are accepted.

        The check prevents DNS rebinding. In this attack, the attacker has a host name that leads to
        this server's address, and a page under that name sends requests to this server. Host of
        these requests is the attacker's name, so the requests are refused. Host of these requests
        is never an IP address, so IP addresses can be accepted.
        """
        name = _name(host)
        if ANY in self.hosts or name in self.hosts or _is_address(name):
            return True
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return any(each.startswith(".") and name.endswith(each) for each in self.hosts)

    def _from_elsewhere(self, method: str, host: str, headers: Mapping[str, str]) -> bool:
        origin, site = headers.get("origin", "").lower(), headers.get("sec-fetch-site")
        if origin in self.pages:
            return False
        if origin and (origin, site) != (OPAQUE, "same-origin"):
            return urlsplit(origin).netloc != host.lower()
        if site in {None, "none", "same-origin"}:
            return False
        # A link on a page of another site may lead here; a frame, an image or a script may not.
        is_visit = headers.get("sec-fetch-mode") == "navigate"
        is_page = headers.get("sec-fetch-dest", "document") == "document"
        return not (method in SAFE and is_visit and is_page)


def _listed(said: str | None) -> frozenset[str]:
    each = (part.strip().rstrip("/").lower() for part in (said or "").split(","))
    return frozenset(part for part in each if part)


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
