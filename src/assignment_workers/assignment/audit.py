"""Chains of digests over events, which reveal a changed, deleted or reordered event.

Each lane has a hash chain of its events in the order of their ids, which is the order of their
commits. Events without a term, such as those of jobs, are in the chain `OUTSIDE`.

A digest is SHA-256 over the previous digest, the lane, the position, the event's id and the event
without the texts that people typed. Those texts are in `event_texts`, so that erasing a text
changes no digest.

A job computes the digests in batches, seconds after the commit of the events; the transactions of
the sequencer write none. The digests use no key. Someone with write access who changes an event and
recomputes every later digest is detected by comparison with an earlier export
(`audit_check.compare`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, func, insert, select, text

from assignment_workers.assignment.events import BEYOND, StoredEvent, writers
from assignment_workers.assignment.jobs import Counts
from assignment_workers.assignment.locks import try_lock
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.schema.tables import DEFAULT_LANE, AuditAnchor, AuditBatch, Event, LaneTerm

OUTSIDE = "-"
"""The name of the hash chain of events that were recorded outside any sequencer's term.

Every other chain has the name of its lane; no lane has this name.
"""
AT_A_TIME = 1_000
"""Maximum number of events that one transaction adds to hash chains.

For this number the transaction takes about 20 ms and stores about 40 kB.
"""
TRANSACTIONS_AT_MOST = 200
"""Maximum number of transactions in which one run of the job extends the hash chains.

The next run of the job continues.
"""
WRITERS_SECONDS = 3.0
"""Maximum time in seconds that the job waits for open transactions that may still write events.

