"""The pages of the reference, made of the code: `python tools/reference.py settings` prints one.

The build of the site writes them each time, and they are stored nowhere else. The docstring of a
name is the sentence of the page. `tests/unit/docs/test_reference.py` names what has no docstring.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from typer.main import get_group

from assignment_workers.assignment.operational_settings import OPERATIONAL
from assignment_workers.cli.main import SECTIONS, app
from assignment_workers.client.core import AgentMethods, OperatorMethods
from assignment_workers.client.http_core import HttpMethods
from assignment_workers.dialer.loading import load
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema import crm, dialer, tables
from assignment_workers.schema.base import Base, CrmBase, DialerBase
from assignment_workers.settings import PREFIX, Settings
from assignment_workers.tasks import create_app

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "assignment_workers"
POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]

load(Settings.from_environment({}))  # the packaged dialer

ANSWERS = SOURCE / "assignment" / "answers.py"

GROUPS = {
    "database_url": "Servers and secrets",
    "crm_mapping": "The CRM",
    "lease": "Assignments, agents and callbacks",
    "phone_region": "Users, outcomes and dialer queues",
    "calling_hours": "Calling rules",
    "message_maximum": "Messages and retention",
    "gateway_port": "The gateway",
    "metrics_port": "Metrics and logs",
    "flower_port": "Flower and Celery",
    "demo_seed": "The demo",
}
"""The heading that begins at a setting; each holds until the next."""


def pages() -> dict[str, str]:
    """Each page by its place on the site."""
    return {f"reference/{name}.md": make() for name, make in PAGES.items()}


def settings() -> str:
    """Every setting: variable, default, what is accepted, what it sets."""
    said = documented("Settings")
    made = [
        "# Settings",
        """Each is an environment variable, read once at the start of a process. An empty value
counts as unset. A value that cannot be used, and an unknown name that begins with
`ASSIGNMENT_WORKERS_`, stop the start with one line that names the variable.
Addresses, passwords, keys and tokens may stand in files: `DATABASE_URL_FILE` names
the file with the value of `DATABASE_URL`, and so on.
Celery's own settings are in [`celeryconfig.py`](../../celeryconfig.py).""",
    ]
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            made.append(f"## {GROUPS[name]}")
        default = "unset" if field.default is None else f"`{_value(field.default)}`"
        made += [
            f"### `{field.alias}` {{ data-toc-label={str(field.alias).removeprefix(PREFIX)} }}",
            f"Default: {default}. Accepted: {_accepted(name, field)}.",
            said[name],
        ]
        if name in OPERATIONAL:
            made.append("The first value only: [`settings set`](../operators.md) changes it.")
    return _page(made)


def cli() -> str:
    """Every command with its arguments and options."""
    made = [
        "# Command line",
        """`assignment-workers`, also `python -m assignment_workers`. Exit codes: 0 good, 1
found wrong, 2 used wrong. Every command has `--help`; `--install-completion`
completes commands in bash, zsh and fish. The servers are those of `DATABASE_URL`
and `REDIS_URL`, else the embedded ones of the stack that runs in the home.""",
    ]
    commands = get_group(app).commands
    for title, section in SECTIONS.items():
        made.append(f"## {title}")
        for name in section:
            command: Any = commands[name]
            group = getattr(command, "commands", None)
            if group is None:
                made += _command(name, command)
                continue
            made += [f"### `{name}`", _prose(command.help)]
            for each, inner in group.items():
                made += _command(f"{name} {each}", inner, level=4)
    return _page(made)


