"""The dialer's own code claims callbacks and missed calls beside ours: guarantee 1 holds in both."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import create_engine

from assignment_workers.adoption import promises
from assignment_workers.adoption.rollback import rollback
from assignment_workers.assignment.reports.doctor import examine
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.engine import driver_url
from tests.adoption import dialers
from tests.adoption.dialers import UNSIGNED, connected
from tests.adoption.moving import check, moved, rows
from tests.adoption.test_inspect import inspected
from tests.support.processes import wait_until
from tests.support.sessions import OTHERS

CLAIM = (
    'UPDATE "public"."callbacks" SET "status" = %s, "assigned_to_agent_id" = %s,'
    ' "assigned_at" = %s, "lease_expires_at" = %s'
    ' WHERE ("public"."callbacks"."id" = %s AND "public"."callbacks"."status" = %s)'
)
CLAIM_MISSED = (
    'UPDATE "public"."missed_calls" SET "status" = %s, "assigned_to_agent_id" = %s,'
    ' "assigned_at" = %s WHERE ("public"."missed_calls"."id" = %s'
    ' AND "public"."missed_calls"."status" = %s)'
)
ACTIVE = (
    "SELECT user_id, agent_id, source, source_id FROM assignment.assignments"
    " WHERE state = 'active' ORDER BY 1"
)


def dialer(url: str, users: int = 4) -> None:
    """Users 1 to `users`, each with a callback that is due, a missed call and a place."""
    with connected(url) as connection:
        dialers.deployed(connection)
        connection.execute(
            "INSERT INTO user_call_scores (id, user_id, current_queue_type, updated_at)"
            f" SELECT gen_random_uuid(), n, 'unsigned_users', now() FROM generate_series(1, {users}) n;"
            f"INSERT INTO {UNSIGNED} (id, user_id, queue_position, updated_at)"
            f" SELECT gen_random_uuid(), n, n, now() FROM generate_series(1, {users}) n;"
            "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id, queue_type)"
            " SELECT md5('callback ' || n)::uuid, n, now() - interval '5 min', gen_random_uuid(),"
            f" 'unsigned_users' FROM generate_series(1, {users}) n;"
            "INSERT INTO missed_calls (id, user_id, phone_number, reason, missed_at)"
            " SELECT md5('missed ' || n)::uuid, n, '1', 'agents_busy', now() - interval '5 min'"
            f" FROM generate_series(1, {users}) n".encode()
        )


def claimed(connection: psycopg.Connection, callback: UUID, agent: int) -> int:
    """Rows that the dialer's claim of a callback changed."""
    now = datetime.now(UTC).replace(tzinfo=None)
    given = ["assigned", agent, now, now + timedelta(minutes=5), callback, "pending"]
    return connection.execute(CLAIM, given).rowcount


def claimed_missed(connection: psycopg.Connection, call: UUID, agent: int) -> int:
    now = datetime.now(UTC).replace(tzinfo=None)
    return connection.execute(CLAIM_MISSED, ["assigned", agent, now, call, "pending"]).rowcount


def ids(url: str, table: str) -> dict[int, UUID]:
    return dict(rows(url, f"SELECT user_id, id FROM {table}"))


