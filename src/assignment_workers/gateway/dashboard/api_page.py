"""The documentation of the gateway's HTTP interface as a page, made from the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class ApiField:
    """A field of a request body, or a parameter of a path, query or header."""

    name: str
    kind: str
    required: bool
    description: str


@dataclass(frozen=True)
class ApiExample:
    """An example of a response, as text."""

    name: str
    text: str


@dataclass(frozen=True)
class ApiOperation:
    """One operation of the HTTP interface, in the form that the page shows."""

    id: str
    method: str
    path: str
    description: str
    fields: list[ApiField]
    answers: list[tuple[str, str]]
    """Pairs of an HTTP status and its meaning."""
    examples: list[ApiExample]


def operations(document: Schema) -> Iterator[tuple[str, str, list[ApiOperation]]]:
    """Yield each group of operations in an OpenAPI document: name, description, operations."""
    for tag in document["tags"]:
        found = [
            _operation(document, method, path, operation)
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if tag["name"] in operation["tags"]
        ]
        yield tag["name"], tag["description"], found


def _operation(document: Schema, method: str, path: str, said: Schema) -> ApiOperation:
    fields = [
        ApiField(
            f"{each['name']} ({each['in']})",
            _kind(each["schema"]),
            each.get("required", False),
            each.get("description", ""),
        )
        for each in said.get("parameters", [])
    ]
    body = said.get("requestBody", {}).get("content", {}).get("application/json", {})
    examples = []
    for status, response in said["responses"].items():
        for media in response.get("content", {}).values():
            for name, each in media.get("examples", {}).items():
                text = json.dumps(each["value"], indent=2)
                examples.append(ApiExample(f"{status} {name}", text))
            if isinstance(media.get("example"), str):
                examples.append(ApiExample(status, media["example"]))
    return ApiOperation(
        said["operationId"],
        method.upper(),
        path,
        said["description"],
        fields + _fields(document, body.get("schema", {})),
        [(status, each["description"]) for status, each in said["responses"].items()],
        examples,
    )


def _fields(document: Schema, schema: Schema) -> list[ApiField]:
    """Return the fields of a request body; none if it has no fields.

    `schema`: the JSON schema of the body, in the OpenAPI document `document`. For an optional body,
    the schema is an `anyOf` of the body's own schema and null.
    """
    found = _resolved(document, schema)
    for each in found.get("anyOf", []):
        if "properties" in (inner := _resolved(document, each)):
            found = inner
    required = found.get("required", [])
    return [
        ApiField(name, _kind(each), name in required, each.get("description", ""))
        for name, each in found.get("properties", {}).items()
    ]


def _resolved(document: Schema, schema: Schema) -> Schema:
    if "$ref" in schema:
        found: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _kind(schema: Schema) -> str:
    """Format the type and the bounds of a JSON schema, such as `integer, from 1, to 10`."""
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = str(schema.get("format") or schema.get("type", "any"))
    bounds = [
        f"{words} {schema[name]:,}"
        for name, words in (
            ("minimum", "from"),
            ("maximum", "to"),
            ("maxLength", "at most"),
        )
        if name in schema
    ]
    return ", ".join([kind, *bounds])
