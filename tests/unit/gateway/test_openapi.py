"""The OpenAPI document is fit for generators: its examples validate, and its names are unique."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.support.root import ROOT

DOCUMENT: dict[str, Any] = json.loads((ROOT / "clients" / "js" / "openapi.json").read_text())
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def _examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Each example with its place and the schema that it is to keep to."""
    for name, operation in OPERATIONS.items():
        for parameter in operation.get("parameters", []):
            yield from _of(f"{name} {parameter['name']}", parameter, parameter["schema"])
        for status, response in operation["responses"].items():
            for kind, media in response.get("content", {}).items():
                yield from _of(f"{name} {status} {kind}", media, media.get("schema", {}))
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            yield from _of(f"{name} {kind}", media, media["schema"])
    for name, schema in DOCUMENT["components"]["schemas"].items():
        yield from _within(name, schema)


def _within(place: str, schema: Any) -> Iterator[tuple[str, dict[str, Any], Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("examples"), list):
            for number, value in enumerate(schema["examples"]):
                yield f"{place} example {number}", schema, value
        for key, each in schema.items():
            yield from _within(f"{place}.{key}", each)
    if isinstance(schema, list):
        for number, each in enumerate(schema):
            yield from _within(f"{place}[{number}]", each)


def _of(
    place: str, holder: dict[str, Any], schema: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    if "example" in holder:
        yield f"{place} example", schema, holder["example"]
    for name, each in holder.get("examples", {}).items():
        yield f"{place} example {name}", schema, each["value"]
    yield from _within(place, schema)


EXAMPLES = list(_examples())


@pytest.mark.parametrize(("place", "schema", "value"), EXAMPLES, ids=[each[0] for each in EXAMPLES])
def test_an_example_keeps_to_its_schema(place: str, schema: dict[str, Any], value: Any) -> None:
    whole = {"components": DOCUMENT["components"], **schema}
    validator = Draft202012Validator(whole, format_checker=FormatChecker())
    assert [each.message for each in validator.iter_errors(value)] == []


def test_answers_to_agents_have_examples() -> None:
    said = " ".join(place for place, *_ in EXAMPLES)
    for name in OPERATIONS:
        if name.startswith("POST /v1/assignments/") or name == "POST /v1/requests":
            assert f"{name} 200 application/json example" in said, name


def test_every_operation_has_an_id_fit_for_a_method_a_summary_and_a_description() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert sorted(ids) == sorted(set(ids))
    assert [each for each in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)*", each)] == []
    for name, operation in OPERATIONS.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name


def test_every_schema_has_the_title_that_a_generator_names_it_by() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert {name: each.get("title") for name, each in schemas.items()} == {
        name: name for name in schemas
    }


def test_it_names_a_server_and_its_tags() -> None:
    (server,) = DOCUMENT["servers"]
    assert server["url"] == "/"
    used = {tag for operation in OPERATIONS.values() for tag in operation["tags"]}
    assert {tag["name"] for tag in DOCUMENT["tags"]} == used
    assert all(tag["description"] for tag in DOCUMENT["tags"])
    assert DOCUMENT["info"]["license"] == {"name": "MIT", "identifier": "MIT"}
