"""Check the hash chains of events: in the database, in an exported file, and by comparing both."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, func, select, text

from assignment_workers.assignment.audit import (
    WIDTH,
    ChainHead,
    content,
    genesis,
    heads,
    link,
    pending,
    shown,
)
from assignment_workers.assignment.events import ONE_OF, StoredEvent
from assignment_workers.schema.tables import AuditAnchor

FORM = 1
"""Version of the format of a file to which the hash chains of events are exported."""
COMPARED_AT_MOST = 1_000
"""Maximum number of events of one hash chain, all with a wrong digest, that are compared.

A wrong digest means that an event was changed, or only moved to another place in the chain. To
distinguish the two cases, the events with a wrong digest are compared with each other. If the
stored digest at one place fits the content of the event at another place, the event was moved.
Otherwise, the event was changed. Only the first events with a wrong digest, up to this maximum, are
compared, because the time for the comparison grows with the square of the number of compared
events. All further events with a wrong digest are reported as changed.
"""


class ChainFault(StrEnum):
    """A kind of fault that a check of the hash chains of events can find."""

    CHANGED = "changed"
    """An event, or its digest, was changed after it was added to the hash chain."""
    DELETED = "deleted"
    """The event at a position of the hash chain is missing."""
    REORDERED = "reordered"
    """An event is at another position of the hash chain than when it was added."""
    ADDED = "added"
    """An event is in no hash chain although later events are, or a position has two events."""
    CUT = "cut"
    """The first events of the hash chain are gone, and no purge recorded that it deleted them."""
    SHORTENED = "shortened"
    """The last events of the hash chain are gone: an earlier export has more of them."""
    REWRITTEN = "rewritten"
    """The digest at a position of the hash chain differs from that in an earlier export."""
    UNREADABLE = "unreadable"
    """A line of the checked file cannot be read as part of an export."""


class ChainFinding(BaseModel):
    """A fault of a lane's hash chain, at `position`.

    `upto`: the last position, if several positions in a row have the fault. `said`: a text with
    more about the fault; it may be empty.
    """

    fault: ChainFault
    lane: str | None = None
    position: int | None = None
    upto: int | None = None
    event_id: int | None = None
    said: str = ""


class ChainShown(BaseModel):
    """The extent of a lane's hash chain of events when it was checked."""

    lane: str
    purged: int
    """Number of events that the purge deleted from the front; the chain begins after them."""
    position: int
    """The position of the chain's last event."""
    digest: str