def test_what_the_dialer_claims_is_a_hold_of_ours_until_the_dialer_ends_it(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    dialer(url)
    moved(url)
    callbacks, calls = ids(url, "callbacks"), ids(url, "missed_calls")
    with connected(url) as connection:
        assert claimed(connection, callbacks[1], 7) == 1
        assert claimed_missed(connection, calls[2], 8) == 1
        assert rows(url, ACTIVE) == [
            (1, 7, "callback", callbacks[1]),
            (2, 8, "missed_call", calls[2]),
        ]
        # Held users and agents are refused in the dialer's own words: nothing was changed.
        assert claimed_missed(connection, calls[1], 9) == 0
        assert claimed(connection, callbacks[2], 9) == 0
        assert claimed(connection, callbacks[3], 7) == 0
        held = "SELECT user_id FROM assignment.entries WHERE state = 'held' ORDER BY 1"
        assert rows(url, held) == [(1,), (2,)]
        check(url)
        connection.execute(
            "UPDATE callbacks SET status = 'completed' WHERE id = %s", [callbacks[1]]
        )
        connection.execute("UPDATE missed_calls SET status = 'pending' WHERE id = %s", [calls[2]])
        assert rows(url, ACTIVE) == []
        assert rows(url, held) == []
        assert claimed(connection, callbacks[3], 7) == 1
    check(url)
    rollback(url)
    with connected(url) as connection:
        assert claimed_missed(connection, calls[3], 9) == 1


def test_a_double_that_came_about_all_the_same_is_found_by_the_doctor(
    empty_database_url: str,
) -> None:
    url = empty_database_url
    dialer(url)
    moved(url)
    callbacks = ids(url, "callbacks")
    with connected(url) as connection:
        claimed(connection, callbacks[1], 7)
        connection.execute("UPDATE assignment.assignments SET agent_id = 9")
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        (found,) = [
            each
            for each in examine(connection, loaded())
            if "with an agent of the dialer" in each.check
        ]
    engine.dispose()
    assert (found.ok, found.count) == (False, 1)
    assert str(callbacks[1]) in found.examples[0]


@dataclass
class Worlds:
    """The dialer's agents and ours, who claim the same users as fast as they can."""

    url: str
    users: int
    callbacks: dict[int, UUID]
    calls: dict[int, UUID]
    counts: Counter[str] = field(default_factory=Counter)

    def theirs(self, agent: int) -> None:
        """Claim by the dialer's statements, and give back."""
        chance = Random(agent)
        with connected(self.url) as mine:
            for _ in range(60):
                if chance.random() < 0.5:
                    table, row = "callbacks", self.callbacks[chance.randint(1, self.users)]
                    done = claimed(mine, row, agent)
                else:
                    table, row = "missed_calls", self.calls[chance.randint(1, self.users)]
                    done = claimed_missed(mine, row, agent)
                self.counts["theirs" if done else "refused"] += 1
                if done:
                    mine.execute(
                        f"UPDATE {table} SET status = 'pending', assigned_to_agent_id = NULL"
                        " WHERE id = %s",
                        [row],
                    )

    def ours(self, agent: int) -> None:
        """Hold by the insert of a turn, and end it."""
        chance = Random(agent)
        with connected(self.url) as mine:
            for number in range(60):
                request = f"ours-{agent}-{number}"
                try:
                    mine.execute(OURS, [request, chance.randint(1, self.users), agent])
                except psycopg.errors.UniqueViolation:
                    self.counts["met"] += 1
                    continue
                self.counts["ours"] += 1
                mine.execute(OURS_BEGINS, [request])
                mine.execute(OURS_ENDS, [request])


def test_both_worlds_at_full_speed_hand_out_each_user_to_one_agent(empty_database_url: str) -> None:
    url, users = empty_database_url, 12
    dialer(url, users)
    moved(url)
    worlds = Worlds(url, users, ids(url, "callbacks"), ids(url, "missed_calls"))
    with ThreadPoolExecutor(8) as agents:
        done = [agents.submit(worlds.theirs, agent) for agent in range(1, 5)]
        done += [agents.submit(worlds.ours, agent) for agent in range(5, 9)]
    for each in done:
        each.result()
    counts = worlds.counts
    assert min(counts["theirs"], counts["ours"]) > 20, counts
    assert rows(url, ACTIVE) == []
    overlap = """
        SELECT a.id FROM assignment.assignments a JOIN assignment.assignments b ON a.id <> b.id
        AND (a.user_id = b.user_id OR a.agent_id = b.agent_id)
        AND a.claimed_at > b.claimed_at AND a.claimed_at < b.ended_at
    """
    made = counts["theirs"] + counts["ours"]
    assert rows(url, "SELECT count(*) FROM assignment.assignments") == [(made,)]
    assert rows(url, overlap) == []


OURS = """
    INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank, score,
        reason, term, claimed_at, lease_expires_at)
    VALUES (gen_random_uuid(), %s, %s, %s, 'unsigned_users', 1, 0, 'test', 0, clock_timestamp(),
        clock_timestamp() + interval '5 min')
"""
OURS_BEGINS = """
    UPDATE assignment.assignments SET claimed_at = clock_timestamp() WHERE request_id = %s
"""
OURS_ENDS = """
    UPDATE assignment.assignments SET state = 'released', version = 2,
        ended_at = clock_timestamp(), ended_xid = 1 WHERE request_id = %s
"""


@pytest.mark.parametrize("name", ["deployed", "widened"])
def test_promises_that_were_stuck_come_back_or_are_an_operators(
    empty_database_url: str, name: str
) -> None:
    url = empty_database_url
    with connected(url) as connection:
        dialers.STATES[name](connection)
        for user, (due, lease, agent) in enumerate(
            [
                ("- interval '1 hour'", "- interval '55 min'", 7),
                ("- interval '60 days'", "- interval '60 days'", 8),
                ("- interval '1 min'", "+ interval '4 min'", 9),
                ("- interval '1 min'", "+ interval '4 min'", 9),
                ("+ interval '1 day' * 4000000", "- interval '1 day'", 9),
            ],
            1,
        ):
            connection.execute(
                "INSERT INTO callbacks (id, user_id, scheduled_for, original_call_session_id, status,"
                " assigned_to_agent_id, assigned_at, lease_expires_at) VALUES (gen_random_uuid(), %s,"
                f" now() {due}, gen_random_uuid(), %s, %s, now(), now() {lease})".encode(),
                [user, "accepted" if user == 1 else "assigned", agent],
            )
        connection.execute(
            "INSERT INTO missed_calls (id, user_id, phone_number, reason, missed_at, status,"
            " assigned_to_agent_id, assigned_at) SELECT gen_random_uuid(), 10 + n, '1', 'x',"
            " now() - n * interval '2 days', 'assigned', 10, now() - interval '1 day'"
            " FROM generate_series(0, 5) n"
        )
    counts = {(each.table, each.what): each.count for each in inspected(url).blockers}
    assert counts["callbacks", "promises that an agent of the dialer has"] == 5
    assert counts["missed_calls", "promises that an agent of the dialer has"] == 6
    moved(url)
    decided = rows(
        url,
        "SELECT found_in, user_id, split_part(rule, ': ', 2) FROM assignment.adoption_decisions"
        " ORDER BY 1, 2",
    )
    status = dict(rows(url, "SELECT user_id, status FROM callbacks"))
    due, hold, operator = "due again", "a hold of ours", "for an operator"
    live = {
        user for user, holder in rows(url, "SELECT user_id, agent_id FROM assignment.assignments")
    }
    assert len(live) == 1
    assert live < {3, 4}
    (other,) = {3, 4} - live
    assert decided[:5] == sorted(
        [
            ("callbacks", 1, due),
            ("callbacks", 2, operator),
            ("callbacks", 5, operator),
            ("callbacks", other, due),
            *(("callbacks", user, hold) for user in live),
        ]
    )
    assert {user for user, now in status.items() if now == "pending"} == {1, other}
    assert decided[5:] == [("missed_calls", 10 + n, due if n < 4 else operator) for n in range(6)]
    check(url)
    moved(url)
    assert len(rows(url, "SELECT 1 FROM assignment.adoption_decisions")) == 11


@pytest.mark.parametrize("missed", ["1 hour", "30 days"])
def test_the_cost_of_stuck_promises_grows_with_their_number_alone(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, missed: str
) -> None:
    monkeypatch.setattr(promises, "AT_A_TIME", 50)
    read = []
    with connected(empty_database_url) as connection:
        dialers.deployed(connection)
    moved(empty_database_url)
    for count in (500, 2_000):
        with connected(empty_database_url) as connection:
            connection.execute(
                "DELETE FROM missed_calls; INSERT INTO missed_calls (id, user_id, phone_number,"
                " reason, missed_at, status, assigned_to_agent_id, assigned_at)"
                f" SELECT gen_random_uuid(), n, '1', 'x', now() - interval '{missed}', 'assigned',"
                f" 10, now() - interval '1 day' FROM generate_series(1, {count}) n".encode()
            )
            before = connection.execute(FETCHED).fetchone()
            engine = create_engine(driver_url(empty_database_url))
            promises.settle(engine, lambda _: None)
            engine.dispose()
            wait_until(lambda: left(empty_database_url) == 1, "the session to end, with its counts")
            after = connection.execute(FETCHED).fetchone()
            assert before is not None
            assert after is not None
            read.append(after[0] - before[0])
    assert read[0] >= 500
    assert read[1] < 6 * read[0]


FETCHED = (
    "SELECT idx_tup_fetch + seq_tup_read, pg_stat_clear_snapshot() FROM pg_stat_user_tables"
    " WHERE relname = 'missed_calls'"
)


CLIENTS = " AND backend_type = 'client backend'"


def left(url: str) -> int:
    """The other sessions of clients in this database."""
    with connected(url) as connection:
        return len(connection.execute(f"SELECT {OTHERS}{CLIENTS}".encode()).fetchall())
