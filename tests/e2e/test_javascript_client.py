"""The JavaScript client: made from the document that the gateway gives, and its own tests by Node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.node import CLIENT, Node
from tests.gateway.stage import Gateway

TYPES = {
    "@assignment-workers/client": [str(CLIENT / "dist/index.d.ts")],
    "@assignment-workers/client/node": [str(CLIENT / "dist/node.d.ts")],
}
STALE = "run `make client-types`"


def test_the_openapi_document_is_the_one_that_the_gateway_gives(gateway: Gateway) -> None:
    kept = json.loads((CLIENT / "openapi.json").read_text())
    package = json.loads((CLIENT / "package.json").read_text())
    assert package["version"] == kept["info"]["version"]
    command = [sys.executable, "-m", "assignment_workers", "openapi"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert kept == printed, STALE
    assert kept == gateway.get("/openapi.json").json, STALE


def test_the_types_are_made_from_the_document(node: Node, tmp_path: Path) -> None:
    made = tmp_path / "openapi.ts"
    generator = "node_modules/openapi-typescript/bin/cli.js"
    said = node.run(generator, "openapi.json", "--output", made, folder=CLIENT)
    assert said.returncode == 0, said.stderr
    assert (CLIENT / "src/openapi.ts").read_text() == made.read_text(), STALE


def test_the_tests_and_the_examples_use_the_types_as_they_are(node: Node) -> None:
    said = node.run("node_modules/typescript/bin/tsc", "--project", "test", folder=CLIENT)
    assert said.returncode == 0, said.stdout


def test_the_readme_uses_the_types_as_they_are(node: Node, tmp_path: Path) -> None:
    blocks = re.findall(r"```ts\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.ts").write_text(block)
    options = {"rootDir": "/", "types": [], "paths": TYPES}
    project = {"extends": str(CLIENT / "test/tsconfig.json"), "compilerOptions": options}
    (tmp_path / "tsconfig.json").write_text(json.dumps(project | {"include": ["."]}))
    said = node.run("node_modules/typescript/bin/tsc", "--project", tmp_path, folder=CLIENT)
    assert said.returncode == 0, said.stdout


def test_the_client_does_what_it_says(node: Node, gateway: Gateway) -> None:
    _run("client.test.js", node, gateway)


def test_the_client_finds_a_stack_of_this_machine(node: Node, gateway: Gateway) -> None:
    _run("node.test.js", node, gateway)


def test_a_request_that_nobody_answers_in_time_is_unavailable(node: Node, gateway: Gateway) -> None:
    with gateway.stack.connection() as connection:
        connection.exec_driver_sql("SELECT 1 FROM assignment.sequencer FOR UPDATE")
        _run("unanswered.test.js", node, gateway)
        connection.rollback()


def _run(name: str, node: Node, gateway: Gateway) -> None:
    said = node.run(
        "--test",
        "--test-reporter=spec",
        "--test-timeout=40000",
        f"test/{name}",
        folder=CLIENT,
        variables={
            "GATEWAY_URL": gateway.url,
            "FRONTEND": gateway.tokens["frontend"],
            "OPERATOR": gateway.tokens["operator"],
            "AGENT_1": gateway.tokens["agent 1"],
        },
    )
    if said.returncode != 0:
        pytest.fail(said.stdout + said.stderr, pytrace=False)
    assert "pass 0" not in said.stdout