def http() -> str:
    """Every path of the gateway's OpenAPI document, and the bodies."""
    document = json.loads((ROOT / "clients" / "js" / "openapi.json").read_text())
    made = [
        "# HTTP",
        """Of the gateway's OpenAPI document, which `GET /openapi.json` and `assignment-workers
openapi` give. [Run the gateway](../gateway.md) has roles, tokens, answers and live
events. Instants are UTC, ISO 8601; errors are problem details (RFC 9457).""",
        "## Paths",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            made += [f"### `{method.upper()} {path}`", _prose(operation.get("description", ""))]
            given = [
                f"| `{each['name']}` | {each['in']} | {_json_type(each['schema'])} |"
                f" {_cell(each.get('description', ''))} |"
                for each in operation.get("parameters", [])
            ]
            if given:
                made.append(_table("| parameter | in | type | meaning |", given))
            body = operation.get("requestBody")
            if body:
                (content,) = list(body["content"].values())[:1]
                made.append(f"Body: {_json_type(content['schema'])}.")
            made.append(_table("| status | answer |", _answers(operation["responses"])))
    made.append("## Bodies and answers")
    for name, schema in sorted(document["components"]["schemas"].items()):
        made += [f"### `{name}`", _prose(schema.get("description", ""))]
        if "enum" in schema:
            made.append(", ".join(f"`{each}`" for each in schema["enum"]) + ".")
        rows = [
            f"| `{field}` | {_json_type(each)} |"
            f" {'yes' if field in schema.get('required', ()) else ''} |"
            f" {_cell(each.get('description', ''))} |"
            for field, each in schema.get("properties", {}).items()
        ]
        if rows:
            made.append(_table("| field | type | always | meaning |", rows))
    return _page(made)


def outcomes() -> str:
    """The answers to a request, and what each outcome of a call does."""
    made = [
        "# Answers and outcomes",
        "## Answers",
        """An answer has `outcome`. A request has one of the first six; the same request id
gets the same.""",
    ]
    rows = []
    for name in (
        *("Assigned", "Empty", "Paused", "Unavailable", "TooLate", "Refused"),
        *("Finished", "Done", "Stated", "Noted"),
    ):
        node, _ = _class(name, ANSWERS)
        word = next(
            (
                statement.value.value
                for statement in node.body
                if isinstance(statement, ast.AnnAssign)
                and getattr(statement.target, "id", "") == "outcome"
                and isinstance(statement.value, ast.Constant)
            ),
            None,
        )
        shown = f"`{word!s}`" if word else "`completed`, `skipped`, `accepted` …"
        rows.append(f"| {shown} | {_cell(ast.get_docstring(node) or '')} |")
    made.append(_table("| outcome | meaning |", rows))
    made += ["### Codes of refusals", "`code` of an answer `refused`, for programs."]
    made.append(_enumeration("Code", ANSWERS))
    made += [
        "## Outcomes of a call",
        """`complete` names one. The score is added to the user's, and a lower score is called
sooner; beside it, each attempt from the 6th on adds 1, from the 11th on 3. The
delay is until the user may be called again, unless a callback says otherwise.
`ASSIGNMENT_WORKERS_OUTCOMES` changes score, delay and actions.""",
    ]
    for each in loaded().outcomes_by_name.values():
        facts = [f"score +{each.score}", _delay(each.delay, terminal=each.terminal)]
        facts += [
            text
            for holds, text in (
                (each.success, "counts as a success"),
                (each.capped, "the score grows no further than 200"),
                (each.needs_callback, "a callback time is required"),
                (each.callback and not each.needs_callback, "a callback time may be given"),
                (each.needs_notes, "notes are required"),
                (each.retried, "a callback that came to it is tried once more"),
            )
            if holds
        ]
        if each.actions:
            facts.append("asks for " + ", ".join(f"`{action.name}`" for action in each.actions))
        if each.review_after is not None:
            earlier = (
                f" from the {each.review_after + 1}. such call on" if each.review_after else ""
            )
            facts.append(f"asks for `review`{earlier}")
        if each.review_unpromised:
            facts.append("asks for `review` where no callback was promised")
        made += [f"### `{each.name}`", each.meaning, "; ".join(facts).capitalize() + "."]
    made += ["## Actions", "What an outcome asks others to do: the event `completed` names them."]
    rows = [f"| `{each.name}` | {_cell(each.means)} |" for each in loaded().actions.values()]
    made.append(_table("| name | meaning |", rows))
    return _page(made)


def tasks() -> str:
    """Every Celery task with its arguments, by queue."""
    celery = create_app(Settings.from_environment({"REDIS_URL": "redis://localhost"}))
    made = [
        "# Celery tasks",
        """JSON only. [Wire format](../wire-format.md) says how a program without a client of
ours sends one. A task of the queue `assignment` is carried out in order, and once:
the same message gets the same answer.""",
    ]
    for title, names in (
        ("Queue `assignment`", celery.assignment_tasks),
        ("Queue `heartbeats`", celery.heartbeat_tasks),
        ("Queue `maintenance`", celery.maintenance_tasks - celery.heartbeat_tasks),
    ):
        made.append(f"## {title}")
        for name in sorted(names):
            task: Any = celery.tasks[name]
            made.append(f"### `{name}`")
            arguments = ", ".join(f"`{each}`" for each in task.parameters[1:])
            made.append(f"Arguments: {arguments or 'none'}.")
            made.append(_prose(task.run.__doc__ or ""))
    return _page(made)


def events() -> str:
    """Every kind of event."""
    return _page(
        [
            "# Events",
            """Each change of state leaves an event in `assignment.events`, in the transaction of
the change. `GET /v1/events` streams the live ones ([React to
events](../how-to/events.md)).""",
            _enumeration("EventKind"),
        ]
    )


def metrics() -> str:
    """Every metric, of the gateways and of the other processes."""
    made = [
        "# Metrics",
        """In Prometheus' format. Gateways answer `GET /metrics`; the other processes at
`ASSIGNMENT_WORKERS_METRICS_PORT`, if it is set
([Operate](../operators.md#metrics)). What stands in the database is the same at
every gateway: take `max by (…)`. A gauge that is not known is left out. Beside
these, each process has those of `prometheus_client` about itself.""",
    ]
    for title, found in (
        ("Processes", _counted("telemetry.py")),
        ("Gateways", _counted("gateway/metrics.py")),
    ):
        rows = [f"| `{name}` | {kind} | {_cell(said)} |" for name, kind, said in found]
        made += [f"## {title}", _table("| metric | type | meaning |", rows)]
    return _page(made)


def alerts() -> str:
    """Every alert of `ops/alerts.yml`."""
    made = [
        "# Alerts",
        """Rules for Prometheus, of [ops/alerts.yml](../../ops/alerts.yml); tested on the
series of [ops/alerts.test.yml](../../ops/alerts.test.yml).
[Operate](../operators.md#metrics) says where to look first, and
[ops/grafana.json](../../ops/grafana.json) is a board.""",
    ]
    for group in YAML(typ="safe").load(ROOT / "ops" / "alerts.yml")["groups"]:
        for rule in group["rules"]:
            notes = rule["annotations"]
            made += [
                f"## {rule['alert']}",
                f"Severity `{rule['labels']['severity']}`, after `{rule.get('for', '0s')}`.",
                f"Says: {_filled(notes['summary'])}.",
                f"```promql\n{rule['expr'].strip()}\n```",
            ]
            if "see" in notes:
                made.append(f"See {_filled(notes['see'])}.")
    return _page(made)


def database() -> str:
    """Every table of ours, of the dialer and of the CRM, column by column."""
    made = [
        "# Tables",
        """Ours are in the schema `assignment`; nothing else may write them. The dialer's are
in `public`, taken over where they exist and created where not. The CRM's are read
only. A column is required unless it says `null`.""",
    ]
    for title, module, base in (
        ("Schema `assignment`", tables, Base),
        ("The dialer's, in `public`", dialer, DialerBase),
        ("The CRM's, in `crm`", crm, CrmBase),
    ):
        made.append(f"## {title}")
        models = {each.__tablename__: each for each in base.__subclasses__()}
        for name, model in sorted(models.items()):
            said = documented(model.__name__, Path(str(module.__file__)))
            table = cast("Table", model.__table__)
            rows = [
                f"| `{column.name}` | {column.type.compile(POSTGRESQL).lower()} |"
                f" {'key' if column.primary_key else 'null' if column.nullable else ''} |"
                f" {_cell(said.get(column.key, ''))} |"
                for column in table.columns
            ]
            made += [f"### `{name}`", _prose(model.__doc__ or "")]
            made.append(_table("| column | type | key, null | meaning |", rows))
    return _page(made)


def _filled(text: str) -> str:
    """A text of an alert, with words in the places of its values."""
    named = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: found[1].upper(), text)
    return _escaped(re.sub(r"\{\{ \$value[^}]*\}\}", "N", named))


