"""What people typed, and phone numbers, are read by operators and by nobody else.

Distinct words are planted by real operations in every column that may hold text; then every route
of the application is called with every role, and the words are looked for in all that comes back.
Routes and columns are read from the application and from the database: new ones have to be placed
here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text

from assignment_workers.assignment.suppression_lists import Named, stage
from assignment_workers.gateway.auth import tokens
from assignment_workers.gateway.redaction import HIDDEN, redacted
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from tests.gateway.browsing import EVENTS, HTML, JSON, fetch, form, signed_in
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until

MARK = "planted"
PHONE = "7700900"
UNSIGNED = "unsigned_users"

PLANTED = {
    "agents_state.why",
    "assignments.notes",
    "commands.answer",
    "dead_letters.body",
    "dead_letters.dismissed_by",
    "dead_letters.dismissed_why",
    "dead_letters.error",
    "operator_actions.why",
    "operator_actions.outcome",
    "settings.who",
    "settings.why",
    "suppressions.by",
    "suppressions.lifted_by",
    "suppressions.lifted_why",
    "suppressions.phone",
    "suppressions.reason",
    "suppressions.number",
    "suppressions.plain",
    "suppressions.tail",
    "suppression_lists.by",
    "suppression_lists.reason",
    "suppression_lists.source",
    "suppressed_numbers.number",
    "phones.text",
    "phones.numbers",
    "phones.tails",
    "phones.unread",
    "phones.plain",
    "queues.paused_by",
    "api_tokens.note",
    "event_texts.texts",
    "generations.error",
    "job_runs.error",
    "public.agents.email",
    "public.agents.first_name",
    "public.agents.last_name",
    "public.callbacks.callback_reason",
    "public.missed_calls.caller_name",
    "public.missed_calls.phone_number",
}
"""Columns that may hold what somebody typed, a name or a number: each has a planted word."""
OF_OURS = {
    "agents_state": {"state", "by"},
    "assignments": {"request_id", "queue", "source", "reason", "state", "outcome", "ended_how"},
    "commands": {"id", "task", "subject"},
    "crm_reads": {"counts"},
    "dead_letters": {"celery_queue", "task", "task_id", "replayed_as"},
    "operator_actions": {"who", "action", "subject"},
    "phones": {
        "keyed",
        "country",
        "time_zone",
        "reader",
        "kinds",
        "zones",
        "home",
    },
    "phone_zones": {"zone"},
    "suppressions": {"kind", "queue", "source"},
    "suppression_lists": {"name", "state", "queue"},
    "bars": set(),
    "queues": {"name"},
    "api_tokens": {"id", "role"},
    "dashboard_sessions": {"token_id", "stack", "link"},
    "entries": {"state", "reason"},
    "audit_anchors": {"lane"},
    "audit_batches": {"lane"},
    "suspect_messages": {"digest", "celery_queue"},
    "events": {"kind", "queue", "request_id", "details"},
    "findings": {"check_name", "examples"},
    "generations": {"queue", "state", "trigger", "snapshot"},
    "job_runs": {"job", "queue", "trigger", "task_id", "status", "counts"},
    "requests": {"request_id", "queue", "outcome", "answer"},
    "answer_counts": {"kind"},
    "access_log": {"what", "who", "subject", "address"},
    "sequencer": {"lane", "leader_host", "queues", "marks"},
    "sequencer_signs": {"lane"},
    "settings": {"changes", "values"},
    "user_ids": {"text"},
    "watermarks": {"source", "key"},
    "schema_revision": {"version_num"},
    "public.agents": {"role", "team", "allowed_queues"},
    "public.user_call_scores": {"last_outcome", "current_queue_type"},
    "public.callbacks": {"status", "queue_type", "created_by_source"},
    "public.missed_calls": {"reason", "status", "twilio_call_sid", "session_id"},
    "public.conversions": {
        "previous_queue_type",
        "conversion_type",
        "conversion_reason",
        "contributing_agents",
    },
}
"""Columns of ids and words of this package. `bars` is a view of `suppressions`."""


@dataclass
class Planted:
    """Where the words were left, for the parameters of routes."""

    hold: str
    users: list[int]
    letters: list[int]
    actions: list[int]
    events: list[int]


@pytest.fixture(scope="module")
def planted(gateway: Gateway) -> Iterator[Planted]:
    stack = gateway.stack
    letters = int(stack.value("SELECT coalesce(max(id), 0) FROM assignment.dead_letters"))
    events = int(stack.value("SELECT coalesce(max(id), 0) FROM assignment.events"))

    def word(what: str) -> str:
        return f"{MARK} {what}"

    def done(path: str, body: dict[str, object], bearer: str = "frontend") -> None:
        answer = gateway.post(path, body, bearer=bearer)
        assert answer.status in {200, 202}, answer.text

    def act(name: str, **said: str) -> None:
        answer = form(gateway, f"/act/{name}", said)
        assert answer == 303, (name, answer)

    users = []
    ends: list[tuple[int, str, dict[str, object]]] = [
        (91, "complete", {"outcome": "no_answer", "notes": word("notes")}),
        (92, "defer", {"seconds": 3600, "why": word("defer")}),
        (93, "close", {"why": word("close")}),
    ]
    for agent, end, body in ends:
        hold = gateway.assigned(agent)
        users.append(int(hold["user_id"]))
        done(f"/v1/assignments/{hold['id']}/{end}", {"agent_id": agent} | body)
    hold = gateway.assigned(94)
    users.append(int(hold["user_id"]))
    act("take_back", subject=hold["id"], why=word("take back"))
    done("/v1/agents/91/state", {"state": "break", "why": word("agent state")})
    done("/v1/agents/92/state", {"state": "break", "why": word("operator state")}, "operator")
    for verb in ("pause", "resume", "regenerate"):
        done(f"/v1/queues/{UNSIGNED}/{verb}", {"why": word(verb)}, "operator")
    act("do_not_contact", phone=f"+44 {PHONE}123", why=word("number"))
    act("do_not_contact", subject="991", why=word("do not contact"))
    act("do_not_contact", subject="992", why=word("listed"))
    act("lift", subject="992", why=word("lifted"))
    act("do_not_contact", phone=PHONE, subject="", why=word("too short"))
    act("lift", phone=f"+44 {PHONE}999", subject="", why=word("refused"))
    # By messages of another program, which may write anything into `by`.
    client = stack.client()
    client.send_again(
        "user.suppress",
        [],
        {"phone": f"0{PHONE}321", "reason": word("reason"), "by": word("by")},
        "assignment",
    )
    client.send_again(
        "user.lift_suppression",
        [],
        {
            "kind": "do_not_contact",
            "phone": f"0{PHONE}321",
            "by": word("lifter"),
            "why": word("why"),
        },
        "assignment",
    )
    client.send_again(
        "assignment.change_settings",
        [],
        {
            "changes": [{"name": "quarantine_after", "value": "3"}],
            "by": word("setter"),
            "why": word("setting"),
        },
        "assignment",
    )
    client.send_again("queue.pause", [], {"queue": UNSIGNED, "by": word("pauser")}, "assignment")
    client.send_again("assignment.no_such", [], {"notes": word("unknown task")}, "assignment")
    client.send_again(
        "assignment.complete",
        [],
        {
            "assignment_id": str(hold["id"]),
            "agent_id": 94,
            "outcome": [word("malformed")],
            "notes": [word("malformed notes")],
        },
        "assignment",
    )
    wait_until(
        lambda: (
            stack.value("SELECT count(*) FROM assignment.dead_letters WHERE id > :n", n=letters)
            == 2
        ),
        "the dead letters",
    )
    stack_write(gateway)
    yield Planted(
        hold=str(hold["id"]),
        users=[*users, 991, 992],
        letters=[
            row[0]
            for row in stack.rows("SELECT id FROM assignment.dead_letters WHERE id > :n", n=letters)
        ],
        actions=[row[0] for row in stack.rows("SELECT id FROM assignment.operator_actions")],
        events=[
            row[0] for row in stack.rows("SELECT id FROM assignment.events WHERE id > :n", n=events)
        ],
    )
    for agent in (1, 91, 92, 93):
        gateway.post(f"/v1/agents/{agent}/state", {"state": "available"})
    with stack.engine.begin() as connection:
        for undo in UNDO:
            connection.execute(text(undo))
    assert gateway.post(f"/v1/queues/{UNSIGNED}/resume", bearer="operator").status == 200


WRITE = (
    (
        "UPDATE assignment.dead_letters SET dismissed_at = now(), dismissed_by = 'planted dismisser',"
        " dismissed_why = 'planted dismissal' WHERE id = (SELECT max(id) FROM assignment.dead_letters)"
    ),
    (
        "UPDATE assignment.generations SET error = 'planted build' WHERE id = (SELECT min(id)"
        " FROM assignment.generations)"
    ),
    (
        "INSERT INTO assignment.job_runs (job, trigger, status, started_at, ended_at, error)"
        " VALUES ('planted.job', 'beat', 'failed', now(), now(), 'planted failure')"
    ),
    (
        "UPDATE public.agents SET first_name = 'planted first', last_name = 'planted last',"
        " email = 'planted@example.com' WHERE id = 93"
    ),
    (
        "INSERT INTO public.callbacks (user_id, scheduled_for, callback_reason,"
        " original_call_session_id, status) VALUES (991, now(), 'planted promise',"
        " gen_random_uuid(), 'cancelled')"
    ),
    (
        "INSERT INTO public.missed_calls (phone_number, caller_name, missed_at, reason, status)"
        f" VALUES ('0{PHONE}555', 'planted caller', now(), 'no_agent', 'for_operator')"
    ),
    (
        "INSERT INTO assignment.phones (user_id, text, reader, numbers, kinds, tails, unread, plain,"
        f" zones, read_at) VALUES (991, '0{PHONE}666', 'planted', ARRAY['+44{PHONE}666'], '{{}}',"
        f" ARRAY['{PHONE}'], ARRAY['{PHONE}'], '0{PHONE}666', '{{}}', now())"
        " ON CONFLICT (user_id) DO UPDATE SET text = excluded.text, numbers = excluded.numbers,"
        " tails = excluded.tails, unread = excluded.unread, plain = excluded.plain"
    ),
)
"""What no operation here writes: a dialer's own, and failures."""
UNDO = (
    "DELETE FROM assignment.job_runs WHERE job = 'planted.job'",
    "UPDATE assignment.generations SET error = NULL WHERE error LIKE 'planted%'",
    "DELETE FROM assignment.dead_letters WHERE body LIKE '%planted%'",
    "DELETE FROM public.missed_calls WHERE caller_name LIKE 'planted%'",
)