The job is the one that extends the hash chains.
"""
WIDTH = 32
"""Length of a digest in bytes."""
_LOCK = "audit"
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class ChainHead:
    """The end of a lane's hash chain of events: the number of events, the last event's digest."""

    position: int
    digest: bytes


def genesis(lane: str) -> ChainHead:
    """Return the start of a lane's hash chain: position 0 and a digest of the lane's name."""
    return ChainHead(0, sha256(f"assignment-workers audit 1 {lane}".encode()).digest())


def link(before: bytes, lane: str, position: int, event_id: int, content: bytes) -> bytes:
    """Return the digest of the event at `position` of the lane's hash chain.

    `before`: the digest of the previous event. `content`: the bytes of the event, without its id.
    """
    return sha256(before + f"{lane} {position} {event_id} ".encode() + content).digest()


def shown(event: StoredEvent) -> dict[str, Any]:
    """Return the event as a dictionary in its exported form, with its id."""
    return {
        "id": event.id,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds"),
        "kind": event.kind,
        "term": event.term,
        "queue": event.queue,
        "user_id": event.user_id,
        "agent_id": event.agent_id,
        "assignment_id": None if event.assignment_id is None else str(event.assignment_id),
        "request_id": event.request_id,
        "generation_id": event.generation_id,
        "details": event.details,
    }


def content(event: Mapping[str, Any]) -> bytes:
    """Return the bytes of an exported event from which its digest is computed.

    They are the event's fields as JSON with sorted names, without the id.
    """
    said = {name: value for name, value in event.items() if name != "id"}
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def extend(
    connection: Connection,
    *,
    transactions: int = TRANSACTIONS_AT_MOST,
    sleep: Callable[[float], None] = time.sleep,
) -> Counts:
    """Append new events to the tamper-evident hash chain of their lane, and commit.

    An event is appended once no open transaction can still write an event with a smaller id. At
    most `transactions` are used; `sleep` waits between checks for open transactions. Returns
    counts: `events`, the number appended; `waiting`, 1 if nothing more can be appended now, because
    an open transaction lasted longer than `WRITERS_SECONDS` or another process extends the chains;
    `left`, 1 if events remain for the next run. Cost: about 22 µs of processor time per event.
    """
    reached = _reached(connection)
    newest = connection.execute(select(func.max(Event.id))).scalar_one() or 0
    counts = {"events": 0, "waiting": 0, "left": 0}
    if newest <= reached:
        connection.rollback()
        return counts
    if not _settled(connection, sleep):
        return counts | {"waiting": 1}
    lanes = _lanes(connection)
    for _ in range(transactions):
        if not try_lock(connection, _LOCK):
            connection.rollback()
            return counts | {"waiting": 1}
        reached = _reached(connection)
        found = _between(connection, reached, newest)
        if not found:
            connection.rollback()
            return counts
        whole = len(found) < AT_A_TIME
        upto = newest if whole else found[-1].id
        _chain(connection, found, lanes, upto=upto)
        connection.commit()
        counts["events"] += len(found)
        if whole:
            return counts
    return counts | {"left": 1}


def cut(connection: Connection, older_than: timedelta) -> int:
    """Delete old events from the front of each lane's hash chain; return the number of events.

    The events of a chain are in batches. The events of one batch were appended together, and their
    times are in the same hour (UTC). A batch is deleted as a whole: if its newest event is older
    than `older_than`, and no earlier batch of the chain stays. Events that are in no chain yet
    stay. Call this with the database role of the purge, the job that deletes old records
    (`purge._purging`).
    """
    return connection.execute(_CUT, {"older_than": older_than}).rowcount


def heads(connection: Connection) -> dict[str, ChainHead]:
    """Return the end of each hash chain of events, by lane."""
    # Batches first: a purge between the two reads then cannot leave an old anchor as the end.
    last = {row.lane: ChainHead(row.last, row.digest) for row in connection.execute(_LAST)}
    anchors = connection.execute(_ANCHORS)
    return {row.lane: ChainHead(row.position, row.digest) for row in anchors} | last


def lag_seconds(connection: Connection) -> float:
    """Return the age in seconds of the oldest event that is in no hash chain; 0 if there is none.

    Cost: two index look-ups.
    """
    found: float | None = connection.execute(
        _LAG, {"reached": _reached(connection)}
    ).scalar_one_or_none()
    return max(found or 0.0, 0.0)


def pending(connection: Connection) -> tuple[int, datetime | None]:
    """Return the number of events that are in no hash chain yet, and the time of the oldest."""
    count, oldest = connection.execute(_PENDING, {"reached": _reached(connection)}).one()
    return count, oldest


def _reached(connection: Connection) -> int:
    reached: int = connection.execute(_REACHED).scalar_one()
    return reached


def _settled(connection: Connection, sleep: Callable[[float], None]) -> bool:
    """Wait until no open transaction can write an event with a smaller id than a visible event.

    A visible event is one that was committed before this call. Returns False if a transaction that
    can write such an event is still open after `WRITERS_SECONDS`.
    """
    before = writers(connection)
    for _ in range(round(WRITERS_SECONDS / _LOOK_SECONDS)):
        connection.rollback()
        if not before:
            return True
        sleep(_LOOK_SECONDS)
        before &= writers(connection)
    connection.rollback()
    return False


def _lanes(connection: Connection) -> dict[int, str]:
    """Return the lane of each known term of a sequencer, by the number of the term.

    A term is known if an event records its beginning, or if its number is in a lane's row.
    """
    begun = select(Event.term, Event.details["lane"].as_string()).where(
        Event.kind == EventKind.TERM_BEGUN, Event.term.is_not(None)
    )
    found = {term: lane or DEFAULT_LANE for term, lane in connection.execute(begun).all()}
    for lane, term, terms in connection.execute(
        select(LaneTerm.lane, LaneTerm.term, LaneTerm.terms)
    ):
        found |= dict.fromkeys((term, *terms), lane)
    return found


def _between(connection: Connection, reached: int, newest: int) -> list[StoredEvent]:
    wanted = BEYOND.where(Event.id <= newest).limit(AT_A_TIME)
    return [StoredEvent(*row) for row in connection.execute(wanted, {"after": reached})]


def _chain(
    connection: Connection, events: Iterable[StoredEvent], lanes: Mapping[int, str], *, upto: int
) -> None:
    now = connection.execute(select(func.clock_timestamp())).scalar_one()
    ends = heads(connection)
    by_lane: dict[str, list[StoredEvent]] = {}
    for each in events:
        lane = OUTSIDE if each.term is None else lanes.get(each.term, DEFAULT_LANE)
        by_lane.setdefault(lane, []).append(each)
    batches = []
    for lane, of_lane in by_lane.items():
        head = ends.get(lane) or genesis(lane)
        for _, several in groupby(of_lane, lambda each: each.at.astimezone(UTC).timetuple()[:4]):
            batch = list(several)
            links = list(_links(head, lane, batch))
            last = ChainHead(head.position + len(batch), links[-1])
            batches.append(
                {
                    "lane": lane,
                    "first": head.position + 1,
                    "last": last.position,
                    "ids": [each.id for each in batch],
                    "digests": b"".join(links),
                    "upto": upto,
                    # A time that is ahead of the clock must not keep the batch beyond its
                    # retention.
                    "newest": min(now, max(each.at for each in batch)),
                    "made_at": now,
                }
            )
            head = last
    connection.execute(insert(AuditBatch), batches)


def _links(head: ChainHead, lane: str, events: Iterable[StoredEvent]) -> Iterator[bytes]:
    digest = head.digest
    for position, event in enumerate(events, head.position + 1):
        digest = link(digest, lane, position, event.id, content(shown(event)))
        yield digest


REACHED = (
    "greatest((SELECT max(upto) FROM assignment.audit_batches),"
    " (SELECT max(event_id) FROM assignment.audit_anchors), 0)"
)
"""SQL expression: the id up to which all events are in a hash chain."""
_REACHED = text(f"SELECT {REACHED}")
_LAG = text(
    "SELECT extract(epoch FROM statement_timestamp() - at)::float8 FROM assignment.events"
    " WHERE id > :reached ORDER BY id LIMIT 1"
)
_ANCHORS = select(AuditAnchor.lane, AuditAnchor.position, AuditAnchor.digest)
_LAST = text("""
    WITH RECURSIVE lanes AS (
        (SELECT lane FROM assignment.audit_batches ORDER BY lane LIMIT 1) UNION ALL
        SELECT (SELECT b.lane FROM assignment.audit_batches b WHERE b.lane > l.lane
                ORDER BY b.lane LIMIT 1)
        FROM lanes l WHERE l.lane IS NOT NULL
    )
    SELECT lane, b.last, substr(b.digests, octet_length(b.digests) - 31) AS digest
    FROM lanes l CROSS JOIN LATERAL (
        SELECT last, digests FROM assignment.audit_batches o WHERE o.lane = l.lane
        ORDER BY first DESC LIMIT 1
    ) b