def python() -> str:
    """The Python clients; mkdocstrings fills in the classes, and the methods are made here."""
    made = [
        "# Python",
        """The module `assignment_workers.client`. `Client` sends Celery messages by itself and
answers soonest; `HttpClient` asks a gateway; `AsyncClient` and `AsyncHttpClient` are the same for
asyncio, and each method of theirs is a coroutine. The package without an extra installs what
they need and no more. The answers are frozen values to `match` on. Everything that the module does
not name is internal, but for those of a `dialerconfig.py`, which
[Define your own dialer](../how-to/dialer.md) explains.""",
    ]
    for title, holder in (
        ("Methods of every client", AgentMethods),
        ("Methods of the clients over Celery", OperatorMethods),
        ("Methods of the clients over HTTP", HttpMethods),
    ):
        made.append(f"## {title}")
        for name, method in inspect.getmembers(holder, inspect.isfunction):
            if not name.startswith("_"):
                made += [f"### `{name}`", f"```python\n{name}{_method_signature(method)}\n```"]
                made.append(_prose(inspect.getdoc(method) or ""))
    made += [f"::: assignment_workers.client.{name}" for name in _exported()]
    made += [
        "## A dialer's definition",
        "The names of `assignment_workers.dialer` that a `dialerconfig.py` is made of.",
        *(f"::: assignment_workers.policy.{name}" for name in OF_A_DIALER),
    ]
    return _page(made)


