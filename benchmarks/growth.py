"""What a claim costs as a dialer queue grows, and as its head fills with users who cannot be had.

Each figure is one turn on the assignment queue that answers one request, in this process: no
transport. Pending: users in the published generation. Held: active assignments of other agents on
the best ranked. Skipped: users at the head whom this agent has skipped. Ineligible: users at the
head who have signed since the build; the first claim takes them out, the second finds them gone.
Quarantined: users of the head who were taken out and set aside by claims before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine, text

from assignment_workers.assignment.answers import Assigned
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.generations.publish import publish
from assignment_workers.assignment.lifecycle.finish import finish
from assignment_workers.assignment.lifecycle.moves import Owner, Release
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from benchmarks.dialer import POLICIES, UNSIGNED_USERS
from benchmarks.stage import build, build_and_publish, line

AGENT = 1
NUMBERS = itertools.count(1)

HEAD = """
SELECT e.user_id, e.rank FROM assignment.entries e
JOIN assignment.generations g ON g.id = e.generation_id
WHERE g.state = 'published' AND g.queue = 'unsigned_users' AND e.state = 'ready'
ORDER BY e.rank LIMIT :many
"""
MORE_AGENTS = """
INSERT INTO agents (id, email, first_name, last_name, created_at, updated_at)
SELECT n, 'more' || n, 'A', n::text, now(), now() FROM generate_series(101, 100 + :many) n
ON CONFLICT DO NOTHING
"""
HELD = f"""
WITH head AS ({HEAD})
INSERT INTO assignment.assignments
  (id, request_id, user_id, agent_id, queue, rank, score, reason, state, term, claimed_at,
   lease_expires_at)
SELECT gen_random_uuid(), gen_random_uuid()::text, user_id, 100 + row_number() OVER (ORDER BY rank),
       'unsigned_users', rank, 0, 'new', 'active', 0, now(), now() + interval '1 day' FROM head
"""
HELD_ENTRIES = """
UPDATE assignment.entries e SET state = 'held'
FROM assignment.assignments a, assignment.generations g
WHERE a.state = 'active' AND a.user_id = e.user_id AND g.id = e.generation_id
  AND g.state = 'published'
"""
LET_GO = """
UPDATE assignment.assignments SET state = 'released', ended_at = now(), version = 2,
  ended_xid = pg_current_xact_id()::text::bigint WHERE state = 'active'
"""
SKIPPED = f"""
WITH head AS ({HEAD})
INSERT INTO assignment.assignments
  (id, request_id, user_id, agent_id, queue, rank, score, reason, state, version, term, claimed_at,
   lease_expires_at, ended_at, ended_xid)
SELECT gen_random_uuid(), gen_random_uuid()::text, user_id, {AGENT}, 'unsigned_users', rank, 0,
       'new', 'skipped', 2, 0, now() - interval '20 minutes', now(), now() - interval '18 minutes',
       pg_current_xact_id()::text::bigint FROM head
"""
FORGET = "DELETE FROM assignment.assignments WHERE state = 'skipped'"
RETIRE = """
UPDATE assignment.generations SET state = 'retired', retired_at = now()
WHERE queue = 'unsigned_users' AND state = 'published'
"""
PUBLISH = """
UPDATE assignment.generations SET state = 'published', retired_at = NULL WHERE id = :generation
"""
SIGN = f"""
WITH head AS ({HEAD})
UPDATE crm.users SET current_signature_file_id = 'signed-for-the-benchmark'
WHERE id IN (SELECT user_id FROM head)
"""
QUARANTINED = f"""
WITH head AS ({HEAD}), suppressed AS (
  INSERT INTO assignment.suppressions (user_id, kind, reason, since, by)
  SELECT user_id, 'quarantine', 'for the benchmark', now(), 'benchmark' FROM head
  RETURNING user_id)
