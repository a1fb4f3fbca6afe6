"""A page, a stream or JSON of the gateway, read as a browser and as a program read it."""

from __future__ import annotations

from functools import cache
from http.client import HTTPConnection
from urllib.parse import urlencode

from assignment_workers.gateway.dashboard.session import COOKIE
from tests.gateway.stage import Gateway

HTML, EVENTS, JSON = "text/html", "text/event-stream", "application/json"


@cache
def _cookie(port: int, token: str) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", urlencode({"token": token}), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.headers.get("set-cookie", f"{COOKIE}=none").partition(";")[0]


def signed_in(gateway: Gateway, role: str) -> str:
    """The cookie of a session; of a role that may not look at the dashboard, none in force."""
    return _cookie(gateway.port, gateway.tokens[role])


def form(gateway: Gateway, path: str, said: dict[str, str]) -> int:
    """Send a form of the dashboard as an operator: the status."""
    cookie = {"Cookie": signed_in(gateway, "operator")}
    page = fetch(gateway, "/", HTML, cookie)
    assert page[0] == 200, page
    proof = page[1].partition('name="proof" value="')[2].partition('"')[0]
    body = urlencode(said | {"proof": proof})
    headers = cookie | {"Content-Type": "application/x-www-form-urlencoded"}
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    said_back = answer.read()
    connection.close()
    assert answer.status != 403, said_back
    return answer.status


def fetch(
    gateway: Gateway,
    path: str,
    accept: str,
    headers: dict[str, str],
    *,
    method: str = "GET",
    body: str | None = None,
) -> tuple[int, str]:
    """What comes back; of a stream what it says until it has nothing new."""
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request(method, path, body, {"Accept": accept} | headers)
    answer = connection.getresponse()
    if not answer.headers.get("content-type", "").startswith(EVENTS):
        said = answer.read().decode()
    else:
        said = ""
        while not said.endswith(("\n\n\n", ": alive\n\n")) and "event: regions" not in said:
            line = answer.readline().decode()
            said += line
            if line.startswith("data: "):
                break
    connection.close()
    return answer.status, said
