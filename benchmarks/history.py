"""What the history checker costs, beside reading the same events alone.

    .venv/bin/python -m benchmarks.history

The history is forged by statements over whole sets: agents who ask fifty times a second, complete,
skip, renew and give back, while a dialer queue is rebuilt every thirteen minutes. Every
generation's entries are kept, so the order of every grant is checked. It must be found good.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from assignment_workers.assignment.generations.regenerate import partition
from assignment_workers.assignment.history.history import check, facts
from assignment_workers.assignment.history.records import RECORDS
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from benchmarks.stage import engine, servers, show

GRANTS = 40_000
"""Grants from one generation; 20 ms apart, so that nobody who was skipped comes back to it."""
ENTRIES = 100_000
"""Users in one generation: most are never reached, as in a real one."""
EVENTS_A_GRANT = 2.35
AGENTS = 250

# Every tenth user is given back at once and goes to the next agent; every tenth rank is taken out.
FORGE = """
CREATE TEMPORARY TABLE slots AS
SELECT slot, 1 + slot / :grants AS generation, 1 + slot % :agents AS agent,
    (1 + slot / :grants) * 1000000 + rank AS user_id, rank,
    ('00000000-0000-7000-8000-' || lpad(to_hex(slot), 12, '0'))::uuid AS id,
    'request-' || md5(slot::text) AS request,
    at, at + interval '5 minutes' AS lease,
    CASE WHEN slot % 10 IN (2, 3, 4) THEN at + interval '2 seconds' END AS renewed_at,
    at + CASE WHEN slot % 10 = 8 THEN interval '10 milliseconds'
        ELSE :agents * interval '20 milliseconds' - interval '5 milliseconds' END AS ended_at,
    CASE slot % 10 WHEN 8 THEN 'released' WHEN 0 THEN 'skipped' ELSE 'completed' END AS state
FROM (
    SELECT slot, 2 * (slot % :grants - (slot % 10 = 9)::int) AS rank,
        CAST(:began AS timestamptz) + slot * interval '20 milliseconds' AS at
    FROM generate_series(0, :slots - 1) AS slot
) AS numbered;

INSERT INTO assignment.generations (id, queue, state, trigger, started_at, snapshot, built_at,
    published_at, retired_at, size) OVERRIDING SYSTEM VALUE
SELECT number, 'unsigned_users', CASE WHEN number = last THEN 'published' ELSE 'retired' END,
    'hand', at - interval '6 seconds', pg_current_snapshot()::text, at - interval '1 second', at,
    CASE WHEN number < last THEN next_at END, :entries
FROM (
    SELECT generation AS number, min(at) - interval '1 millisecond' AS at,
        lead(min(at)) OVER (ORDER BY generation) - interval '1 millisecond' AS next_at,
        max(generation) OVER () AS last
    FROM slots GROUP BY generation
) AS published;

INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, generation_id, rank,
    score, reason, state, version, term, claimed_at, lease_expires_at, ended_at, ended_xid, outcome)
SELECT id, request, user_id, agent, 'unsigned_users', generation, rank, 0, 'new', state, 2, 1, at,
    coalesce(renewed_at + interval '5 minutes', lease), ended_at, 3,
    CASE state WHEN 'completed' THEN 'no_answer' END
FROM slots;

INSERT INTO assignment.requests (request_id, agent_id, queue, deadline, outcome, answer,
    assignment_id, term, answered_at)
SELECT request, agent, 'unsigned_users', at + interval '10 seconds', 'assigned',
    jsonb_build_object('outcome', 'assigned', 'replayed', false, 'assignment', jsonb_build_object(
        'id', id, 'user_id', user_id, 'agent_id', agent, 'queue', 'unsigned_users',
        'source', 'queue', 'reason', 'new', 'rank', rank, 'claimed_at', at,
        'lease_expires_at', lease, 'version', 1, 'state', 'active')), id, 1, at
FROM slots;

INSERT INTO assignment.events (at, kind, term, queue, user_id, agent_id, assignment_id, request_id,
    generation_id, details)
SELECT at, kind, 1, 'unsigned_users', user_id, agent, id, request, generation, details
FROM (
    SELECT CAST(:began AS timestamptz) - interval '1 minute' AS at, 0 AS step,
        'term_begun' AS kind, NULL::bigint AS user_id, NULL::int AS agent, NULL::uuid AS id,
        NULL AS request, NULL::bigint AS generation, '{}'::jsonb AS details
    UNION ALL SELECT retired_at, 1, 'generation_retired', NULL, NULL, NULL, NULL, id, '{}'
    FROM assignment.generations WHERE retired_at IS NOT NULL
    UNION ALL SELECT published_at, 2, 'generation_published', NULL, NULL, NULL, NULL, id,
        jsonb_build_object('size', size) FROM assignment.generations
    UNION ALL SELECT at, 3, 'taken_out', user_id - 1, NULL, NULL, NULL, generation,
        '{"reason": "signed"}' FROM slots WHERE slot % 20 = 5
    UNION ALL SELECT at, 4, 'assigned', user_id, agent, id, request, generation,
        jsonb_build_object('rank', rank, 'lease_expires_at', lease) FROM slots
    UNION ALL SELECT renewed_at, 5, 'renewed', user_id, agent, id, NULL, NULL,
        jsonb_build_object('lease_expires_at', renewed_at + interval '5 minutes')
    FROM slots WHERE renewed_at IS NOT NULL
    UNION ALL SELECT ended_at, 6, state, user_id, agent, id, NULL, NULL,
        CASE state WHEN 'completed' THEN '{"outcome": "no_answer"}' ELSE '{}' END::jsonb FROM slots
) AS told
ORDER BY at, step;