def stack_write(gateway: Gateway) -> None:
    with gateway.stack.engine.begin() as connection:
        for statement in WRITE:
            connection.execute(text(statement))
        tokens.create(connection, "supervisor", note="planted note")
        listed = Named(
            "register",
            replaces=False,
            reason="planted register",
            by="planted importer",
            source="planted source",
        )
        stage(connection, [(1, f"+44{PHONE}777", None)], listed, Reader(), queues=loaded().policies)


def paths(found: Planted, path: str) -> list[str]:
    """The route's path with its parameters filled in: fails for one that is not known here."""
    filled: dict[str, Sequence[object]] = {
        "{queue}": [UNSIGNED, "outstanding_requests"],
        "{user}": found.users,
        "{agent}": [1, 91, 92, 93],
        "{assignment}": [found.hold],
        "/queues/{name}": [f"/queues/{UNSIGNED}"],
        "/users/{name}": [f"/users/{each}" for each in found.users],
        "/agents/{number}": [f"/agents/{each}" for each in (1, 91, 92, 93)],
        "/assignments/{name}": [f"/assignments/{found.hold}"],
        "/jobs/{name}": ["/jobs/planted.job", "/jobs/queue.regenerate"],
        "/events/{number}": [f"/events/{each}" for each in found.events],
        "/dead-letters/{number}": [f"/dead-letters/{each}" for each in found.letters],
        "/assets/{name}": ["/assets/dashboard.css"],
        "/act/{name}": ["/act/pause", "/act/do_not_contact"],
    }
    made = [path.replace(":path}", "}")]
    for name, values in filled.items():
        if name in made[0]:
            made = [each.replace(name, str(value)) for each in made for value in values]
    assert not any("{" in each for each in made), f"no values for the parameters of {path}"
    if path == "/":
        made += [f"/?said={each}" for each in found.actions]
    return made


