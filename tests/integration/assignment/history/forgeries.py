"""Rows and events that nobody may write: by query of the history checker, and by kind of event."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from sqlalchemy import Connection, text

from assignment_workers.assignment.answers import Finished, Held
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import (
    Owner,
    Release,
    Renew,
)
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.sequencer.term import Candidacy
from tests.support.processes import wait_until
from tests.support.world import (
    OUTSTANDING,
    SECOND,
    UNSIGNED,
    World,
    owner,
)


class Run(World):
    """A world in which every step is a second after the last."""

    def begin_term(self, database_url: str) -> None:
        """A new sequencer leads."""
        with closing(Candidacy(database_url, dialer=loaded())) as candidacy:
            begun = wait_until(candidacy.try_to_lead, "the lock of the last one to be free")
            self.term, self.term_id = begun.number, begun.id
        self.now += SECOND
        self.tamper(
            "UPDATE assignment.events SET at = :now WHERE kind = 'term_begun' AND term = :term",
            now=self.now,
            term=self.term,
        )

    def run(self, operation: Callable[..., Any], *said: Any, **also: Any) -> Any:
        self.now += SECOND
        return super().run(operation, *said, **also)

    def held(self, agent: int, queue: str | None = UNSIGNED) -> Held:
        self.now += SECOND
        return super().held(agent, queue)

    def renew(self, hold: Held) -> None:
        renewed = self.move(Renew(owner(hold), self.settings.lease))
        assert isinstance(renewed, Finished)


class Forger:
    """A transaction in which rows are forged; it is rolled back."""

    def __init__(self, run: Run, connection: Connection) -> None:
        self.run = run
        self.connection = connection

    def execute(self, sql: str) -> None:
        assert self.connection.execute(text(sql)).rowcount > 0, f"nothing was forged by {sql}"

    def publish_and_release(self) -> None:
        transaction = FencedTransaction(
            self.connection, self.run.now + SECOND, self.run.term, loaded()
        )
        publish(transaction, 7)
        held = self.connection.execute(text(f"SELECT id FROM {A} WHERE {HELD}")).scalar_one()
        (done,) = finish(transaction, [Release(Owner(held, 9))])
        assert isinstance(done, Finished)


A, R, E = "assignment.assignments", "assignment.requests", "assignment.events"
PROMISED = f"id = (SELECT min(id) FROM {E} WHERE kind = 'callback_promised')"
G, Q = "assignment.generations", "assignment.queues"
HELD = "state = 'active'"
THIS = "id = (SELECT id FROM assignment.assignments WHERE agent_id = 7)"
ITS = "assignment_id = (SELECT id FROM assignment.assignments WHERE agent_id = 7)"
"""Agent 7's one hold, released, whose user was held by nobody after."""
LAST = "(SELECT max(at) FROM assignment.events)"
ROW = (
    "INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, rank, score,"
    " reason, state, version, term, claimed_at, lease_expires_at, ended_at, ended_xid) VALUES"
)
OLD = (
    ROW + " (gen_random_uuid(), 'old 1', {users[0]}, {agents[0]}, 'unsigned_users', 1, 0, 'new',"
    " 'released', 2, 1, now() - interval '99 days', now() - interval '90 days',"
    " now() - interval '97 days', 1),"
    " (gen_random_uuid(), 'old 2', {users[1]}, {agents[1]}, 'unsigned_users', 1, 0, 'new',"
    " 'released', 2, 1, now() - interval '98 days', now() - interval '90 days',"
    " now() - interval '96 days', 1)"
)
NEW = (
    ROW + " ('00000000-0000-7000-8000-000000000000', 'new', 901, 91, 'unsigned_users', 1, 0, 'new',"
    f" 'active', 1, 3, {LAST}, {LAST} + interval '5 minutes', NULL, NULL);"
    " INSERT INTO assignment.requests (request_id, agent_id, outcome, answer, assignment_id, term,"
    " answered_at) VALUES ('new', 91, 'assigned', jsonb_build_object('outcome', 'assigned',"
    " 'assignment', jsonb_build_object('id', '00000000-0000-7000-8000-000000000000')),"
    f" '00000000-0000-7000-8000-000000000000', 3, {LAST})"
)
SECOND_END = (
    f"INSERT INTO {E} (at, kind, term, queue, user_id, agent_id, assignment_id) SELECT {LAST},"
    f" kind, term, queue, user_id, agent_id, assignment_id FROM {E} WHERE kind = 'released' AND {ITS}"
)
LONG_AGO = "paused_at = now() - interval '100 days'"
Forgery = str | Callable[[Forger], None]

