"""The gateway keeps to its OpenAPI document, whatever it is sent."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import negative_data_rejection

from assignment_workers.gateway.app import create_app
from assignment_workers.gateway.routes.meta import document
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings
from tests.gateway.stage import Gateway

NOWHERE = Settings.from_environment(
    {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere", "REDIS_URL": "redis://127.0.0.1:1"}
)
APP = create_app(
    NOWHERE,
    connect(NOWHERE.database, name="test", statement_timeout=NOWHERE.lease),
    tokens=True,
)
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            # What keeps to the document may still name a dialer queue or an outcome that there is
            # not, or promise a callback without a time: that is refused with 422.
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", "401", "403", "404", "409", "422", "503"]
            }
        }
    }
)
SCHEMA = schemathesis.openapi.from_dict(document(APP), config=CONFIG)

BEARERS = {"agents": "frontend", "operators": "operator", "about": "supervisor"}
BOUNDED = settings(
    max_examples=20,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
AGENT = 80


def excused(case: Case[Any], response: Response) -> list[Any]:
    """The check that fails for an answer later than the request itself gives, 0.1 s and more."""
    timeout = isinstance(case.body, dict) and case.body.get("timeout_ms")
    is_too_late = (
        timeout
        and response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        and response.json()["detail"].startswith("no answer within")
    )
    return [not_a_server_error] if is_too_late else []


# /v1/events never ends; its own tests are below and in test_events.
@SCHEMA.exclude(path="/v1/events").parametrize()
@BOUNDED
def test_every_route_keeps_to_the_document(case: Case[Any], gateway: Gateway) -> None:
    bearer = BEARERS.get((case.operation.tags or [""])[0])
    headers = {"Authorization": f"Bearer {gateway.tokens[bearer]}"} if bearer else {}
    response = case.call(base_url=gateway.url, headers=headers)
    case.validate_response(response, headers=headers, excluded_checks=excused(case, response))


@SCHEMA.include(path_regex="/v1/assignments/").parametrize()
@BOUNDED
def test_every_move_on_a_hold_keeps_to_the_document(case: Case[Any], gateway: Gateway) -> None:
    case.path_parameters["assignment"] = gateway.assigned(AGENT)["id"]
    if isinstance(case.body, dict) and isinstance(case.body.get("agent_id"), int):
        case.body["agent_id"] = AGENT
    headers = {"Authorization": f"Bearer {gateway.tokens['frontend']}"}
    response = case.call(base_url=gateway.url, headers=headers)
    excluded = [negative_data_rejection, *excused(case, response)]
    case.validate_response(response, headers=headers, excluded_checks=excluded)


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/events?agent_id=0", "1"),
        ("/v1/events?agent_id=2147483648", "1"),
        ("/v1/events?agent_id=x", "1"),
        *(("/v1/events", each) for each in ("", "-1", "1.5", "1,2", "x" * 5_000, str(2**63))),
    ],
)
def test_a_stream_that_is_asked_for_wrongly_is_refused(
    gateway: Gateway, path: str, last: str
) -> None:
    answer = gateway.get(path, bearer="supervisor", headers={"Last-Event-ID": last})
    assert (answer.status, answer.json["code"]) == (422, "malformed"), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