def _method_signature(method: Callable[..., object]) -> str:
    """The signature of a client's method without `self`, and types without their modules."""
    signature = inspect.signature(method)
    _, *said = signature.parameters.values()
    shown = str(signature.replace(parameters=said)).replace("'", "")
    return re.sub(r"\b(?:\w+\.)+(?=\w+)", "", shown.replace("timedelta(seconds=10)", "10 s"))


OF_A_DIALER = (
    "dialer.Dialer",
    "dialer.Queue",
    "rules.Rule",
    "rules.RuleEffect",
    "outcomes.Outcome",
)


def javascript() -> str:
    """The JavaScript client: its README, and each method with its comment."""
    readme = (ROOT / "clients" / "js" / "README.md").read_text()
    made = [readme.partition("\n## Working on it")[0]]
    for name in ("client", "lease", "problem"):
        made += _typescript((ROOT / "clients" / "js" / "src" / f"{name}.ts").read_text())
    return _page(made)


def index() -> str:
    """The list of the others."""
    listed = {
        "Settings": "settings.md",
        "Command line": "cli.md",
        "HTTP": "http.md",
        "Answers and outcomes": "outcomes.md",
        "Celery tasks": "tasks.md",
        "Events": "events.md",
        "Metrics": "metrics.md",
        "Alerts": "alerts.md",
        "Tables": "tables.md",
        "Python": "python.md",
        "JavaScript": "javascript.md",
    }
    return _page(
        [
            "# Reference",
            "These pages are made of the code when the site is built:",
            "\n".join(f"- [{title}]({page})" for title, page in listed.items()),
            "Written by hand: the [wire format](../wire-format.md) of a Celery message.",
        ]
    )


PAGES: dict[str, Callable[[], str]] = {
    "index": index,
    "settings": settings,
    "cli": cli,
    "http": http,
    "outcomes": outcomes,
    "tasks": tasks,
    "events": events,
    "metrics": metrics,
    "alerts": alerts,
    "tables": database,
    "python": python,
    "javascript": javascript,
}


def documented(name: str, path: Path | None = None) -> dict[str, str]:
    """The docstring of each attribute of a class of the package, empty where it has none."""
    node, _ = _class(name, path)
    found: dict[str, str] = {}
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=attribute)):
                found[attribute] = _docstring(following)
            case ast.Assign(targets=[ast.Name(id=attribute)]):
                found[attribute] = _docstring(following)
    return found


