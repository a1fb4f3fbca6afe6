"""The doctor: each check finds the damage that it is for, and only what is safe to mend is mended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from assignment_workers.assignment.answers import Done
from assignment_workers.assignment.reports import doctor
from assignment_workers.assignment.reports.doctor import CHECKS, examine, repair
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from tests.support.world import User, World

TWICE = (
    "DROP INDEX assignment.uq_assignments_active_{who}; INSERT INTO assignment.assignments"
    " (id, request_id, user_id, agent_id, queue, rank, score, reason, term, claimed_at,"
    " lease_expires_at) SELECT gen_random_uuid(), 'forged', {user}, {agent}, queue, rank, score,"
    " reason, term, claimed_at, lease_expires_at FROM assignment.assignments"
)
ENDED = (
    "INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank, score,"
    " reason, term, claimed_at, lease_expires_at, state, outcome, ended_at, ended_xid)"
    " SELECT gen_random_uuid(), 'forged', 5, 99, queue, rank, score, reason, term, claimed_at,"
    " lease_expires_at, {}, now(), 1 FROM assignment.assignments; INSERT INTO assignment.events"
    " (at, kind, term, user_id, agent_id, assignment_id) SELECT now(), {}, term, user_id,"
    " agent_id, id FROM assignment.assignments WHERE request_id = 'forged'"
)
USER_TWICE = TWICE.format(who="user", user="user_id", agent="99")
AGENT_TWICE = TWICE.format(who="agent", user="99", agent="agent_id")
NO_INDEX = "the indexes that keep holds single are in place"
NO_EVENT = "every assignment of the last day has left its event"
HELD_NOT_MARKED = "every held user is marked held in the published generations"
MARKED_NOT_HELD = "nobody is marked held without an active assignment"

DAMAGE: dict[str, str] = {
    "no user has two active assignments": USER_TWICE,
    "no agent has two active assignments": AGENT_TWICE,
    NO_INDEX: "DROP INDEX assignment.uq_assignments_active_agent",
    HELD_NOT_MARKED: "UPDATE assignment.entries SET state = 'ready' WHERE user_id = 1",
    MARKED_NOT_HELD: "UPDATE assignment.entries SET state = 'held' WHERE user_id = 2",
    "every published generation has its entries": "ALTER TABLE assignment.entries"
    " DETACH PARTITION assignment.entries_1; DROP TABLE assignment.entries_1",
    "no generation has waited longer than 5 minutes to be published": "UPDATE"
    " assignment.generations SET built_at = now() - interval '301 s' WHERE state = 'building'",
    "nobody was handed out who was suppressed or had opted out": "INSERT INTO assignment.suppressions"
    " (kind, user_id, reason, since, by) VALUES"
    " ('do_not_contact', 1, 'asked', now() - interval '1 h', 'an operator')",
    "nobody claimable was passed over": "UPDATE assignment.entries SET rank = 0 WHERE user_id = 2",
    "every answer was true when it was given": "UPDATE assignment.requests"
    " SET deadline = answered_at - interval '1 ms'",
    "every hold was ended and renewed by its own agent": "INSERT INTO assignment.events"
    " (at, kind, term, user_id, agent_id, assignment_id) SELECT now(), 'renewed', term, user_id,"
    " 99, id FROM assignment.assignments",
    "every call that was to be called back has left the promise": ENDED.format(
        "'completed', 'call_back'", "unnest(ARRAY['completed', 'assigned'])"
    ),
    "every hold that ended in the last day has left the event of its end": ENDED.format(
        "'released', NULL", "'assigned'"
    ),
    "every answered request agrees with its assignment": "UPDATE assignment.requests"
    " SET agent_id = 99",
    "no hold outlives its lease by more than 2 minutes": "UPDATE assignment.assignments"
    " SET claimed_at = now() - interval '1 h', lease_expires_at = now() - interval '121 s'",
    "no event is of a term that has not begun": "UPDATE assignment.events SET term = 2",
    "no term was begun twice: the database has not moved back": "INSERT INTO assignment.events"
    " (at, kind, term) VALUES (now(), 'term_begun', 1), (now(), 'term_begun', 1)",
    "the lanes are led by one dialer's file": "UPDATE assignment.sequencer"
    """ SET dialer = '{"queue a": "1", "outcome b": "1"}'; INSERT INTO assignment.sequencer"""
    """ (lane, term, dialer) VALUES ('other', 0, '{"queue a": "1", "outcome b": "2"}');"""
    " INSERT INTO assignment.sequencer_signs (lane, last_turn_at) SELECT lane, now()"
    " FROM assignment.sequencer ON CONFLICT (lane) DO UPDATE SET last_turn_at = now()",
    NO_EVENT: "DELETE FROM assignment.events WHERE kind = 'assigned'",
    "nobody is with an agent of the dialer and with another one of ours": "INSERT INTO callbacks"
    " (user_id, scheduled_for, original_call_session_id, status, assigned_to_agent_id,"
    " lease_expires_at) VALUES (1, timezone('UTC', now()), gen_random_uuid(), 'assigned', 2,"
    " timezone('UTC', now() + interval '5 min'))",
    "no callback is overdue by more than an hour": "INSERT INTO callbacks"
    " (user_id, scheduled_for, original_call_session_id)"
    " VALUES (1, timezone('UTC', now() - interval '61 min'), gen_random_uuid())",
    "no callback waits for an operator to see to its user": "INSERT INTO callbacks"
    " (id, user_id, scheduled_for, available_from, original_call_session_id) SELECT"
    " original, 1, timezone('UTC', now() - interval '61 min'), timezone('UTC', now()), original"
    " FROM (VALUES ('00000000-0000-4000-8000-000000000001'::uuid)) AS one (original);"
    " INSERT INTO assignment.events (at, kind, user_id, details) VALUES (now(),"
    ' \'callback_postponed\', 1, \'{"callback_id": "00000000-0000-4000-8000-000000000001",'
    ' "reason": "number_unclear"}\')',
    "the mirror of a CRM elsewhere is younger than 20 minutes": "INSERT INTO assignment.crm_reads"
    " (whole, read_at, seconds, counts) VALUES (true, now() - interval '21 min', 1, '{}')",
    "every event has been in a hash chain within an hour": "INSERT INTO assignment.events"
    " (at, kind) VALUES (now() - interval '61 min', 'discovered')",
    "no job has been running for more than an hour": "INSERT INTO assignment.job_runs"
    " (job, trigger, started_at) VALUES ('scores.age', 'beat', now() - interval '61 min')",
}
"""By check: the damage that it is for."""
ALSO = {
    check: {NO_INDEX, NO_EVENT}
    for check in ("no user has two active assignments", "no agent has two active assignments")
}
"""By check: which others its damage shows to."""


@pytest.fixture
def healthy(world: World) -> World:
    """Agent 1 holds user 1; user 2 is claimable; another generation waits to be published."""
    world.add_agents(1, 2)
    world.add_users([User(1, 1), User(2, 2)])
    world.regenerate()
    world.held(1)
    world.build()
    keep_waiting(world)
    assert world.unhealthy() == []
    return world


def keep_waiting(world: World) -> None:
    """Set the wait of the generation that waits to nearly as long as one may wait."""
    world.execute(
        "UPDATE assignment.generations SET built_at = now() - interval '290 seconds'"
        " WHERE state = 'building'"
    )


def mend(world: World) -> dict[str, int]:
    done = world.run(repair)
    assert isinstance(done, Done)
    return done.counts


def test_every_check_has_its_damage() -> None:
    assert DAMAGE.keys() == {check.name for check in CHECKS}


@pytest.mark.parametrize("check", DAMAGE)
def test_the_doctor_finds(healthy: World, check: str) -> None:
    for statement in DAMAGE[check].split(";"):
        healthy.tamper(statement)
    with healthy.engine.connect() as connection:
        found = {each.check: each for each in examine(connection, loaded()) if not each.ok}
    assert found.keys() == {check} | ALSO.get(check, set())
    assert found[check].count == len(found[check].examples) > 0
    mended = mend(healthy)
    if found[check].repairable:
        assert sum(mended.values()) == 1
        assert healthy.unhealthy() == []
        assert healthy.states() == {1: "held", 2: "ready"}
    else:
        assert healthy.unhealthy() == [each.name for each in CHECKS if each.name in found]


def test_a_repair_changes_entries_and_nothing_else(healthy: World) -> None:
    healthy.skip(healthy.held(2))
    healthy.execute(
        "UPDATE assignment.entries SET state = 'waiting', available_from = now() WHERE user_id = 1"
    )
    holds = healthy.rows("SELECT a::text FROM assignment.assignments a ORDER BY 1")
    assert mend(healthy) == {"marked_held": 1, "given_back": 0}
    assert healthy.states() == {1: "held", 2: "waiting"}
    assert mend(healthy) == {"marked_held": 0, "given_back": 0}
    assert healthy.rows("SELECT a::text FROM assignment.assignments a ORDER BY 1") == holds


def test_at_most_five_examples_are_shown_and_a_hundred_counted(world: World) -> None:
    world.add_users(User(each) for each in range(1, 151))
    world.regenerate()
    world.execute("UPDATE assignment.entries SET state = 'held'")
    with world.engine.connect() as connection:
        (found,) = (each for each in examine(connection, loaded()) if not each.ok)
    assert (found.check, found.count, len(found.examples)) == (MARKED_NOT_HELD, 100, 5)
    assert mend(world) == {"marked_held": 0, "given_back": 150}
    assert world.unhealthy() == []


def test_no_check_and_no_repair_reads_more_than_it_says(
    healthy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many records, lately and long ago, and as many claimable entries."""
    monkeypatch.setattr(doctor, "NEWEST", 2_000)
    fill(healthy, 20_000)
    most = {check.name: 4 * doctor.NEWEST for check in CHECKS if ":newest" in check.query}
    with healthy.engine.connect() as connection:
        for check in CHECKS:
            query = check.bounded(loaded().outcomes)
            explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
            found = connection.execute(explain, query.compile().params).scalar_one()
            rows = sum(read(found[0]["Plan"]))
            assert rows <= most.get(check.name, 1_000), (check.name, rows)
    healthy.execute("UPDATE assignment.entries SET state = 'held' WHERE user_id = 2")
    healthy.execute("UPDATE assignment.entries SET state = 'ready' WHERE user_id = 1")
    with TransactionRunner(
        healthy.engine, dialer=loaded(), term=healthy.term
    ).transaction() as transaction:
        assert repair(transaction).counts == {"marked_held": 1, "given_back": 1}
        scanned = transaction.connection.execute(
            text(
                "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
                " WHERE relname LIKE 'entries%'"
            )
        ).scalar_one()
    assert 0 < scanned < 1_000