class Checked(BaseModel):
    """The result of checking the hash chains of events: what was checked, and the faults."""

    events: int = 0
    pending: int = 0
    """Number of events in the database that were not added to a hash chain yet."""
    pending_since: datetime | None = None
    chains: list[ChainShown] = Field(default_factory=list)
    findings: list[ChainFinding] = Field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if the check found no fault."""
        return not self.findings


@dataclass
class Chain:
    """The checker of one lane's hash chain; events are added in the order in which they are read.

    `anchor`: the point after which the chain begins. `report` is called with each fault. If an
    event's predecessor was not added yet, the event's digest is checked once the predecessor is
    added.
    """

    lane: str
    anchor: ChainHead
    report: Callable[[ChainFinding], None]
    head: ChainHead = field(init=False)
    count: int = 0
    _gaps: list[list[int]] = field(default_factory=list)
    """The first and last position of each run of positions for which no event was added."""
    _unproved: dict[int, tuple[int, bytes, bytes]] = field(default_factory=dict)
    """The events whose predecessors were not added yet.

    Maps the position of each event to its id, content and digest.
    """
    _ends: dict[int, bytes] = field(default_factory=dict)
    """The digest of each event after which a gap begins, by the position of the event."""
    _wrong: list[tuple[int, int, bytes, bytes, bytes]] = field(default_factory=list)
    """Events with a wrong digest: position, id, predecessor's digest, content, stored digest."""

    def __post_init__(self) -> None:
        """Start the check at `anchor`, the point after which the chain begins."""
        self.head = self.anchor

    def add(self, position: int, event_id: int, said: bytes | None, digest: bytes) -> None:
        """Check the next record of the chain: the position, the id and the digest of one event.

        The record is in the chain even if the event itself is missing. `position`: the event's
        number in the chain. `digest`: the digest in the record. `said`: the content of the event;
        None if the event is missing, which is reported as a fault.
        """
        if position <= self.head.position:
            self._late(position, event_id, said, digest)
            return
        if position == self.head.position + 1:
            before: bytes | None = self.head.digest
        else:
            self._gaps.append([self.head.position + 1, position - 1])
            self._ends[self.head.position] = self.head.digest
            before = None
        self._prove(position, event_id, said, digest, before)
        self.head = ChainHead(position, digest)

    def end(self) -> None:
        """Report the positions without an event and the events with a wrong digest.

        Call this once all events of the chain were added.
        """
        for first, last in self._gaps:
            is_front = first == self.anchor.position + 1
            self._report(ChainFault.CUT if is_front else ChainFault.DELETED, first, upto=last)
        wrong = self._wrong[:COMPARED_AT_MOST]
        for position, event_id, before, _, digest in wrong:
            whose = next(
                (
                    other
                    for other, _, _, said, _ in wrong
                    if other != position
                    and link(before, self.lane, position, event_id, said) == digest
                ),
                None,
            )
            moved = ChainFault.CHANGED if whose is None else ChainFault.REORDERED
            at = "" if whose is None else f"its event stands at position {whose}"
            self._report(moved, position, event_id=event_id, said=at)
        for position, event_id, *_ in self._wrong[COMPARED_AT_MOST:]:
            self._report(ChainFault.CHANGED, position, event_id=event_id)

    def _late(self, position: int, event_id: int, said: bytes | None, digest: bytes) -> None:
        gap = next((each for each in self._gaps if each[0] <= position <= each[1]), None)
        if gap is None:
            self._report(
                ChainFault.ADDED, position, event_id=event_id, said="the position stands twice"
            )
            return
        self._gaps.remove(gap)
        self._gaps += [
            each for each in ([gap[0], position - 1], [position + 1, gap[1]]) if each[0] <= each[1]
        ]
        self._gaps.sort()
        self._report(ChainFault.REORDERED, position, event_id=event_id, said="it comes too late")
        self._prove(position, event_id, said, digest, self._ends.get(position - 1))
        self._ends[position] = digest
        follower = self._unproved.pop(position + 1, None)
        if follower is not None:
            self._prove(position + 1, *follower, digest)

    def _prove(
        self, position: int, event_id: int, said: bytes | None, digest: bytes, before: bytes | None
    ) -> None:
        if said is None:
            self._report(ChainFault.DELETED, position, event_id=event_id)
            return
        if before is None:
            self._unproved[position] = event_id, said, digest
            return
        self.count += 1
        if link(before, self.lane, position, event_id, said) != digest:
            self._wrong.append((position, event_id, before, said, digest))

    def _report(
        self,
        fault: ChainFault,
        position: int,
        *,
        upto: int | None = None,
        event_id: int | None = None,
        said: str = "",
    ) -> None:
        self.report(
            ChainFinding(
                fault=fault,
                lane=self.lane,
                position=position,
                upto=upto,
                event_id=event_id,
                said=said,
            )
        )


