"""A program that only asks for users imports and installs little."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest

from tests.support.root import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = {"alembic", "amqp", "celery", "fastapi", "jinja2", "kombu", "phonenumbers", "sqlalchemy"}
CODE = """
import json, sys
from assignment_workers import client
made = getattr(client, sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("Client", {"httpx", "urllib3"}),
        ("AsyncClient", {"httpx", "urllib3"}),
        ("HttpClient", {"redis"}),
        ("AsyncHttpClient", {"redis", "urllib3"}),
    ],
)
def test_a_client_imports_nothing_that_serves(name: str, without: set[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE, name], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(json.loads(ran.stdout)) & (SERVER | without) == set()


def test_what_the_clients_need_is_all_that_is_installed_without_an_extra() -> None:
    names = {each.partition(">")[0] for each in PROJECT["dependencies"]}
    assert names == {"httpx", "httpx-sse", "psutil", "pydantic", "redis", "urllib3"}
    served = " ".join(PROJECT["optional-dependencies"]["server"])
    assert all(name in served for name in SERVER)