""")
_PENDING = text("SELECT count(*), min(at) FROM assignment.events WHERE id > :reached")
# A chain is cut only from its front: the batches after one that has to stay also stay.
_CUT = text("""
    WITH stays AS (
        SELECT lane, min(first) AS first FROM assignment.audit_batches
        WHERE newest >= now() - CAST(:older_than AS interval) GROUP BY lane
    ), gone AS (
        DELETE FROM assignment.audit_batches b
        WHERE newest < now() - CAST(:older_than AS interval)
        AND NOT EXISTS (SELECT FROM stays s WHERE s.lane = b.lane AND s.first < b.first)
        RETURNING lane, last, ids, digests
    ), anchored AS (
        INSERT INTO assignment.audit_anchors AS a (lane, position, event_id, digest, purged_at)
        SELECT DISTINCT ON (lane) lane, last, ids[cardinality(ids)],
               substr(digests, octet_length(digests) - 31), clock_timestamp()
        FROM gone ORDER BY lane, last DESC
        ON CONFLICT (lane) DO UPDATE SET position = excluded.position,
            event_id = excluded.event_id, digest = excluded.digest, purged_at = excluded.purged_at
    )
    DELETE FROM assignment.events e USING (SELECT unnest(ids) AS id FROM gone) g WHERE e.id = g.id
""")