def check(connection: Connection) -> Checked:
    """Check the hash chains of all lanes against the events in the database.

    Reads one snapshot, one batch at a time. Cost: about 25 µs per event.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    found = Checked()
    anchors = {row.lane: row for row in connection.execute(_ANCHORS)}
    for lane in _lanes(connection, anchors):
        chain = Chain(lane, _anchor(anchors, lane), found.findings.append)
        for batch, events in _read(connection, lane):
            for place, event_id in enumerate(batch.ids):
                event = events.get(event_id)
                said = None if event is None else content(shown(event))
                chain.add(batch.first + place, event_id, said, _digest(batch.digests, place))
        chain.end()
        found.events += chain.count
        found.chains.append(_shown(chain))
    found.findings += [
        ChainFinding(fault=ChainFault.ADDED, event_id=each)
        for each in connection.execute(_ADDED).scalars()
    ]
    found.pending, found.pending_since = pending(connection)
    return found


def export(connection: Connection, write: Callable[[str], object], *, lane: str | None) -> int:
    """Export the hash chains of events as lines of JSON; return the number of events.

    `write` is called with each line. `lane`: the one lane to export; None: all. The first line has
    the point at which each chain begins, the last line the end of each chain. The lines between
    have the events with their digests. Texts that people typed are not exported. Reads one
    snapshot; one batch of events is in memory at a time.
    """
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    made_at = connection.execute(select(func.clock_timestamp())).scalar_one()
    anchors = {row.lane: row for row in connection.execute(_ANCHORS)}
    lanes = [each for each in _lanes(connection, anchors) if lane in (None, each)]
    first = {each: _said(_anchor(anchors, each)) for each in lanes}
    write(_line({"audit": FORM, "made_at": made_at.astimezone(UTC).isoformat(), "lanes": first}))
    count = 0
    ends: dict[str, ChainHead] = {}
    for each in lanes:
        ends[each] = _anchor(anchors, each)
        for batch, events in _read(connection, each):
            for place, event_id in enumerate(batch.ids):
                digest = _digest(batch.digests, place)
                ends[each] = ChainHead(batch.first + place, digest)
                if event_id in events:
                    line = {"lane": each, "position": batch.first + place, "digest": digest.hex()}
                    write(_line(line | {"event": shown(events[event_id])}))
                    count += 1
    write(_line({"heads": {each: _said(end) for each, end in ends.items()}, "events": count}))
    return count


def check_file(lines: Iterable[str]) -> Checked:
    """Check the hash chains in an exported file, without a database.

    `lines`: the lines of the file. Memory grows with the number of faults, not with the file.
    """
    found = Checked()
    numbered = enumerate(lines, 1)
    _, first = next(numbered, (0, ""))
    try:
        anchors = _First.model_validate_json(first).lanes
    except ValidationError:
        said = "the file is empty" if not first else _unreadable(1)
        fault = ChainFault.SHORTENED if not first else ChainFault.UNREADABLE
        found.findings.append(ChainFinding(fault=fault, said=said))
        return found
    chains = {
        lane: Chain(lane, given.head, found.findings.append) for lane, given in anchors.items()
    }
    last: _Last | None = None
    for number, line in numbered:
        try:
            if last is not None:
                raise ValueError("a line after the last")
            last = _take(line, chains)
        except (ValidationError, ValueError, KeyError):
            found.findings.append(
                ChainFinding(fault=ChainFault.UNREADABLE, said=_unreadable(number))
            )
    if last is None:
        said = "the file has no last line: it is not whole"
        found.findings.append(ChainFinding(fault=ChainFault.SHORTENED, said=said))
    for chain in chains.values():
        _end(chain, last.heads.get(chain.lane) if last is not None else None)
        found.events += chain.count
        found.chains.append(_shown(chain))
    return found


def _take(line: str, chains: Mapping[str, Chain]) -> _Last | None:
    """Check the event in this line of an exported file, or return the parsed last line.

    Returns None for a line with an event. The last line of a file has the ends of the chains.
    """
    if line.startswith('{"heads"'):
        return _Last.model_validate_json(line)
    one = _One.model_validate_json(line)
    # The event as written, because a model would lose the notation of its numbers.
    event = json.loads(line)["event"]
    chains[one.lane].add(one.position, one.event.id, content(event), bytes.fromhex(one.digest))
    return None


def _end(chain: Chain, given: _Given | None) -> None:
    """Finish the check of one chain of an exported file, after its last event was read.

    `given`: the position and digest of the chain's last event, as the last line of the file states
    them. They are compared with those of the last event that was read, and a difference is reported
    as a fault. If the file does not state them, `given` is None, and nothing is compared.
    """
    if given is not None and given.position > chain.head.position:
        chain.report(
            ChainFinding(
                fault=ChainFault.DELETED,
                lane=chain.lane,
                position=chain.head.position + 1,
                upto=given.position,
            )
        )
    elif given is not None and given.head != chain.head:
        said = "the last line names another end"
        chain.report(ChainFinding(fault=ChainFault.CHANGED, lane=chain.lane, said=said))
    chain.end()


def _unreadable(number: int) -> str:
    return f"line {number} is not of an export"


def compare(connection: Connection, lines: Iterable[str]) -> list[ChainFinding]:
    """Check that the hash chains in the database continue those of an earlier export.

    `lines`: the lines of the exported file. Finds faults that a check of the database alone cannot
    find: events that were rewritten together with their digests, and missing last events. A chain
    whose exported end was purged since cannot be compared, and gets no finding.
    """
    last = deque(lines, maxlen=1)
    try:
        said = _Last.model_validate_json(last[0] if last else "")
    except ValidationError:
        return [
            ChainFinding(
                fault=ChainFault.UNREADABLE, said="the last line of the export is not there"
            )
        ]
    now = heads(connection)
    anchors = {row.lane: row for row in connection.execute(_ANCHORS)}
    found = []
    for lane, given in said.heads.items():
        fault = _compared(connection, lane, given.head, now, _anchor(anchors, lane))
        if fault is not None:
            found.append(ChainFinding(fault=fault, lane=lane, position=given.position))
    return found


def _compared(
    connection: Connection,
    lane: str,
    then: ChainHead,
    now: Mapping[str, ChainHead],
    anchor: ChainHead,
) -> ChainFault | None:
    """Compare the end of a lane's chain in an earlier export with the chain in the database.

    `then`: the exported end. `now`: the present ends, by lane. `anchor`: the end of the part
    of the lane's chain whose events were already deleted; the events after it are still stored.
    Returns the fault, or None.
    """
    if now.get(lane, genesis(lane)).position < then.position:
        return ChainFault.SHORTENED
    if then.position < anchor.position:
        return None
    digest = anchor.digest
    if then.position > anchor.position:
        at = {"lane": lane, "position": then.position}
        batch = connection.execute(_AT, at).one_or_none()
        if batch is None:
            return ChainFault.REWRITTEN
        digest = _digest(batch.digests, then.position - batch.first)
    return None if digest == then.digest else ChainFault.REWRITTEN


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")

    position: int = Field(ge=0)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def head(self) -> ChainHead:
        return ChainHead(self.position, bytes.fromhex(self.digest))


class _First(BaseModel):
    model_config = ConfigDict(extra="forbid")

    audit: int = Field(ge=FORM, le=FORM)
    made_at: datetime
    lanes: dict[str, _Given]


class _Last(BaseModel):
    model_config = ConfigDict(extra="forbid")

    heads: dict[str, _Given]
    events: int


class _Event(BaseModel):
    id: int


class _One(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lane: str
    position: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    event: _Event


def _read(connection: Connection, lane: str) -> Iterator[tuple[Any, Mapping[int, StoredEvent]]]:
    """Yield the parts (batches) of a lane's hash chain in order, each with its events by id.

    A batch is a row of the table `audit_batches`, with the ids and digests of consecutive events of
    the lane. Events of the batch that are missing in the database are not in the mapping.
    """
    after = 0
    while batch := connection.execute(_NEXT, {"lane": lane, "after": after}).one_or_none():
        found = connection.execute(ONE_OF, {"ids": batch.ids})
        yield batch, {row.id: StoredEvent(*row) for row in found}
        after = batch.first


def _lanes(connection: Connection, anchors: Mapping[str, Any]) -> list[str]:
    return sorted({*anchors, *heads(connection)})


def _anchor(anchors: Mapping[str, Any], lane: str) -> ChainHead:
    row = anchors.get(lane)
    return genesis(lane) if row is None else ChainHead(row.position, row.digest)


def _digest(digests: bytes, place: int) -> bytes:
    return digests[place * WIDTH : (place + 1) * WIDTH]


def _said(head: ChainHead) -> dict[str, object]:
    return {"position": head.position, "digest": head.digest.hex()}


def _shown(chain: Chain) -> ChainShown:
    return ChainShown(
        lane=chain.lane,
        purged=chain.anchor.position,
        position=chain.head.position,
        digest=chain.head.digest.hex(),
    )


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


_ANCHORS = select(AuditAnchor.lane, AuditAnchor.position, AuditAnchor.digest)
_NEXT = text(
    "SELECT first, ids, digests FROM assignment.audit_batches"
    " WHERE lane = :lane AND first > :after ORDER BY first LIMIT 1"
)
_AT = text(
    "SELECT first, digests FROM assignment.audit_batches WHERE lane = :lane"
    " AND first <= :position ORDER BY first DESC LIMIT 1"
)
# A set operation, because an anti-join planned as nested loops would take for ever.
_ADDED = text("""
    SELECT id FROM assignment.events
    WHERE id <= greatest((SELECT max(upto) FROM assignment.audit_batches),
                         (SELECT max(event_id) FROM assignment.audit_anchors), 0)
    EXCEPT SELECT unnest(ids) FROM assignment.audit_batches
    ORDER BY 1 LIMIT 100
""")