ROWS: list[tuple[Forgery, int, str]] = [
    (
        OLD.format(users=(901, 901), agents=(91, 92)),
        1,
        "assignment was claimed before another hold on its user had ended",
    ),
    (
        OLD.format(users=(901, 902), agents=(91, 91)),
        1,
        "assignment was claimed before another hold of its agent had ended",
    ),
    (f"DELETE FROM {A} WHERE {THIS}", 2, "assignment is told of, and its row is gone"),
    *(
        (f"UPDATE {A} SET {change} WHERE {THIS}", 2, "assignment is not what its event tells")
        for change in (
            "user_id = 901",
            "rank = rank + 1",
            "generation_id = 1",
            "claimed_at = claimed_at - interval '1 ms'",
        )
    ),
    (
        Forger.publish_and_release,
        2,
        "assignment ended in the transaction that published a generation",
    ),
    (
        f"UPDATE {A} SET version = 3 WHERE {THIS}",
        8,
        "assignment has a version that its changes do not explain",
    ),
    (
        f"UPDATE {A} SET version = 2 WHERE {HELD}",
        8,
        "assignment has a version that its changes do not explain",
    ),
    (
        f"UPDATE {A} SET term = term - 1 WHERE {THIS}",
        9,
        "assignment was made under another term than its event",
    ),
    (
        f"DELETE FROM {E} WHERE {PROMISED}",
        10,
        "assignment was completed with a callback to come, and none was promised",
    ),
    (
        f"UPDATE {E} SET at = at + interval '1 ms' WHERE {PROMISED}",
        10,
        "assignment was completed with a callback to come, and none was promised",
    ),
    *(
        (
            f"DELETE FROM {E} WHERE kind = 'callback_{became}'",
            10,
            "assignment was the call of a callback, and what became of that is not told",
        )
        for became in ("kept", "postponed", "cancelled")
    ),
    (NEW, 11, "assignment was made without an event"),
    *(
        (
            f"UPDATE {A} SET {change} WHERE outcome = 'hung_up'",
            11,
            "assignment ended without an event",
        )
        for change in ("outcome = 'no_answer'", "ended_at = ended_at - interval '1 ms'")
    ),
    (
        (
            f"UPDATE {A} SET state = 'active', version = 1, ended_at = NULL, ended_xid = NULL"
            f" WHERE {THIS}"
        ),
        11,
        "assignment is active, and an event tells of its end",
    ),
    (
        f"UPDATE {A} SET lease_expires_at = lease_expires_at + interval '1 ms' WHERE {THIS}",
        11,
        "assignment has another lease than its events tell",
    ),
    (
        f"UPDATE {R} SET queue = 'outstanding_requests' WHERE {ITS}",
        4,
        "request was given a user of a dialer queue that it did not ask for",
    ),
    (
        f"UPDATE {R} SET agent_id = 99 WHERE {ITS}",
        5,
        "request is answered with another agent's assignment",
    ),
    (
        (
            f"UPDATE {R} SET outcome = 'empty', assignment_id = NULL,"
            f""" answer = '{{"outcome": "empty"}}' WHERE {ITS}"""
        ),
        5,
        "request has an assignment and another answer",
    ),
    *(
        (f"DELETE FROM {R} WHERE {which}", 5, "request has an assignment and no answer")
        for which in (ITS, "agent_id = 1 AND outcome = 'assigned'")
    ),
    *(
        (f"UPDATE {R} SET answer = {answer} WHERE {ITS}", 5, "request has two answers in one row")
        for answer in (
            """'{"outcome": "empty"}'""",
            "jsonb_set(answer, '{assignment,id}', '\"another\"')",
        )
    ),
    *(
        (
            (
                f"UPDATE {R} r SET answered_at = {instant} FROM {A} a"
                " WHERE a.id = r.assignment_id AND r.agent_id = 7"
            ),
            6,
            "request is answered with an assignment that was not active at that instant",
        )
        for instant in ("a.claimed_at - interval '1 ms'", "a.ended_at + interval '1 ms'")
    ),
    *(
        (
            f"UPDATE {R} SET deadline = {deadline} WHERE {which}",
            6,
            "request was given a user after its deadline, or was told too soon that it was late",
        )
        for which, deadline in (
            (ITS, "answered_at"),
            ("outcome = 'too_late'", "answered_at + interval '1 ms'"),
            ("outcome = 'too_late'", "NULL"),
        )
    ),
    *(
        (
            f"UPDATE {R} SET {change} WHERE outcome = 'paused'",
            6,
            "request was told of a pause while there was none",
        )
        for change in (
            "answered_at = answered_at + interval '1 minute'",
            "answered_at = answered_at - interval '3 seconds'",
            "queue = 'outstanding_requests'",
        )
    ),
    (
        (
            f"INSERT INTO {E} (at, kind, details) SELECT max(at), 'ASSIGNMENT_RACE_CONDITION',"
            f""" '{{"kind": "term_begun_twice", "held": 2, "current": 2}}' FROM {E}"""
        ),
        9,
        "term 2 was begun twice: the database moved back, and lost what it had committed since",
    ),
    *(
        (
            f"UPDATE {R} SET term = {term} WHERE {ITS}",
            9,
            "request was answered under a term that had not begun or was over",
        )
        for term in (2, 4)
    ),
    (
        f"DELETE FROM {G} WHERE state = 'failed'",
        2,
        "generation is told of, and its row is gone",
    ),
    *(
        (f"UPDATE {G} SET {change}", 11, "generation is not what its events tell")
        for change in (
            "published_at = published_at + interval '1 ms' WHERE id = 1",
            "retired_at = retired_at + interval '1 ms' WHERE id = 1",
            "state = 'building' WHERE state = 'failed'",
            "state = 'failed', error = 'forged' WHERE id = 1",
            "state = 'retired' WHERE queue = 'outstanding_requests'",
        )
    ),
    *(
        (
            f"UPDATE {Q} SET paused_at = now() WHERE name = '{queue}'",
            11,
            "dialer queue is not paused or resumed as its last event tells",
        )
        for queue in (UNSIGNED, OUTSTANDING)
    ),
]
"""What is done to the rows, the guarantee that it breaks, and what is said of the subject."""