BODIES: dict[str, dict[str, object]] = {
    "/v1/requests": {"agent_id": 91},
    "/v1/assignments/{assignment}/complete": {"agent_id": 94, "outcome": "no_answer"},
    "/v1/assignments/{assignment}/close": {"agent_id": 94, "why": "no"},
    "/v1/agents/{agent}/state": {"state": "break", "why": f"{MARK} agent state"},
    "/v1/agents/{agent}/heartbeat": {},
}
TO_ITS_AGENT = {f"{MARK} agent state", f"{MARK} operator state"}
"""Said to whoever makes an agent's moves when that agent is refused a user: why they are away."""


def flat(routes: Sequence[Any]) -> Iterator[APIRoute]:
    """The routes, and those of the routers among them."""
    for each in routes:
        if isinstance(each, APIRoute):
            yield each
        else:
            yield from flat(each.original_router.routes)


def calls(gateway: Gateway, found: Planted) -> Iterator[tuple[str, str, str | None]]:
    """Every route of the application, with a body where it takes one."""
    for route in flat(gateway.app().routes):
        for method in sorted((route.methods or set()) - {"HEAD"}):
            body = BODIES.get(route.path, {"agent_id": 94} if "assignment}" in route.path else {})
            for path in paths(found, route.path):
                yield method, path, json.dumps(body) if method == "POST" else None