def fill(world: World, size: int) -> None:
    """So many records of the last day, as many older ones, and so many users who are claimable."""
    for back in ("30 min", "3 days"):
        given = {"size": size, "back": back, "name": back}
        world.execute(
            "INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank,"
            " score, reason, term, state, claimed_at, lease_expires_at, ended_at, ended_xid) SELECT"
            " (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000'"
            " || '8000' || lpad(to_hex(n), 12, '0'))::uuid, :name || n, n + 1000, n % 50,"
            " 'unsigned_users', 1, 0, 'new', 1, 'released', at, at + interval '1 min', at, 1"
            " FROM (SELECT n, now() - cast(:back AS interval) - n * interval '1 ms' AS at"
            " FROM generate_series(1, :size) n) AS made",
            **given,
        )
        world.execute(
            "INSERT INTO assignment.requests (request_id, agent_id, outcome, answer, assignment_id,"
            " term, answered_at) SELECT request_id, agent_id, 'assigned', '{}', id, 1, claimed_at"
            " FROM assignment.assignments WHERE request_id LIKE :name || '%'",
            name=back,
        )
        world.execute(
            "INSERT INTO assignment.events (at, kind, term, user_id, agent_id, assignment_id)"
            " SELECT claimed_at, unnest(ARRAY['assigned', 'released']), 1, user_id, agent_id, id"
            " FROM assignment.assignments WHERE request_id LIKE :name || '%'",
            name=back,
        )
    world.execute(
        "INSERT INTO assignment.job_runs (job, trigger, status, started_at, ended_at)"
        " SELECT 'generation.tend', 'beat', 'succeeded', now(), now()"
        " FROM generate_series(1, cast(:size AS int))",
        size=size,
    )
    world.execute(
        "INSERT INTO assignment.entries (generation_id, user_id, rank, score) SELECT g.id, n, n, 0"
        " FROM assignment.generations g, generate_series(1000, cast(:size AS int)) n"
        " WHERE g.queue = 'unsigned_users' AND g.state = 'published'",
        size=size,
    )
    world.execute("ANALYZE")
    keep_waiting(world)
    assert world.unhealthy() == []


def read(plan: dict[str, Any]) -> Iterator[int]:
    """The rows that each scan of a plan read, those that it threw away too."""
    if "Scan" in plan["Node Type"] and "Relation Name" in plan:
        thrown = plan.get("Rows Removed by Filter", 0)
        yield round((plan["Actual Rows"] + thrown) * plan["Actual Loops"])
    for each in plan.get("Plans", ()):
        yield from read(each)