EVENTS: list[tuple[Forgery, dict[int, int]]] = [
    (f"DELETE FROM {E} WHERE agent_id = 9 AND kind = 'assigned'", {11: 1}),
    (f"DELETE FROM {E} WHERE kind = 'released' AND {ITS}", {11: 1}),
    (f"UPDATE {E} SET agent_id = 99 WHERE kind = 'released' AND {ITS}", {8: 1}),
    (f"UPDATE {E} SET user_id = 99 WHERE kind = 'released' AND {ITS}", {11: 1}),
    (f"UPDATE {E} SET kind = 'completed' WHERE kind = 'released' AND {ITS}", {11: 1}),
    (f"UPDATE {E} SET kind = 'renewed' WHERE kind = 'released' AND {ITS}", {11: 2}),
    (
        f"UPDATE {E} SET kind = 'handed over' WHERE kind = 'taken_out' AND user_id = 4",
        {4: 4, 11: 1},
    ),
    (SECOND_END, {8: 1}),
    (
        (
            f"UPDATE {E} SET details = jsonb_set(details, '{{rank}}', '1000')"
            f" WHERE kind = 'assigned' AND {ITS}"
        ),
        {2: 1, 4: 1},
    ),
    (
        (
            f"UPDATE {E} SET details = jsonb_set(details, '{{lease_expires_at}}',"
            f" to_jsonb(at + interval '6 minutes')) WHERE kind = 'assigned' AND {ITS}"
        ),
        {7: 1, 11: 1},
    ),
    (f"UPDATE {E} SET request_id = 'request 1' WHERE kind = 'assigned' AND {ITS}", {2: 1, 5: 1}),
    (f"UPDATE {E} SET generation_id = 1 WHERE kind = 'assigned' AND {ITS}", {2: 2}),
    (f"UPDATE {E} SET term = 2 WHERE kind = 'released' AND {ITS}", {9: 1}),
    (f"UPDATE {E} SET term = NULL WHERE kind = 'released' AND {ITS}", {9: 1}),
    (
        f"UPDATE {E} SET at = at - interval '1 hour' WHERE kind = 'taken_out' AND user_id = 4",
        {9: 1},
    ),
    (f"DELETE FROM {E} WHERE kind = 'term_begun' AND term = 3", {9: 1}),
    (f"DELETE FROM {E} WHERE kind = 'generation_retired' AND generation_id = 1", {2: 1, 11: 1}),
    (f"DELETE FROM {E} WHERE kind = 'generation_failed'", {11: 1}),
    (f"DELETE FROM {E} WHERE kind IN ('queue_paused', 'queue_resumed')", {6: 1}),
    (f"DELETE FROM {E} WHERE kind = 'queue_resumed'", {6: 15, 11: 1}),
    (f"DELETE FROM {E} WHERE kind = 'skipped'", {1: 2, 4: 4, 7: 1, 11: 1}),
    ("DELETE FROM assignment.entries WHERE generation_id = 2", {4: 2}),
    (f"UPDATE {Q} SET {LONG_AGO} WHERE name = 'unsigned_users'", {6: 5, 11: 1}),
    (
        (
            f"UPDATE {Q} SET {LONG_AGO} WHERE name = 'outstanding_requests';"
            f" UPDATE {R} SET queue = 'outstanding_requests' WHERE outcome = 'paused'"
        ),
        {6: 2},
    ),
]
"""What is done to the events or entries, and how many breaches of which guarantee it makes."""
