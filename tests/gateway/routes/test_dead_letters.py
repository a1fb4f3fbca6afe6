"""Dead letters by HTTP: what each role sees of them, sent again, dismissed."""

from __future__ import annotations

import json
from typing import Any

from assignment_workers.assignment.dead_letters import store_dead_letter
from tests.gateway.stage import Gateway
from tests.support.processes import wait_until

SAID = json.dumps({"args": [], "kwargs": {"agent_id": 2, "notes": "planted words"}})


def kept(gateway: Gateway, **facts: Any) -> int:
    """A dead letter's number."""
    values: dict[str, Any] = {
        "celery_queue": "assignment",
        "task": "assignment.complete",
        "task_id": "a-task",
    }
    values |= {"body": SAID, "error": "DataError: planted words"} | facts
    return store_dead_letter(gateway.stack.engine, **values)


def test_a_supervisor_sees_that_there_is_one_and_an_operator_what_it_said(
    gateway: Gateway,
) -> None:
    number = kept(gateway)
    listed = gateway.call("GET", "/v1/dead-letters", bearer="supervisor")
    assert "planted" not in listed.text
    (line,) = (each for each in listed.json if each["id"] == number)
    assert (line["state"], line["replayable"], line["attempts"]) == ("to_send_again", True, 1)
    path = f"/v1/dead-letters/{number}"
    assert gateway.call("GET", path, bearer="supervisor").status == 403
    assert gateway.call("GET", path, bearer="frontend").status == 403
    whole = gateway.call("GET", path, bearer="operator").json
    assert (whole["body"], whole["error"]) == (SAID, "DataError: planted words")
    assert gateway.call("GET", "/v1/dead-letters/999999", bearer="operator").status == 404


def test_a_malformed_one_is_not_sent_again_and_can_be_dismissed(gateway: Gateway) -> None:
    number = kept(gateway, body="{", error="malformed: not JSON", replayable=False)
    path = f"/v1/dead-letters/{number}"
    assert gateway.call("GET", path, bearer="operator").json["state"] == "to_dismiss"
    before = len(gateway.call("GET", "/v1/dead-letters", bearer="operator").json)
    refused = gateway.post(f"{path}/replay", {}, bearer="operator")
    assert (refused.status, refused.json["code"]) == (422, "malformed")
    assert "cannot be sent again" in refused.json["detail"]
    assert len(gateway.call("GET", "/v1/dead-letters", bearer="operator").json) == before
    body = {"numbers": [number], "why": "a probe"}
    assert gateway.post("/v1/dead-letter-dismissals", body, bearer="supervisor").status == 403
    done = gateway.post("/v1/dead-letter-dismissals", body, bearer="operator")
    assert done.json["counts"] == {"dismissed": 1}
    again = gateway.post("/v1/dead-letter-dismissals", body, bearer="operator")
    assert again.json["counts"] == {"dismissed": 0}
    whole = gateway.call("GET", path, bearer="operator").json
    assert (whole["state"], whole["dismissed_why"]) == ("dismissed", "a probe")
    (who,) = gateway.stack.rows(
        "SELECT who, why, outcome FROM assignment.operator_actions WHERE action = 'dismiss'"
        " AND subject = :number ORDER BY id LIMIT 1",
        number=str(number),
    )
    assert (who.who, who.why, who.outcome) == (whole["dismissed_by"], "a probe", "done")


def test_one_that_fails_again_when_it_is_sent_again_is_the_same_one(gateway: Gateway) -> None:
    # A message that is malformed in truth, kept by an older version that did not know it.
    number = kept(gateway, task="assignment.complete")
    sent = gateway.post(f"/v1/dead-letters/{number}/replay", {"why": "mended"}, bearer="operator")
    assert sent.status == 202

    def failed_again() -> Any:
        whole = gateway.call("GET", f"/v1/dead-letters/{number}", bearer="operator").json
        return whole if whole["attempts"] == 2 else None

    whole = wait_until(failed_again, "it to be refused once more")
    assert whole["error"].startswith("refused: ")
    assert whole["replayed_at"] is None
    same = "SELECT count(*) FROM assignment.dead_letters WHERE body = :said AND id > :number"
    assert gateway.stack.value(same, said=SAID, number=number) == 0


def test_all_of_them_are_dismissed_and_none_is_new(gateway: Gateway) -> None:
    kept(gateway)
    body = {"why": "all of one day"}
    done = gateway.post("/v1/dead-letter-dismissals", body, bearer="operator")
    assert done.json["counts"]["dismissed"] >= 1

    def counted(name: str) -> bool:
        return f"assignment_workers_{name} 0.0" in gateway.get("/metrics", bearer="supervisor").text

    wait_until(lambda: counted("dead_letters_new"), "none to be new")
    wait_until(lambda: counted("dead_letters_unseen"), "none to be seen to")