UPDATE assignment.sequencer SET term = 1;
"""

# Even ranks are handed out; of the odd ones those are there that are taken out. The rest is behind.
ENTER = """
CREATE TABLE {name} PARTITION OF assignment.entries FOR VALUES IN ({number});
INSERT INTO {name} (generation_id, user_id, rank, score)
SELECT {number}, {number} * 1000000 + rank, rank, 0
FROM generate_series(0, 2 * {entries}) AS rank
WHERE CASE WHEN rank >= 2 * {grants} THEN rank % 2 = 0
    WHEN rank % 2 = 0 THEN (rank / 2) % 10 <> 9 ELSE ((rank + 1) / 2) % 20 = 5 END;
"""


def forge(on: Engine, events: int) -> int:
    """A good history of about so many events, the last just over: how many there are."""
    slots = round(events / EVENTS_A_GRANT)
    given = {"grants": GRANTS, "agents": AGENTS, "slots": slots, "entries": ENTRIES}
    with on.begin() as connection:
        began = text(
            "SELECT clock_timestamp() - :seconds * interval '1 second' - interval '1 hour'"
        )
        given["began"] = connection.execute(began, {"seconds": slots / 50}).scalar_one()
        for statement in FORGE.split(";\n"):
            if statement.strip():
                connection.execute(text(statement), given)
        for number in range(1, (slots - 1) // GRANTS + 2):
            enter = ENTER.format(
                name=partition(number), number=number, entries=ENTRIES, grants=GRANTS
            )
            for statement in enter.split(";\n"):
                if statement.strip():
                    connection.execute(text(statement))
    with on.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        return int(connection.execute(text("SELECT count(*) FROM assignment.events")).scalar_one())


def reading(connection: Connection, since: datetime) -> None:
    """The floor: every event, as the check gets it, and nothing done with it."""
    for _ in facts(connection, since):
        pass


def memory() -> float:
    """The most megabytes that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, and print two tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    settings = Settings.from_environment({})
    floors: list[float] = []
    checks: list[float] = []
    grown: list[float] = []
    with servers() as at, engine(at.database_url) as on:
        events = forge(on, given.events)
        for _ in range(given.rounds):
            with on.connect() as connection:
                now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
                began = time.perf_counter()
                reading(connection, now - settings.history_retention)
                floors.append(time.perf_counter() - began)
            before = memory()
            with on.connect() as connection:
                began = time.perf_counter()
                breaches = check(
                    connection, dialer=loaded(), settings=settings, bound=settings.lease
                )
                checks.append(time.perf_counter() - began)
            grown.append(memory() - before)
            if breaches:
                raise RuntimeError(f"{len(breaches)} breaches in a good history: {breaches[:3]}")
        queries = comparisons(on, settings)
    floor, whole = statistics.median(floors), statistics.median(checks)
    show(
        f"The history checker: {events:,} events, {given.rounds} rounds",
        ["", "median, s", "worst, s", "events/s", "x reading"],
        [
            ["reading the events alone", *_two(floors), f"{events / floor:,.0f}", "1.0"],
            ["check", *_two(checks), f"{events / whole:,.0f}", f"{whole / floor:.1f}"],
            [
                "of that, comparing the rows",
                f"{sum(queries.values()):.2f}",
                "",
                "",
                f"{sum(queries.values()) / floor:.1f}",
            ],
        ],
    )
    show(
        f"Memory that the check adds: {max(grown):.0f} MB. The slowest comparisons, s",
        ["", "once"],
        [
            [what, f"{seconds:.2f}"]
            for what, seconds in sorted(queries.items(), key=lambda each: -each[1])[:5]
        ],
    )


def comparisons(on: Engine, settings: Settings) -> dict[str, float]:
    """The seconds of each comparison of rows."""
    seconds: dict[str, float] = {}
    with on.connect() as connection:
        now = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        given = {
            "since": now - settings.history_retention,
            "answers_since": now - settings.request_retention,
            "promising": ["call_back"],
        }
        for number, record in enumerate(RECORDS, start=1):
            began = time.perf_counter()
            connection.execute(text(record.query), given).all()
            seconds[f"{number}. {record.what}"] = time.perf_counter() - began
    return seconds


def _two(figures: list[float]) -> tuple[str, str]:
    return f"{statistics.median(figures):.2f}", f"{max(figures):.2f}"


if __name__ == "__main__":
    main()
