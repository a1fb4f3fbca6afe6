"""What the command tells of one user, one queue and one agent: who is offered, and why not."""

from __future__ import annotations

import json
from datetime import UTC, timedelta

from tests.support.shell import USED_WRONGLY, Shell
from tests.support.world import UNSIGNED, User, opened


def test_explain_tells_a_user_and_a_funnel_as_text_and_as_json(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with opened(database_url) as world:
        world.add_users([User(1), User(2, is_enabled=False)])
        world.regenerate(UNSIGNED)
    disabled = shell.run("explain", "2", "--json", **servers).json(0)
    assert (disabled["offered"], disabled["queues"][0]["why"]) == (False, "disabled")
    funnel = shell.run("explain", "--queue", UNSIGNED, "--json", **servers).json(0)
    assert (funnel["pool"], funnel["claimable"]) == (2, 1)
    assert [(each["why"], each["users"]) for each in funnel["steps"]] == [("disabled", 1)]
    for words, told in (
        (["1"], ["User 1", "may be handed out from unsigned_users", "rank 1", "cooling_down"]),
        (["2"], ["User 2", "is not offered", "unsigned_users: disabled: disabled in the CRM"]),
        (["--queue", UNSIGNED], ["2 users of the pool", "disabled", "Claimable: 1"]),
    ):
        said = shell.run("explain", *words, **servers)
        assert (said.code, said.complaint) == (0, "")
        assert all(each in said.output for each in told), said.output
    shell.run("explain", "3", **servers).check(USED_WRONGLY, "no user 3")


def test_why_an_agent_got_nobody_at_a_time_is_listed(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with opened(database_url) as world:
        world.add_agents(12, 13)
        world.add_users([User(1), User(2, queue="outstanding_requests", is_enabled=False)])
        world.regenerate(UNSIGNED, "outstanding_requests")
        world.ask(12, "outstanding_requests")
        world.held(12)
        world.ask(13, None)
        at = world.value("SELECT max(answered_at) FROM assignment.requests").isoformat()
    said = shell.run("agents", "answers", "12", "--at", at, "--json", **servers).json(0)
    told = [(each["queue"], each["outcome"], each["user_id"], each["why"]) for each in said]
    assert told == [
        ("outstanding_requests", "empty", None, "outstanding_requests: none_eligible"),
        (UNSIGNED, "assigned", 1, None),
    ]
    shown = shell.run("agents", "answers", "13", "--at", at, **servers)
    assert "any queue" in shown.output
    assert f"{UNSIGNED}: all_held" in " ".join(shown.output.split())
    before = shell.run("agents", "answers", "12", "--at", "2026-01-01T10:03Z", "--json", **servers)
    assert before.json(0) == []
    none = shell.run("agents", "answers", "12", "--at", "2026-01-01T10:03Z", **servers)
    assert none.output.startswith("No answer to agent 12 is stored")
    wrong = shell.run("agents", "answers", "12", "--at", "at ten", **servers)
    wrong.check(USED_WRONGLY, "--at", "10:03 or 2026-11-23T15:00:00Z")
    zoned = shell.run("agents", "answers", "12", "--at", "10:03Z", **servers)
    zoned.check(USED_WRONGLY, "--at '10:03Z'", "no date")


def test_a_time_of_day_is_the_last_by_this_machines_clock_and_told(
    shell: Shell, database_url: str, redis_url: str
) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    with opened(database_url) as world:
        world.add_agents(12)
        world.regenerate(UNSIGNED)
        world.ask(12, UNSIGNED)
        world.execute("UPDATE assignment.requests SET answered_at = clock_timestamp()")
        at = world.value("SELECT answered_at FROM assignment.requests")
        answered = at.astimezone()
    of_day = f"{answered:%H:%M}"
    said = shell.run("agents", "answers", "12", "--at", of_day, "--json", **servers)
    assert [each["outcome"] for each in json.loads(said.output)] == ["empty"]
    assert said.complaint.startswith(f"{of_day} is read as {answered:%Y-%m-%d %H:%M:00 %Z}, ")
    assert said.complaint.endswith(f", {answered.astimezone(UTC):%Y-%m-%d %H:%M}:00Z\n")
    ahead = f"{answered + timedelta(minutes=30):%H:%M}"
    before = shell.run("agents", "answers", "12", "--at", ahead, "--json", **servers)
    yesterday = answered + timedelta(minutes=30) - timedelta(days=1)
    assert f" {yesterday:%Y-%m-%d %H:%M}:00 " in before.complaint