@cache
def _class(name: str, path: Path | None = None) -> tuple[ast.ClassDef, Path]:
    """The one class of this name in the package, or in `path`."""
    found = [
        (node, each)
        for each in ([path] if path else sorted(SOURCE.rglob("*.py")))
        if f"class {name}" in (text := each.read_text())
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    if len(found) != 1:
        raise LookupError(f"{len(found)} classes {name} in {path or SOURCE}")
    return found[0]


def _docstring(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return "\n".join(line.strip() for line in text.strip().splitlines())
    return ""


def _enumeration(name: str, path: Path | None = None) -> str:
    """A table of the members of a `StrEnum`, by their values."""
    node, _ = _class(name, path)
    said = documented(name, path)
    rows = [
        f"| `{statement.value.value!s}` | {_cell(said[statement.targets[0].id])} |"
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    ]
    return _table("| name | meaning |", rows)


def _accepted(name: str, field: FieldInfo) -> str:
    """What a setting takes, in words."""
    kind, limits = _unwrapped(field.annotation)
    limits += field.metadata
    if get_origin(kind) is Literal:
        return " or ".join(f"`{each}`" for each in get_args(kind))
    if schemes := _calls(name, "_address"):
        return "an address, " + ", ".join(f"`{each}://`" for each in schemes)
    if kind is timedelta:
        return f"seconds, {_calls(name, '_seconds')[0]:g} or more"
    words = {bool: "`true` or `false`", int: "a whole number", float: "a number", Path: "a path"}
    said = words.get(kind, "text") if isinstance(kind, type) else "text"
    return ", ".join([said, *filter(None, map(_limit, limits))])


def _unwrapped(annotation: object) -> tuple[object, list[object]]:
    """The type inside `Annotated` and `| None`, and what limits it."""
    limits: list[object] = []
    while get_origin(annotation) not in {None, Literal}:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for each in more:
                limits += each.metadata if isinstance(each, FieldInfo) else [each]
        else:
            annotation = next(each for each in get_args(annotation) if each is not NoneType)
    return annotation, limits


def _limit(limit: object) -> str:
    match limit:
        case Ge(ge=least):
            return f"{least:,} or more"
        case Gt(gt=least):
            return f"more than {least}"
        case Le(le=most):
            return f"at most {most:,}"
        case MinLen(min_length=least):
            return f"{least} characters or more"
    return ""


@cache
def _annotations() -> tuple[dict[str, str], dict[str, ast.expr]]:
    """The source of each setting's annotation, and the aliases of the module's types."""
    node, path = _class("Settings")
    fields = {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    aliases = {
        statement.targets[0].id: statement.value
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    return fields, aliases


def _calls(name: str, function: str) -> list[Any]:
    """The constants that a setting's annotation, or its alias, hands to `function`."""
    fields, aliases = _annotations()
    expressions = [ast.parse(fields[name], mode="eval").body]
    expressions += [aliases[word] for word in re.findall(r"\w+", fields[name]) if word in aliases]
    return [
        constant.value
        for expression in expressions
        for call in ast.walk(expression)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == function
        for constant in ast.walk(call)
        if isinstance(constant, ast.Constant)
    ]


def _value(value: object) -> str:
    return f"{value.total_seconds():g}" if isinstance(value, timedelta) else f"{value}"


def _command(name: str, command: Any, *, level: int = 3) -> Iterator[str]:  # noqa: ANN401 - Typer's, which has no public type
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    usage = " ".join(
        f"[{each.name.upper()}…]"
        if each.nargs == -1
        else (each.metavar or each.name.upper())
        if each.required
        else f"[{each.name.upper()}]"
        for each in arguments
    )
    yield f"{'#' * level} `{name}`"
    yield _prose(command.help or "")
    yield f"```sh\nassignment-workers {f'{name} {usage}'.strip()}\n```"
    rows = []
    for each in command.params:
        names = ", ".join(f"`{part}`" for part in (*each.opts, *each.secondary_opts))
        if each in arguments:
            names = f"`{each.name.upper()}`"
        kind, *_ = _of_option(each.type_descriptor.annotation)
        default = "" if each.default in (None, False) or each.required else f"`{each.default}`"
        if each.default is True:
            default = f"`{each.opts[0]}`"
        rows.append(
            f"| {names} | {kind} | {'required' if each.required else default} |"
            f" {_cell(each.help or '')} |"
        )
    if rows:
        yield _table("| argument | takes | default | meaning |", rows)


def _of_option(annotation: object) -> list[str]:
    """The type of an argument or option, in a word or two."""
    if get_origin(annotation) is Literal:
        return [" ".join(f"`{each}`" for each in get_args(annotation))]
    if get_origin(annotation) is Annotated:
        return _of_option(get_args(annotation)[0])
    inner = [each for each in get_args(annotation) if each is not NoneType]
    if inner:
        return _of_option(inner[0])
    words = {bool: "", int: "number", float: "number", str: "text", Path: "path"}
    return [words.get(annotation, "text")] if isinstance(annotation, type) else ["text"]


def _json_type(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words, with links to the named ones."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[`{name}`](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_json_type(each) for each in schema[several])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_json_type(schema.get('items', {}))}"
    kind = str(schema.get("type", "any"))
    made = f"{kind} ({schema['format']})" if "format" in schema else kind
    limits = [
        f"{word} {schema[key]:,}"
        for key, word in (
            *(("minimum", "from"), ("exclusiveMinimum", "more than"), ("maximum", "to")),
            *(("minLength", "length from"), ("maxLength", "length to")),
        )
        if key in schema
    ]
    return f"{made}, {', '.join(limits)}" if limits else made


def _answers(responses: dict[str, Any]) -> list[str]:
    rows = []
    for status, each in responses.items():
        kinds = [
            f"{_json_type(content['schema'])}" if content.get("schema") else f"`{media}`"
            for media, content in each.get("content", {}).items()
        ]
        rows.append(f"| {status} | {_cell(' '.join([each['description'], *kinds]))} |")
    return rows


def _counted(place: str) -> Iterator[tuple[str, str, str]]:
    """Each metric that a module defines: its name, type and meaning."""
    kinds = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram", "gauge": "gauge"}
    for node in ast.walk(ast.parse((SOURCE / place).read_text())):
        match node:
            case ast.Call(
                func=ast.Name(id=function), args=[name, ast.Constant(value=str(said)), *_]
            ):
                text = _literal(name)
                if function in kinds and text:
                    yield _prefixed(text), kinds[function], said
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    match key, value:
                        case ast.Constant(value=str(text)), ast.Tuple(
                            elts=[said_node, ast.Lambda()]
                        ):
                            yield _prefixed(text), "gauge", _literal(said_node)


def _literal(node: ast.expr) -> str:
    """The text of a literal; what an f-string puts in stands as its expression."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                part.value
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                else _inserted(part)
                for part in parts
            )
    return ""


def _inserted(part: ast.expr) -> str:
    word = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
    return {"PREFIX": "assignment_workers", "CLAIMABLE_AT_MOST": "100,000"}.get(word, word)


def _prefixed(name: str) -> str:
    return name if name.startswith("assignment_workers_") else f"assignment_workers_{name}"


def _exported() -> list[str]:
    """What `assignment_workers.client` exports, the clients first."""
    tree = ast.parse((SOURCE / "client" / "__init__.py").read_text())
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names = list(ast.literal_eval(value))
                first = [
                    each
                    for each in ("Client", "AsyncClient", "HttpClient", "AsyncHttpClient")
                    if each in names
                ]
                return [*first, *(each for each in names if each not in first)]
    raise LookupError("assignment_workers.client has no __all__")


def _typescript(text: str) -> Iterator[str]:
    """Each exported class, interface and type of a module with its comments."""
    declaration = re.compile(
        r"^(?:/\*\*(?P<doc>(?:(?!\*/).)*)\*/\n)?export (?:class|interface|type) (?P<name>\w+)",
        re.MULTILINE | re.DOTALL,
    )
    member = re.compile(
        r"^  /\*\*(?P<doc>(?:(?!\*/).)*)\*/\n  (?P<sign>(?!#).*?)(?: \{$|;$)",
        re.MULTILINE | re.DOTALL,
    )
    found = list(declaration.finditer(text))
    for at, each in enumerate(found):
        end = found[at + 1].start() if at + 1 < len(found) else len(text)
        yield f"## `{each['name']}`"
        yield _comment(each["doc"] or "")
        rows = [
            f"| `{_signature(one['sign'])}` | {_cell(_comment(one['doc']))} |"
            for one in member.finditer(text, each.start(), end)
            if "private " not in one["sign"]
        ]
        if rows:
            yield _table("| member | meaning |", rows)


def _signature(text: str) -> str:
    """A member's signature on one line."""
    made = " ".join(text.replace("async ", "").split())
    return made.replace("( ", "(").replace(", )", ")")


def _comment(text: str) -> str:
    lines = (line.strip().lstrip("*").strip() for line in text.strip().splitlines())
    return "\n".join(lines)


def _delay(delay: timedelta, *, terminal: bool) -> str:
    if terminal:
        return "the user is never offered again"
    hours = delay.total_seconds() / 3600
    if hours >= 48:  # noqa: PLR2004 - days from two on
        return f"{hours / 24:g} days"
    return f"{hours:g} hours" if hours else "no delay"


def _prose(text: str | None) -> str:
    return _escaped("\n".join(line.strip() for line in (text or "").strip().splitlines()))


def _escaped(text: str) -> str:
    """Text without tags; what stands in backticks is code, and stays."""
    parts = text.split("`")
    return "`".join(
        part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts)
    )


def _cell(text: str) -> str:
    """Text for a cell of a table: one line, and bars in code alone."""
    parts = " ".join(_escaped(text).split()).split("`")
    return "`".join(
        part if place % 2 else part.replace("|", "\\|") for place, part in enumerate(parts)
    )


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *rows])


def _page(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    print(PAGES[sys.argv[1]]())
