"""A stack of `up` is closed: to pages of other origins, to other users, to a link used twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from assignment_workers.client import Assigned, HttpClient
from assignment_workers.devstack import temporary
from assignment_workers.runtime.stack import Stack
from tests.e2e.browser import CHROMIUM, needs_chromium

pytestmark = [needs_chromium, pytest.mark.timeout(180)]
STRANGER = "evil.example"
"""A name that an attacker's DNS server leads to this machine (DNS rebinding)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("closed")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[Stack]:
    with temporary.stack(folder, {"ASSIGNMENT_WORKERS_DEMO_USERS": "5000"}) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        rules = f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1"
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield found
        found.close()


@pytest.fixture
def signed_in(browser: Browser, stack: Stack) -> Iterator[BrowserContext]:
    """A browser that one link has signed in to the dashboard, and the dashboard to Flower."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(linked(stack))
        expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
        page.get_by_role("link", name="Flower").click()
        page.wait_for_selector("#workers-table")
        page.close()
        yield context


@pytest.fixture(scope="module")
def strangers_port() -> Iterator[int]:
    """A page of another program on this machine."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>A page</title><body>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def linked(stack: Stack) -> str:
    link = stack.dashboard_link(now=datetime.now(UTC))
    assert link is not None
    return link


def call(
    url: str, method: str = "GET", *, body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """What a program is answered."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        where = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, where or "/", body, said)
        answer: HTTPResponse = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, answer.read().decode()
    finally:
        connection.close()


def done(stack: Stack) -> list[object]:
    """What somebody who got in could have changed."""
    with psycopg.connect(stack.database_url) as connection:
        rows = connection.execute(
            "SELECT (SELECT count(*) FROM assignment.operator_actions),"
            " (SELECT count(*) FROM assignment.dead_letters),"
            " (SELECT count(*) FROM assignment.queues WHERE paused_at IS NOT NULL),"
            " (SELECT count(*) FROM assignment.assignments WHERE agent_id = 77)"
        ).fetchall()
    return list(rows[0])


TRY = """async ({targets}) => {
  const read = [];
  for (const [method, url, type] of targets) {
    for (const mode of ["cors", "no-cors", "same-origin"]) {
      try {
        const headers = type ? {"Content-Type": type} : {};
        const body = method === "POST" && type ? 'agent_id=77&subject=unsigned_users&why=x' : undefined;
        const answer = await fetch(url, {method, mode, headers, body, credentials: "include"});
        const text = await answer.text();
        read.push([method, url, mode, answer.type, answer.status, text.length]);
      } catch { /* as it should be */ }
    }
    if (method === "POST") {
      const frame = document.createElement("iframe");
      frame.name = "f" + Math.random();
      document.body.append(frame);
      const form = document.createElement("form");
      Object.assign(form, {method, action: url, target: frame.name});
      form.append(Object.assign(document.createElement("input"), {name: "why", value: "x"}));
      document.body.append(form);
      const loaded = new Promise((over) => { frame.onload = over; setTimeout(over, 3000); });
      form.submit();
      await loaded;
    }
    navigator.sendBeacon?.(url);
    await new Promise((over) => {
      const image = new Image();
      image.onload = () => { read.push(["image", url]); over(); };
      image.onerror = over;
      image.src = url;
    });
  }
  return read;
}"""


def targets(gateway: str, flower: str) -> list[list[str]]:
    form, plain = "application/x-www-form-urlencoded", "text/plain"
    return [
        ["GET", f"{gateway}/", ""],
        ["GET", f"{gateway}/agents", ""],
        ["GET", f"{gateway}/v1/queues", ""],
        ["GET", f"{gateway}/v1/events", ""],
        ["GET", f"{gateway}/metrics", ""],
        ["POST", f"{gateway}/v1/queues/unsigned_users/pause", ""],
        ["POST", f"{gateway}/v1/queues/unsigned_users/regenerate", ""],
        ["POST", f"{gateway}/v1/requests", plain],
        ["POST", f"{gateway}/act/pause", form],
        ["POST", f"{gateway}/logout", form],
        ["GET", f"{flower}/", ""],
        ["GET", f"{flower}/tasks", ""],
        ["GET", f"{flower}/metrics", ""],
        ["GET", f"{flower}/api/workers?refresh=1", ""],
        ["POST", f"{flower}/api/task/send-task/queue.pause", plain],
        ["POST", f"{flower}/api/task/async-apply/queue.pause", form],
        ["POST", f"{flower}/api/worker/shutdown/any", form],
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_nothing_and_does_nothing(
    signed_in: BrowserContext, stack: Stack, strangers_port: int, host: str
) -> None:
    assert stack.gateway_url
    assert stack.flower_url
    before = done(stack)
    page = signed_in.new_page()
    page.goto(f"http://{host}:{strangers_port}/")
    tried = targets(stack.gateway_url, stack.flower_url)
    read = page.evaluate(TRY, {"targets": tried})
    # What `no-cors` gives is opaque: its status is 0 and its text empty, whatever the answer was.
    assert [each for each in read if each[3:] != ["opaque", 0, 0]] == []
    assert done(stack) == before
    page.goto(f"{stack.gateway_url}/agents")
    expect(page.get_by_role("heading", level=1)).to_have_text("Agents")  # nobody was signed out
    page.close()


def test_a_name_that_leads_here_opens_nothing(signed_in: BrowserContext, stack: Stack) -> None:
    """DNS rebinding: to the browser, the page and the server are of one origin."""
    before = done(stack)
    for url in (stack.gateway_url, stack.flower_url):
        assert url
        rebound = f"http://{STRANGER}:{urlsplit(url).port}"
        page = signed_in.new_page()
        for method, target, _ in targets(rebound, rebound):
            if method == "GET":
                opened = page.goto(target)
                assert opened
                assert opened.status == 421, target
            else:  # what a page of that name would send
                origin = {"Host": urlsplit(rebound).netloc, "Origin": rebound}
                here = url + target.removeprefix(rebound)
                assert call(here, "POST", Sec_Fetch_Site="same-origin", **origin)[0] == 421, target
        page.close()
    assert done(stack) == before


def test_the_link_opens_the_dashboard_once(browser: Browser, stack: Stack) -> None:
    link = linked(stack)
    status, headers, _ = call(link)
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=strict" in headers["set-cookie"]
    again, headers, page = call(link)
    assert again == 403
    assert "set-cookie" not in headers
    assert "was used before" in page
    with browser.new_context() as context:
        opened = context.new_page()
        opened.goto(linked(stack))
        expect(opened.locator("#live")).to_have_text("Live")
        opened.goto(link)
        expect(opened.get_by_role("heading", level=1)).to_have_text("Overview")
        (cookie,) = context.cookies()
        opened.get_by_role("button", name="Sign out").click()
        expect(opened.get_by_label("Token of")).to_be_visible()
        over = f"assignment_workers={cookie['value']}"
        status, headers, _ = call(f"{stack.gateway_url}/agents", Cookie=over, Accept="text/html")
        assert (status, headers["location"]) == (303, "/login?next=/agents")


def test_the_secret_of_the_home_opens_everything(stack: Stack, folder: Path) -> None:
    client = HttpClient.of_stack(folder / "home")
    answer = client.request_next(31)
    assert isinstance(answer, Assigned)
    client.release(answer.assignment.id, 31)
    client.close()
    bearer = {"Authorization": f"Bearer {stack.gateway_token}"}
    assert call(f"{stack.gateway_url}/v1/queues", **bearer)[0] == 200
    assert call(f"{stack.gateway_url}/v1/queues")[0] == 401
    wrong = {"Authorization": f"Bearer {stack.gateway_token}x"}
    assert call(f"{stack.gateway_url}/v1/queues", **wrong)[0] == 401


def test_flower_asks_for_its_login_and_changes_nothing(stack: Stack) -> None:
    assert stack.flower_auth
    login = {"Authorization": f"Basic {b64encode(stack.flower_auth.encode()).decode()}"}
    for path in ("/", "/tasks", "/metrics", "/api/workers", "/api/task/types", "/broker"):
        assert call(f"{stack.flower_url}{path}")[0] == 401, path
        wrong = {"Authorization": f"Basic {b64encode(b'flower:x').decode()}"}
        assert call(f"{stack.flower_url}{path}", **wrong)[0] == 401, path
    assert call(f"{stack.flower_url}/healthcheck")[2] == "OK"
    before = done(stack)
    for path in ("task/send-task/queue.pause", "worker/shutdown/a", "task/revoke/a"):
        status, _, _ = call(f"{stack.flower_url}/api/{path}", "POST", body="{}", **login)
        assert status == 403, path
    assert done(stack) == before
    status, _, workers = call(f"{stack.flower_url}/api/workers?refresh=1", **login)
    assert status == 200
    shown = [worker["conf"] for worker in json.loads(workers).values()]
    assert shown
    assert all("redbeat_redis_url" in conf for conf in shown)
    password = urlsplit(stack.redis_url).password
    assert password
    assert password not in workers


OTHER_USER = r"""
import json, os, socket, struct, sys
from pathlib import Path
from urllib.request import Request, urlopen
from urllib.error import HTTPError

home, database, cache, gateway, flower, role = sys.argv[1:]
found = {"uid": os.getuid(), "files": [], "words": ""}
for name in ("stack.json", "secret.json", "postgres/address.json", "valkey/valkey.conf", "lock"):
    try:
        Path(home, name).read_text()
        found["files"].append(name)
    except OSError:
        pass
for each in os.listdir("/proc"):
    for name in ("cmdline", "environ"):
        try:
            found["words"] += Path("/proc", each, name).read_bytes().decode("utf-8", "replace")
        except OSError:
            pass

def port(said):
    host, number = said.rsplit(":", 1)
    return socket.create_connection((host, int(number)), timeout=20)

with port(cache) as redis:
    redis.sendall(b"LPUSH assignment x\r\n")
    found["valkey"] = redis.recv(100).decode()
with port(database) as server:
    said = struct.pack("!i", 196608) + f"user\0{role}\0database\0{role}\0\0".encode()
    server.sendall(struct.pack("!i", len(said) + 4) + said)
    answer = server.recv(9)
    found["postgres"] = [answer[:1].decode(), struct.unpack("!i", answer[5:9])[0]]
for name, url in (("gateway", gateway), ("flower", flower)):
    try:
        found[name] = urlopen(Request(url), timeout=20).status
    except HTTPError as error:
        found[name] = error.code
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_gets_nothing(stack: Stack, folder: Path) -> None:
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    assert python
    database, cache = urlsplit(stack.database_url), urlsplit(stack.redis_url)
    ran = subprocess.run(
        [
            *(python, "-I", "-c", OTHER_USER, str(folder / "home")),
            *(f"{each.hostname}:{each.port}" for each in (database, cache)),
            *(f"{stack.gateway_url}/v1/queues", f"{stack.flower_url}/tasks"),
            str(database.username),
        ],
        user="nobody",
        extra_groups=[],
        cwd="/",
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(ran.stdout)
    assert found["uid"] != 0
    assert found["files"] == []
    assert found["valkey"].startswith("-NOAUTH")
    scram = 10
    assert found["postgres"] == ["R", scram], "it asks for the password, and lets nobody in"
    assert (found["gateway"], found["flower"]) == (401, 401)
    secrets = {database.password, cache.password, stack.gateway_token, stack.flower_auth}
    assert [each for each in secrets if each and each in found["words"]] == []
    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.lrange("assignment", 0, -1).count(b"x") == 0


def test_what_up_prints_opens_both_without_a_secret_typed(
    browser: Browser, stack: Stack, folder: Path
) -> None:
    said = (folder / "stack.log").read_text()
    with browser.new_context() as context:
        for name, selector in (("dashboard", "#live"), ("Flower", "#workers-table")):
            (link,) = re.findall(rf"^{name} +(http://\S+)$", said, re.MULTILINE)
            page = context.new_page()
            page.goto(link)
            page.wait_for_selector(selector)
    assert stack.gateway_token
    assert stack.gateway_token not in said