def read(gateway: Gateway, found: Planted, role: str) -> Iterator[tuple[str, str]]:
    """What a token of this role is answered by every route, in every form."""
    token = gateway.tokens[role]
    for method, path, body in calls(gateway, found):
        if role == "operator" and method == "POST":
            continue  # it would do it
        ways = [(JSON, {"Authorization": f"Bearer {token}"})]
        if not path.startswith("/v1"):
            ways += [(each, {"Cookie": signed_in(gateway, role)}) for each in (HTML, EVENTS)]
        if path == "/v1/events":
            ways = [(EVENTS, {"Authorization": f"Bearer {token}", "Last-Event-ID": "1"})]
        for accept, headers in ways:
            given = headers | ({"Content-Type": JSON} if body else {})
            status, said = fetch(gateway, path, accept, given, method=method, body=body)
            assert status < 500, (method, path, said)
            yield f"{method} {path} as {accept}", said


def test_every_text_column_is_named_here_and_planted(gateway: Gateway, planted: Planted) -> None:
    columns = gateway.stack.rows(
        "SELECT table_schema, table_name, column_name FROM information_schema.columns"
        " WHERE table_schema IN ('assignment', 'public')"
        " AND data_type IN ('text', 'character varying', 'json', 'jsonb', 'ARRAY')"
        " AND table_name !~ '^(entries|suppressed_numbers)_\\d+$' AND table_name <> 'bars'"
    )
    own = {
        f"{name}.{column}" if schema == "assignment" else f"public.{name}.{column}"
        for schema, name, column in columns
    }
    named = {f"{table}.{column}" for table, each in OF_OURS.items() for column in each}
    arrays_of_numbers = {
        "sequencer.terms",
        "suspect_messages.parts",
        "audit_batches.ids",
        "answer_counts.by_minute",
    }
    digests = {"sequencer.dialer"}
    assert own - arrays_of_numbers - digests == PLANTED | named
    for name in sorted(PLANTED):
        table, _, column = name.rpartition(".")
        where = table if table.startswith("public") else f"assignment.{table}"
        hits = gateway.stack.value(
            f"SELECT count(*) FROM {where} WHERE {column}::text LIKE '%{MARK}%'"
            f" OR {column}::text LIKE '%{PHONE}%'"
        )
        assert hits, f"nothing was planted in {name}"


@pytest.mark.parametrize("role", ["supervisor", "frontend", "agent 1"])
def test_no_route_gives_texts_or_numbers_to_who_does_not_operate(
    gateway: Gateway, planted: Planted, role: str
) -> None:
    count = 0
    for what, said in read(gateway, planted, role):
        count += 1
        if what.startswith("POST /v1/requests") and role == "frontend":
            for allowed in TO_ITS_AGENT:
                said = said.replace(allowed, "")  # noqa: PLW2901
        found = said.replace("planted.job", "")
        at = found.find(MARK)
        assert at < 0, f"{what}: {found[max(0, at - 200) : at + 100]}"
        assert PHONE not in said, what
    assert count > 100


def test_operators_read_what_was_typed(gateway: Gateway, planted: Planted) -> None:
    said = "\n".join(each for _, each in read(gateway, planted, "operator"))
    shown = {
        "defer",
        "close",
        "take back",
        "agent state",
        "operator state",
        "pause",
        "number",
        "do not contact",
        "lifted",
        "pauser",
        "malformed",
        "failure",
        "build",
    }
    assert {each for each in shown if f"{MARK} {each}" not in said} == set()
    assert PHONE in said
    for never in ("notes", "first", "last", "caller", "promise", "note"):
        assert f"{MARK} {never} " not in said


def test_a_field_that_is_not_known_is_hidden() -> None:
    said = {
        "id": 1,
        "remark": "call him at night",
        "reason": "cooling_down",
        "at": "2026-11-28T09:00:00Z",
    }
    assert redacted(said, sees_text=False) == said | {"remark": HIDDEN}
    assert redacted(said, sees_text=True) is said
    typed = {"kind": "closed", "reason": "deceased"}
    assert redacted([typed], sees_text=False) == [typed | {"reason": HIDDEN}]
    with pytest.raises(TypeError, match="cannot be redacted"):
        redacted({"x": object()}, sees_text=False)