UPDATE assignment.entries e SET state = 'out', reason = 'quarantine'
FROM suppressed, assignment.generations g
WHERE e.user_id = suppressed.user_id AND g.id = e.generation_id AND g.state = 'published'
"""
RELEASED = "DELETE FROM assignment.suppressions"
UNSIGN = """
UPDATE crm.users SET current_signature_file_id = NULL
WHERE current_signature_file_id = 'signed-for-the-benchmark'
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of each claim measured under one condition."""

    what: str
    size: int
    seconds: list[float]


def one(sequence: TransactionRunner, settings: Settings) -> float:
    """The seconds of one claim, whose hold is given back at once; of all its turns together."""
    request = ClaimRequest(AGENT, f"growth-{next(NUMBERS)}", UNSIGNED_USERS.queue)

    def transaction(transaction: FencedTransaction) -> Assigned | None:
        (answer,) = claim(transaction, [request], policies=POLICIES, settings=settings)
        if answer is not None and not isinstance(answer, Assigned):
            raise RuntimeError(f"nobody was assigned: {answer}")
        return answer

    began = time.perf_counter()
    while (answer := sequence.run(transaction)) is None:
        pass  # it took many out, and the line breathes between
    seconds = time.perf_counter() - began
    owner = Owner(answer.assignment.id, AGENT, answer.assignment.version)
    sequence.run(lambda transaction: finish(transaction, [Release(owner)]))
    return seconds


def claims(sequence: TransactionRunner, settings: Settings, rounds: int) -> list[float]:
    """So many, after some that are not counted."""
    return [one(sequence, settings) for _ in range(rounds + 10)][10:]


def pending(
    on: Engine, sizes: Sequence[int], settings: Settings, rounds: int, turns: int = 10
) -> list[Cost]:
    """By how many are pending: each size is built once, and they are published by turns.

    So that a slow moment of the machine does not stay with a size.
    """
    found: dict[int, list[float]] = {size: [] for size in sizes}
    built: dict[int, int] = {}
    for size in sizes:
        limited = settings.model_copy(update={"queue_limit": size})
        built[size] = build(on, UNSIGNED_USERS, limited)
        line(on).run(partial(publish, number=built[size]))
    for transaction in range(turns):
        for size in sizes if transaction % 2 else reversed(sizes):
            _run(on, RETIRE)
            _run(on, PUBLISH, generation=built[size])
            found[size] += claims(line(on), settings, rounds // turns)
    return [Cost("pending", size, seconds) for size, seconds in found.items()]


def held(on: Engine, sizes: Sequence[int], settings: Settings, rounds: int) -> list[Cost]:
    """By how many others hold somebody."""
    found = []
    for size in sizes:
        build_and_publish(on, UNSIGNED_USERS, settings)
        _run(on, MORE_AGENTS, many=size)
        _run(on, HELD, many=size)
        _run(on, HELD_ENTRIES)
        found.append(Cost("held", size, claims(line(on), settings, rounds)))
        _run(on, LET_GO)
    return found


def skipped(on: Engine, sizes: Sequence[int], settings: Settings, rounds: int) -> list[Cost]:
    """By how many at the head this agent has skipped."""
    given = {"what": "skipped", "begins": SKIPPED, "ends": FORGET}
    return [_behind(on, size, settings, rounds, **given) for size in sizes]


def ineligible(on: Engine, sizes: Sequence[int], settings: Settings, rounds: int) -> list[Cost]:
    """By how many at the head are ineligible: the first claim and those after it."""
    found = []
    for size in sizes:
        build_and_publish(on, UNSIGNED_USERS, settings)
        _run(on, SIGN, many=size)
        sequence = line(on)
        found.append(Cost("ineligible, first claim", size, [one(sequence, settings)]))
        found.append(Cost("ineligible, second claim", size, [one(sequence, settings)]))
        found.append(Cost("ineligible, later claims", size, claims(sequence, settings, rounds)))
        _run(on, UNSIGN)
    return found


def quarantined(on: Engine, sizes: Sequence[int], settings: Settings, rounds: int) -> list[Cost]:
    """By how many of the head are in quarantine, each put there as a claim does it."""
    given = {"what": "quarantined", "begins": QUARANTINED, "ends": RELEASED}
    return [_behind(on, size, settings, rounds, **given) for size in sizes]


def _behind(
    on: Engine, size: int, settings: Settings, rounds: int, *, what: str, begins: str, ends: str
) -> Cost:
    """Claims of a new generation while so many of its head cannot be had."""
    build_and_publish(on, UNSIGNED_USERS, settings)
    _run(on, begins, many=size)
    cost = Cost(what, size, claims(line(on), settings, rounds))
    _run(on, ends)
    return cost


def _run(on: Engine, sql: str, **parameters: object) -> None:
    with on.begin() as connection:
        connection.execute(text(sql), parameters)
    with on.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE assignment.assignments"))
