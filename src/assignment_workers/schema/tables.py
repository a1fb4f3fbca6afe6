"""Our tables.

Every guarantee that a constraint can enforce is a constraint here.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Sequence,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from assignment_workers.schema import states
from assignment_workers.schema.base import Base, Instant, one_of

# Values that clients know too, which do not import SQLAlchemy.
DEFAULT_LANE = states.DEFAULT_LANE
AssignmentState = states.AssignmentState
EndedHow = states.EndedHow
AnswerKind = states.AnswerKind

COMMAND_POSITIONS = Sequence("command_positions", schema="assignment", metadata=Base.metadata)
"""The sequence that numbers commands in the order in which the database first saw them. The order
does not depend on clocks or brokers.
"""


class GenerationState(StrEnum):
    """The states of a generation, which is one build of a dialer queue.

    building: being built, or built and not published yet. published: claims take users from it.
    retired: replaced by a later generation. failed: not built to its end, or not published because
    a later generation was published first.
    """

    BUILDING = "building"
    PUBLISHED = "published"
    RETIRED = "retired"
    FAILED = "failed"


class EntryState(StrEnum):
    """The states of an entry, which is a user's position in one build of a dialer queue.

    ready: claimable. waiting: not claimable until `available_from`. held: assigned to an agent.
    out: removed for `reason`.
    """

    READY = "ready"
    WAITING = "waiting"
    HELD = "held"
    OUT = "out"


class AgentStatus(StrEnum):
    """An agent's status.

    It is set by the agent, by an operator or by the system, or implied by a command about an
    assignment, such as its completion.
    """

    AVAILABLE = "available"
    ON_CALL = "on_call"
    WRAP_UP = "wrap_up"
    BREAK = "break"
    OFFLINE = "offline"


class Source(StrEnum):
    """The origin of an assigned user: a dialer queue, a callback or a missed call."""

    QUEUE = "queue"
    CALLBACK = "callback"
    MISSED_CALL = "missed_call"


class JobStatus(StrEnum):
    """The states of a job run.

    skipped: another run of the job held the job's lock, or another run had already done the work of
    the same due time.
    """

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


UNMARKED = UUID(int=0)
"""The id of each term that began under release 0.1, in which a term had only a number.

A term is the right of one sequencer to write.
"""


class LaneTerm(Base):
    """The current term of a lane: the right of one sequencer to write. One row per lane.

    Every transaction of the lane's sequencer locks this row, and so proves that its term is still
    the current one. The row changes when a term begins or the operational settings change. It also
    changes every few seconds, because standby sequencers of release 0.1 read in it that the leader
    is alive. Values that are updated more often are in `sequencer_signs`. The reason: PostgreSQL
    keeps every version of a row while a reader of an old snapshot is active, and each transaction
    that locks the row would have to scan all its versions.
    """

    __tablename__ = "sequencer"
    __table_args__ = (CheckConstraint("term >= 0", name="term"),)

    lane: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger, server_default="0")
    leader_host: Mapped[str | None]
    leader_pid: Mapped[int | None]
    since: Mapped[datetime | None] = mapped_column(Instant)
    term_id: Mapped[UUID] = mapped_column(server_default=str(UNMARKED))
    """A random id of the term, because the number alone may be used twice.

    That happens after the database was replaced by an older copy: a restored backup or an
    asynchronous standby.
    """
    seen_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time of a recent transaction of the leader, written every few seconds.

    A leader of release 0.1 writes no other sign of life, and standby sequencers of 0.1 read no
    other. `probed_at` and `probe_seconds` are no longer used. The release after this one drops
    these two columns and `seen_at`.
    """
    probed_at: Mapped[datetime | None] = mapped_column(Instant)
    probe_seconds: Mapped[float | None]
    queues: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The lane's dialer queues under its last leader. Null: a release without lanes wrote the row.
    """
    terms: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default="{}")
    """The numbers of the lane's latest terms, newest first.

    If sequencers took messages under these terms and did not acknowledge them, a new leader puts
    the messages back into the assignment queue. The number of a new term is one more than the
    highest number of all lanes, so the numbers of one lane have gaps.
    """
    settings_id: Mapped[UUID | None]
    """The id of the version of the operational settings in force; null before the first version.

    Each transaction of the lane's sequencer reads this id when it locks this row (see `LaneTerm`).
    A change of the settings locks and writes the rows of all lanes, so no transaction misses the
    change.
    """
    dialer: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    """The digest of each part of the dialer file that the lane's last leader used.

    The file defines the dialer queues, their rules and the outcomes. A new leader compares these
    digests with those of its own file, to report differences. Null: a release without digests wrote
    the row.
    """
    marks: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """The lane's latest terms, newest first, each as a text of the term's number and `term_id`.

    With Redis, the sequencer of a term moves each message that it takes from the assignment queue
    to a list, until the message is acknowledged. The text is part of the name of that list. Terms
    that began under release 0.1 are in `terms` only.
    """


class SettingsVersion(Base):
    """A version of the operational settings: its changes, and every value in force from then on.

    The table is append-only.
    """

    __tablename__ = "settings"
    __table_args__ = (
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint("length(why) BETWEEN 1 AND 500", name="why"),
    )

    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[UUID] = mapped_column(unique=True)
    """A random id of the version, by which processes cache the settings.

    The version's number is not enough: after the database was replaced by an older copy, the number
    may be used again for other settings.
    """
    at: Mapped[datetime] = mapped_column(Instant)
    who: Mapped[str]
    """The author of the version.

    For a change over the API or the dashboard: the name of the API token, or `anybody` if tokens
    are off. For a change by the command `assignment-workers settings`: the operating system user
    who ran the command. `sequencer`: a sequencer stored the version without an operator. If no
    version existed, its values are those of the environment and of the file that defines the dialer
    queues (`dialerconfig.py`). Otherwise it adds values that are new in that file.
    """
    why: Mapped[str]
    changes: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """The changed values: name, queue, team, and the value before and after."""
    values: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """Every value in force: name, queue, team and value. A setting that is not listed has its
    default.
    """


class SequencerSign(Base):
    """The times of a recent transaction and of the last probe of a lane's leader.

    They are the leader's signs of life. The leader's transactions write `last_turn_at` once a
    second at most. A probe is a message that the leader sends to itself. The transaction that
    handles a probe always writes `last_turn_at`, and also `last_probe_at` and `last_probe_seconds`.
    """

    __tablename__ = "sequencer_signs"

    lane: Mapped[str] = mapped_column(primary_key=True)
    last_turn_at: Mapped[datetime] = mapped_column(Instant)
    last_probe_at: Mapped[datetime | None] = mapped_column(Instant)
    last_probe_seconds: Mapped[float | None]
    """Seconds from the sending of the last probe to the transaction that handled it."""


class DialerQueue(Base):
    """A dialer queue, and an operator's pause of it.

    No user is handed out if `paused_at` is set.
    """

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime | None] = mapped_column(Instant)
    paused_by: Mapped[str | None]


class Generation(Base):
    """One complete build of a dialer queue. At most one per queue is published.

    This is a part of guarantee 2 in docs/how-it-works.md.
    """

    __tablename__ = "generations"
    __table_args__ = (
        one_of("state", GenerationState),
        CheckConstraint("(state <> 'published') OR (published_at IS NOT NULL)", name="published"),
        CheckConstraint("(state <> 'failed') OR (error IS NOT NULL)", name="failed"),
        Index(
            "uq_generations_published",
            "queue",
            unique=True,
            postgresql_where=text("state = 'published'"),
        ),
        Index(None, "queue", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    queue: Mapped[str] = mapped_column(ForeignKey(DialerQueue.name))
    state: Mapped[str] = mapped_column(server_default=GenerationState.BUILDING)
    trigger: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(Instant)
    snapshot: Mapped[str | None]
    """The value of `pg_current_snapshot()` just before the build reads the users and assignments.

    If the end of an assignment is committed after this snapshot was taken, the build may miss the
    end. So the publication looks for each assignment with such an end, by means of the snapshot. It
    then corrects the entry of the assignment's user: a user whose call was completed is removed,
    and a skipped or deferred user waits.
    """
    built_at: Mapped[datetime | None] = mapped_column(Instant)
    published_at: Mapped[datetime | None] = mapped_column(Instant)
    retired_at: Mapped[datetime | None] = mapped_column(Instant)
    purged_at: Mapped[datetime | None] = mapped_column(Instant)
    size: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None]
    settings_version: Mapped[int | None] = mapped_column(BigInteger)
    """The version of the settings that the build used; null before the first version. Claims use
    the version in force.
    """


class Entry(Base):
    """The position of a user in a generation, which is one build of a dialer queue.

    The table is partitioned by generation: a build fills a partition, a purge drops it. There is no
    foreign key to `generations`, because dropping a partition would then lock that table against
    claims. Instead, the bound of a partition ensures that it has entries of its generation only.
    """

    __tablename__ = "entries"
    __table_args__ = (
        one_of("state", EntryState),
        CheckConstraint("(state = 'waiting') = (available_from IS NOT NULL)", name="waiting"),
        CheckConstraint("(state = 'out') = (reason IS NOT NULL)", name="out"),
        Index(
            "ix_entries_ready", "generation_id", "rank", postgresql_where=text("state = 'ready'")
        ),
        Index(
            "ix_entries_waiting",
            "generation_id",
            "available_from",
            postgresql_where=text("state = 'waiting'"),
        ),
        Index(
            "ix_entries_held", "generation_id", "user_id", postgresql_where=text("state = 'held'")
        ),
        {"postgresql_partition_by": "LIST (generation_id)"},
    )

    generation_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    rank: Mapped[int]
    """The user's position in the order of the dialer queue.

    The column has the type integer, because the view for the dialer's old programs shows the
    position as an integer. With another type the view would have to cast the column, and queries of
    the view could not use an index on the column.
    """
    score: Mapped[int]
    state: Mapped[str] = mapped_column(server_default=EntryState.READY)
    available_from: Mapped[datetime | None] = mapped_column(Instant)
    reason: Mapped[str | None]


class Assignment(Base):
    """The exclusive hold of one agent on one user.

    Two partial unique indexes ensure that each user, and each agent, has at most one active
    assignment (guarantee 1 in docs/how-it-works.md).
    """

    __tablename__ = "assignments"
    __table_args__ = (
        one_of("state", AssignmentState),
        one_of("source", Source),
        CheckConstraint("(source = 'queue') = (source_id IS NULL)", name="source_id"),
        CheckConstraint("(state = 'active') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("(state = 'active') = (ended_xid IS NULL)", name="ended_xid"),
        CheckConstraint("(state = 'completed') = (outcome IS NOT NULL)", name="outcome"),
        CheckConstraint(
            "ended_how IS NULL OR (ended_how IN ('deferred', 'closed') AND state = 'skipped')"
            " OR (ended_how = 'offer_lapsed' AND state = 'expired')",
            name="ended_how",
        ),
        CheckConstraint("lease_expires_at > claimed_at", name="lease"),
        CheckConstraint("version >= 1", name="version"),
        Index(
            "uq_assignments_active_user",
            "user_id",
            unique=True,
            postgresql_where=text("state = 'active'"),
        ),
        Index(
            "uq_assignments_active_agent",
            "agent_id",
            unique=True,
            postgresql_where=text("state = 'active'"),
        ),
        Index(
            "ix_assignments_lease", "lease_expires_at", postgresql_where=text("state = 'active'")
        ),
        Index("ix_assignments_ended", "ended_at", postgresql_where=text("state <> 'active'")),
        Index(
            "ix_assignments_skipped",
            "agent_id",
            "ended_at",
            postgresql_where=text("state = 'skipped'"),
        ),
        Index(None, "user_id", "claimed_at"),
        Index(
            "ix_assignments_put_off",
            "put_off_until",
            postgresql_where=text("put_off_until IS NOT NULL"),
        ),
        Index(
            "ix_assignments_terminal",
            "user_id",
            postgresql_where=text("outcome IN ('do_not_contact', 'no_claim')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    agent_id: Mapped[int]
    queue: Mapped[str] = mapped_column(ForeignKey(DialerQueue.name))
    source: Mapped[str] = mapped_column(server_default=Source.QUEUE)
    source_id: Mapped[UUID | None]
    """The id of the callback or missed call that the assignment is for."""
    generation_id: Mapped[int | None] = mapped_column(ForeignKey(Generation.id))
    rank: Mapped[int] = mapped_column(BigInteger)
    score: Mapped[int]
    reason: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=AssignmentState.ACTIVE)
    version: Mapped[int] = mapped_column(server_default="1")
    term: Mapped[int] = mapped_column(BigInteger)
    claimed_at: Mapped[datetime] = mapped_column(Instant)
    lease_expires_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    ended_xid: Mapped[int | None] = mapped_column(BigInteger)
    """The id of the transaction that ended the assignment. A build compares it with its snapshot to
    find out whether the build saw the end.
    """
    outcome: Mapped[str | None]
    notes: Mapped[str | None]
    accepted_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time at which the agent accepted the assignment. Null: not accepted; it is an offer."""
    ended_how: Mapped[str | None]
    put_off_until: Mapped[datetime | None] = mapped_column(Instant)
    """For a skipped or deferred assignment: the user is not offered before this time."""


class AgentSession(Base):
    """An agent's status and current session.

    The row is created when a status is first set, or when the agent first fails to accept an
    assignment in time. `state` is null for an agent whose status was never set. Only transactions
    that first prove that their sequencer still leads (see `LaneTerm`) write this table. Agents'
    heartbeats are stored in another table (`AgentSeen`), so a heartbeat cannot overwrite a status.
    """

    __tablename__ = "agents_state"
    __table_args__ = (
        one_of("state", AgentStatus),
        CheckConstraint("(state IS NULL) = (since IS NULL)", name="since"),
        CheckConstraint(
            "(session_began IS NULL) = (state IS NULL OR state = 'offline')", name="session"
        ),
        CheckConstraint("calls_in_session >= 0 AND offers_lapsed >= 0", name="counts"),
    )

    agent_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str | None]
    since: Mapped[datetime | None] = mapped_column(Instant)
    by: Mapped[str | None]
    """The origin of the status: the agent, an operator, or the system. Null: implied by a command
    about an assignment, such as its completion.
    """
    why: Mapped[str | None]
    session_began: Mapped[datetime | None] = mapped_column(Instant)
    calls_in_session: Mapped[int] = mapped_column(server_default="0")
    working_since: Mapped[datetime | None] = mapped_column(Instant)
    """The start of the session, or the end of the session's last break."""
    last_call_ended_at: Mapped[datetime | None] = mapped_column(Instant)
    offers_lapsed: Mapped[int] = mapped_column(server_default="0")
    """The number of assignments in a row that the agent did not accept in time, since the agent
    last accepted or ended one.
    """


class AgentSeen(Base):
    """An agent's last heartbeat. The heartbeats of many agents are written in one transaction."""

    __tablename__ = "agents_seen"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    agent_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seen_at: Mapped[datetime] = mapped_column(Instant)


class Request(Base):
    """An agent's request for a user, and its one answer.

    The primary key ensures that a request id is answered only once (guarantee 5 in
    docs/how-it-works.md).
    """

    __tablename__ = "requests"
    __table_args__ = (
        CheckConstraint("length(request_id) BETWEEN 1 AND 200", name="request_id"),
        CheckConstraint("(outcome = 'assigned') = (assignment_id IS NOT NULL)", name="assignment"),
        Index(None, "answered_at"),
    )

    request_id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[int]
    queue: Mapped[str | None]
    deadline: Mapped[datetime | None] = mapped_column(Instant)
    received_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time at which the request was made, despite the column's name.

    The client of this package, which sends the message, notes this time when a program calls the
    client with the request. The time is one of the database's clock, as estimated by the client.
    Null if the message has no such time.
    """
    outcome: Mapped[str]
    answer: Mapped[dict[str, Any]] = mapped_column(JSONB)
    assignment_id: Mapped[UUID | None] = mapped_column(ForeignKey(Assignment.id))
    term: Mapped[int] = mapped_column(BigInteger)
    answered_at: Mapped[datetime] = mapped_column(Instant)
    asked_again_at: Mapped[datetime | None] = mapped_column(Instant)
    """The last time that the request id was sent again and answered with the same assignment, while
    the assignment was active.
    """


class Command(Base):
    """A command of the assignment queue and its one answer, stored in the command's transaction.

    A repeated message gets the same answer and changes nothing. Agents' requests for a user are in
    `Request`.
    """

    __tablename__ = "commands"
    __table_args__ = (
        CheckConstraint("length(id) BETWEEN 1 AND 200", name="id"),
        Index(
            "ix_commands_order",
            "subject",
            "position",
            postgresql_where=text("subject IS NOT NULL"),
        ),
        Index(None, "answered_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    subject: Mapped[str | None]
    """The name of the state that the command sets, such as `state of agent 26`.

    A command is refused if a later command with the same subject was carried out already. Null: the
    command is not compared with later commands.
    """
    position: Mapped[int] = mapped_column(BigInteger)
    """The command's position in the order in which the database first saw commands
    (`COMMAND_POSITIONS`).
    """
    answer: Mapped[Any] = mapped_column(JSONB)
    term: Mapped[int] = mapped_column(BigInteger)
    answered_at: Mapped[datetime] = mapped_column(Instant)


class Event(Base):
    """The record of one state change, stored in the transaction of that change.

    So no change is committed without its record (guarantee 11 in docs/how-it-works.md). The ids of
    a lane's events are in the order of commit. A trigger keeps the table append-only. Free text is
    stored in `event_texts`.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "kind", "id"),
        Index(None, "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index(None, "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    kind: Mapped[str]
    term: Mapped[int | None] = mapped_column(BigInteger)
    queue: Mapped[str | None]
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    agent_id: Mapped[int | None]
    assignment_id: Mapped[UUID | None]
    request_id: Mapped[str | None]
    generation_id: Mapped[int | None] = mapped_column(BigInteger)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))


class EventText(Base):
    """The free texts of an event, which a trigger moves here out of the event's `details`.

    `texts` has each text by the name of its detail. The command `person forget` and the purge
    delete rows here; the event itself is not changed.
    """

    __tablename__ = "event_texts"
    __table_args__ = (Index(None, "at"),)

    event_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)
    texts: Mapped[dict[str, Any]] = mapped_column(JSONB)


class AuditBatch(Base):
    """A part of a lane's hash chain of events, which reveals a changed or deleted event.

    The part has a digest for each of some consecutive events of the lane. Each digest covers its
    event and the preceding digest. A maintenance job inserts the rows (`assignment.audit`). A
    trigger keeps the table append-only.
    """

    __tablename__ = "audit_batches"
    __table_args__ = (
        CheckConstraint(
            "cardinality(ids) = last - first + 1"
            " AND octet_length(digests) = 32 * (last - first + 1)",
            name="digests",
        ),
        Index(None, "upto"),
    )

    lane: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    """The position of the batch's first event in the lane's hash chain, counted from 1."""
    last: Mapped[int] = mapped_column(BigInteger)
    ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    """The ids of the batch's events, in the order of the lane's hash chain."""
    digests: Mapped[bytes]
    """The digests of the batch's events, 32 bytes per event, in the order of `ids`."""
    upto: Mapped[int] = mapped_column(BigInteger)
    """An event id that marks the progress of the hash chains of all lanes.

    When this batch was committed, each event up to this id was in the hash chain of its own lane.
    The events of this batch are included. The mark is about the events of all lanes, although the
    batch has events of one lane only. So the mark may be larger than all ids of the batch. The job
    that extends the chains continues after the largest `upto` of all batches, or after the last
    purged event if the id of that event is larger (`audit.REACHED`).
    """
    newest: Mapped[datetime] = mapped_column(Instant)
    """The time of the batch's newest event, by which the purge deletes whole batches."""
    made_at: Mapped[datetime] = mapped_column(Instant)


class AuditAnchor(Base):
    """The last event that the purge deleted from the front of a lane's hash chain.

    The digest of the deleted event stays stored here. It is needed to check the digest of the next
    event, which is computed from it.
    """

    __tablename__ = "audit_anchors"

    lane: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    event_id: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes]
    purged_at: Mapped[datetime] = mapped_column(Instant)


class Forgotten(Base):
    """The id of a user whose personal data was erased.

    No job stores data of the user again, and no suppression (ban on calls) of the user can be
    lifted.
    """

    __tablename__ = "forgotten"

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)


class DeadLetter(Base):
    """A message that could not be carried out, stored until its retention ends."""

    __tablename__ = "dead_letters"
    __table_args__ = (Index(None, "at"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    celery_queue: Mapped[str | None]
    task: Mapped[str | None]
    task_id: Mapped[str | None]
    body: Mapped[str]
    error: Mapped[str]
    replayed_at: Mapped[datetime | None] = mapped_column(Instant)
    replayed_as: Mapped[str | None]
    replayable: Mapped[bool] = mapped_column(server_default=text("true"))
    attempts: Mapped[int] = mapped_column(server_default=text("1"))
    dismissed_at: Mapped[datetime | None] = mapped_column(Instant)
    dismissed_by: Mapped[str | None]
    dismissed_why: Mapped[str | None]


class SuspectMessage(Base):
    """A message that may have crashed the process that handled it.

    The row is stored before the message is tried again, and deleted when that try has ended. If the
    process crashes during the try, the row stays.
    """

    __tablename__ = "suspect_messages"
    __table_args__ = (Index(None, "at"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    celery_queue: Mapped[str]
    at: Mapped[datetime] = mapped_column(Instant)
    """The time at which the last attempt to handle the message began."""
    ends: Mapped[int]
    part: Mapped[int | None]
    """The position, in a batch message, of the request or command that is being handled alone.

    Null: the message is handled as a whole.
    """
    parts: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    buried: Mapped[int] = mapped_column(server_default=text("0"))


class JobRun(Base):
    """One run of a job, scheduled or requested.

    `slot` is the due time of a scheduled run. Several runs may have the same job, due time and
    dialer queue. A unique index ensures that at most one of them is running or has succeeded; the
    others have failed or were skipped. So the work of a due time is done only once. If `slot` is
    null, the run has no due time.
    """

    __tablename__ = "job_runs"
    __table_args__ = (
        one_of("status", JobStatus),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended"),
        CheckConstraint("(status <> 'failed') OR (error IS NOT NULL)", name="failed"),
        Index(
            "uq_job_runs_slot",
            "job",
            "slot",
            text("coalesce(queue, '')"),
            unique=True,
            postgresql_where=text("slot IS NOT NULL AND status IN ('running', 'succeeded')"),
        ),
        Index(None, "job", "id"),
        Index(None, "started_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job: Mapped[str]
    queue: Mapped[str | None]
    trigger: Mapped[str]
    task_id: Mapped[str | None]
    slot: Mapped[datetime | None] = mapped_column(Instant)
    status: Mapped[str] = mapped_column(server_default=JobStatus.RUNNING)
    started_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    counts: Mapped[dict[str, int]] = mapped_column(JSONB, server_default=text("'{}'"))
    error: Mapped[str | None]


class Phone(Base):
    """The numbers in a user's phone text, as parsed by `assignment_workers.phones`. Personal data.

    A row is current while the CRM's `text`, `country` and `time_zone` and the version of the parser
    (`reader`) are unchanged. The text of a row that is not current is parsed again before the user
    is handed out.
    """

    __tablename__ = "phones"
    __table_args__ = (Index(None, "numbers", postgresql_using="gin"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    text: Mapped[str | None]
    country: Mapped[str | None]
    time_zone: Mapped[str | None]
    reader: Mapped[str]
    numbers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The phone numbers in E.164. Empty: no number can be read."""
    keyed: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """A hash of each number in `numbers`, and one of the phone text in its normal form (`plain`).

    The hashes are made with the key in the settings; without a key there are none. Suppressions of
    people whose data was erased have only such hashes, not the numbers.
    """
    kinds: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The kind of each number, in the order of `numbers`, such as `mobile`; see `phones.KINDS`."""
    tails: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The last 7 digits of each number in `numbers`, and a copy of each element of `unread`."""
    unread: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The last digits of each part of the phone text that could not be parsed with certainty."""
    plain: Mapped[str | None]
    """The phone text in the normal form in which it is compared with suppressed texts."""
    zones: Mapped[list[str]] = mapped_column(ARRAY(Text))
    home: Mapped[str | None]
    """The code of the person's country, such as `GB`, or of a part of a country, such as `AU-WA`.

    It comes from the CRM (`country`). If the CRM has no valid code, it is the country of the phone
    numbers. Null: the CRM has no valid code, and the numbers do not have one common country.
    """
    read_at: Mapped[datetime] = mapped_column(Instant)


class PhoneZone(Base):
    """A time zone that is, or once was, in `zones` of a row of `Phone`. Rows are never deleted.

    Calling hours are computed for each of these zones. Without this table, the whole table `phones`
    would have to be read to find them.
    """

    __tablename__ = "phone_zones"

    zone: Mapped[str] = mapped_column(primary_key=True)


class SuppressionKind(StrEnum):
    """The reason why a user or a phone number must not be called."""

    DO_NOT_CONTACT = "do_not_contact"
    QUARANTINE = "quarantine"
    CLOSED = "closed"
    """By an agent's decision, one dialer queue no longer offers the user."""


class Suppression(Base):
    """A ban on calls of one user, or of one phone number.

    It ends when it is lifted (`lifted_at`), or at the time `expires_at`. The ban of a number
    applies to all users who have the number. A suppression applies to every dialer queue, or to
    `queue` alone. The kind `closed` always has a queue, because it means that one dialer queue no
    longer offers the user.
    """

    __tablename__ = "suppressions"
    __table_args__ = (
        one_of("kind", SuppressionKind),
        CheckConstraint("(user_id IS NULL) <> (phone IS NULL)", name="whom"),
        CheckConstraint("number IS NULL OR phone IS NOT NULL", name="number"),
        CheckConstraint("kind = 'do_not_contact' OR phone IS NULL", name="user"),
        CheckConstraint(
            "kind = 'do_not_contact' OR (kind = 'closed') = (queue IS NOT NULL)", name="queue"
        ),
        CheckConstraint(
            "(lifted_at IS NULL) = (lifted_by IS NULL) AND"
            " (lifted_at IS NULL) = (lifted_why IS NULL)",
            name="lifted",
        ),
        Index(
            "uq_suppressions_user",
            "user_id",
            "kind",
            text("coalesce(queue, '')"),
            unique=True,
            postgresql_where=text("lifted_at IS NULL AND user_id IS NOT NULL"),
        ),
        Index(
            "uq_suppressions_number",
            "number",
            text("coalesce(queue, '')"),
            unique=True,
            postgresql_where=text("lifted_at IS NULL AND number IS NOT NULL"),
        ),
        Index(
            "uq_suppressions_text",
            "plain",
            text("coalesce(queue, '')"),
            unique=True,
            postgresql_where=text("lifted_at IS NULL AND number IS NULL AND phone IS NOT NULL"),
        ),
        Index(
            "ix_suppressions_tail",
            "tail",
            postgresql_where=text("lifted_at IS NULL AND tail IS NOT NULL"),
        ),
        Index(
            "ix_suppressions_unsure",
            "tail",
            postgresql_where=text("lifted_at IS NULL AND unsure"),
        ),
        Index(
            "ix_suppressions_quarantined",
            "since",
            postgresql_where=text("kind = 'quarantine' AND lifted_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    kind: Mapped[str]
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    phone: Mapped[str | None]
    """The phone number as it was written."""
    number: Mapped[str | None]
    """The phone number in E.164, which is compared with the numbers of users.

    If the data of the number's owner was erased, the keyed hash of the number is stored instead
    (`phones.Reader.keyed`). Null: the row suppresses a user, or `phone` is not a number and is
    compared as text (`plain`).
    """
    plain: Mapped[str | None]
    """The phone text in the normal form in which it is compared with users' phone texts."""
    tail: Mapped[str | None]
    """The last 7 digits of the suppressed number or, if `phone` is no number, of a part of `phone`.

    A user is not offered if a part of the user's phone text cannot be read with certainty and ends
    with the same 7 digits, because that part may be the suppressed number. Null: the row suppresses
    a user or an erased person's number, or `phone` has fewer than 7 digits.
    """
    unsure: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if `phone` cannot be read as a phone number, or may be an incomplete or mistyped number.

    Users whose phone number has the same last digits are then suppressed as well.
    """
    queue: Mapped[str | None]
    reason: Mapped[str]
    source: Mapped[str | None]
    """The origin of the suppression (ban on calls), such as the name of a register."""
    since: Mapped[datetime] = mapped_column(Instant)
    by: Mapped[str]
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    lifted_at: Mapped[datetime | None] = mapped_column(Instant)
    lifted_by: Mapped[str | None]
    lifted_why: Mapped[str | None]


class SuppressionListState(StrEnum):
    """The states of a list of suppressed numbers.

    staged: loaded, but not in force. standing: in force. retired: no longer in force, or not put in
    force within a day after it was loaded.
    """

    STAGED = "staged"
    STANDING = "standing"
    RETIRED = "retired"


class SuppressionList(Base):
    """One import of a named list of phone numbers that must not be called.

    The numbers are loaded while the lists in force stay unchanged. A command on the assignment
    queue then puts the list in force and, if `replaces` is true, retires the previous list of this
    name.
    """

    __tablename__ = "suppression_lists"
    __table_args__ = (
        one_of("state", SuppressionListState),
        Index(None, "name", postgresql_where=text("state = 'standing'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'staged'"))
    replaces: Mapped[bool]
    source: Mapped[str | None]
    queue: Mapped[str | None]
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    size: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str]
    by: Mapped[str]
    since: Mapped[datetime] = mapped_column(Instant)
    stands_since: Mapped[datetime | None] = mapped_column(Instant)
    retired_at: Mapped[datetime | None] = mapped_column(Instant)


class SuppressedNumber(Base):
    """A phone number of a suppression list, which lists numbers that must not be called.

    The table is partitioned by list, so that a list is attached or dropped as a whole.
    """

    __tablename__ = "suppressed_numbers"
    __table_args__ = (
        Index("ix_suppressed_numbers_tail", text("right(number, 7)")),
        {"postgresql_partition_by": "LIST (list_id)"},
    )

    list_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)


class TokenRole(StrEnum):
    """The role of an API token, which determines the routes that the gateway allows.

    agent: may send the requests and commands of one agent. frontend: may send those of all agents.
    supervisor: may read reports, settings and events, but changes nothing. operator: may read the
    same as a supervisor, and may make changes, such as a pause of a dialer queue.
    """

    AGENT = "agent"
    FRONTEND = "frontend"
    SUPERVISOR = "supervisor"
    OPERATOR = "operator"


class ApiToken(Base):
    """An API token of a caller of the gateway, stored as a hash."""

    __tablename__ = "api_tokens"
    __table_args__ = (
        one_of("role", TokenRole),
        CheckConstraint("(role = 'agent') = (agent_id IS NOT NULL)", name="agent"),
        CheckConstraint("octet_length(hash) = 32", name="hash"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[bytes]
    role: Mapped[str]
    agent_id: Mapped[int | None]
    note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(Instant)
    revoked_at: Mapped[datetime | None] = mapped_column(Instant)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time at which the token expires. Null: never."""
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    """The last use, to the minute. It is written after the call that used the token."""


class AccessKind(StrEnum):
    """The kinds of security events in the access log, such as a sign-in or a refused call."""

    TOKEN_CREATED = "token_created"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    SIGNED_IN = "signed_in"
    SIGNED_OUT = "signed_out"
    SIGN_IN_FAILED = "sign_in_failed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    ACTED_FOR = "acted_for"
    """A token other than the agent's own, such as a frontend's, sent commands on behalf of an
    agent.
    """


class AccessRecord(Base):
    """A record of the access log: a security event of the kind `what`.

    The kinds are sign-ins, sign-outs, refusals by the gateway, changes of a token, and tokens that
    act for an agent. Equal refusals of one minute share a row. A token that acts for an agent has
    one row an hour.
    """

    __tablename__ = "access_log"
    __table_args__ = (
        one_of("what", AccessKind),
        CheckConstraint("count > 0", name="count"),
        Index(None, "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    what: Mapped[str]
    who: Mapped[str | None]
    """The author of the event: the name of a token, or the operating system user who ran a command.

    Null: unknown.
    """
    subject: Mapped[str | None]
    """The token that was created or revoked, or the agent (`agent 26`) for whom a token acted."""
    address: Mapped[str | None]
    count: Mapped[int] = mapped_column(server_default="1")


class AnswerCount(Base):
    """The number of requests that ended with one kind of answer, for each minute of one hour.

    `AnswerKind` lists the kinds. A request to which no answer came in time counts as `unavailable`.
    A request is counted in the minute in which it ended. Gateways and clients count in memory;
    their counts are added to this table some time later. The table `requests` cannot replace this
    one. It has no row for a request whose answer could not be stored, for example because the
    database was down.
    """

    __tablename__ = "answer_counts"
    __table_args__ = (
        one_of("kind", AnswerKind),
        CheckConstraint("cardinality(by_minute) = 60", name="minutes"),
    )

    hour: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    by_minute: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class DashboardSession(Base):
    """A browser's session on the dashboard. The cookie is stored as a hash."""

    __tablename__ = "dashboard_sessions"
    __table_args__ = (
        CheckConstraint("octet_length(hash) = 32", name="hash"),
        CheckConstraint("(token_id IS NULL) <> (stack IS NULL)", name="opened_by"),
        UniqueConstraint("link"),
    )

    hash: Mapped[bytes] = mapped_column(primary_key=True)
    token_id: Mapped[str | None] = mapped_column(ForeignKey(ApiToken.id))
    """The token that opened the session. The session ends with the token."""
    stack: Mapped[str | None]
    """The digest of the secret that the command `up` made, if that secret opened the session."""
    link: Mapped[str | None]
    """The one-time link that opened the session. It is unique, so a link opens one session."""
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time at which the browser signed out."""


class Finding(Base):
    """The result of one check in the doctor's last scheduled run.

    Each run replaces all rows.
    """

    __tablename__ = "findings"

    check_name: Mapped[str] = mapped_column(primary_key=True)
    guarantee: Mapped[int | None]
    ok: Mapped[bool]
    count: Mapped[int]
    examples: Mapped[list[str]] = mapped_column(JSONB)
    repairable: Mapped[bool]
    examined_at: Mapped[datetime] = mapped_column(Instant)


class OperatorAction(Base):
    """An operator's action, stored before it is carried out. Its outcome is added afterwards."""

    __tablename__ = "operator_actions"
    __table_args__ = (
        CheckConstraint("length(why) BETWEEN 1 AND 500", name="why"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    who: Mapped[str]
    """The operator: the token's name, `anybody` if tokens are off, or the operating system user who
    ran the command.
    """
    action: Mapped[str]
    subject: Mapped[str]
    """The object of the action, such as a dialer queue, a user or a dead letter."""
    why: Mapped[str | None]
    outcome: Mapped[str | None]
    """The outcome of the action, as a text of one of these forms.

    `done`, or `done: ...` with details such as counts: the action was carried out.
    `refused: ...` with the reason: the action, or a part of it, was refused.
    `unavailable: ...` with the reason: no result was received; the action may have been applied.
    `asked: ...` with a note: a message was sent, without waiting for its result.
    Null: the outcome is unknown.
    """
    ended_at: Mapped[datetime | None] = mapped_column(Instant)


FACT_SCHEMA = "crm_facts"
"""The schema of this project's views of the CRM's tables (`assignment.crm.fact_views`)."""
ID_AT_MOST = 200
"""The greatest length of a person's id in the CRM, in characters."""


class UserNumber(Base):
    """The internal integer id of a user whose id in the CRM is not an integer.

    The columns `uuid` and `text` have the id in the CRM: one of them is set. An internal id is
    never used for another user. The row stays when the user's data is erased; otherwise the user
    would be taken for a new one.
    """

    __tablename__ = "user_ids"
    __table_args__ = (
        CheckConstraint("num_nonnulls(uuid, text) = 1", name="one"),
        CheckConstraint(f"length(text) BETWEEN 1 AND {ID_AT_MOST}", name="text"),
        UniqueConstraint("uuid"),
        UniqueConstraint("text"),
    )

    user_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    uuid: Mapped[UUID | None]
    text: Mapped[str | None]


class CrmRead(Base):
    """The last complete read of an external CRM into the copy `crm_mirror`. One row."""

    __tablename__ = "crm_reads"
    __table_args__ = (CheckConstraint("whole", name="one"),)

    whole: Mapped[bool] = mapped_column(primary_key=True)
    read_at: Mapped[datetime] = mapped_column(Instant)
    """The time at which the read began. `crm_mirror` has the CRM's facts as of this time or later.
    """
    seconds: Mapped[float]
    counts: Mapped[dict[str, int]] = mapped_column(JSONB)


class Watermark(Base):
    """The progress of a job that reads a table in several runs (`assignment.pools.discover`).

    The job `discover` looks for new rows in several CRM tables, and has a row for each: `source` is
    the name of the CRM table. The job `reconcile` reads all users, and has one row: its `source` is
    `reconciliation`. The columns speak of passes: a pass is one reading of a table to its end, in
    one run or several.
    """

    __tablename__ = "watermarks"

    source: Mapped[str] = mapped_column(primary_key=True)
    reached: Mapped[datetime | None] = mapped_column(Instant)
    """The latest `created_at` of the rows that completed passes have read.

    A `created_at` may be in the future. If the latest one is later than the start of the run that
    completes the pass, the start of that run is stored instead. The next pass of `discover` reads
    the rows whose `created_at` is later than the stored time, and also those of the ten minutes
    before the stored time (`discover.OVERLAP`). Null: `discover` has completed no pass, or the job
    is `reconcile`.
    """
    seen: Mapped[datetime | None] = mapped_column(Instant)
    """The latest `created_at` of the rows that the unfinished pass has read.

    Null: no pass is unfinished.
    """
    at: Mapped[datetime | None] = mapped_column(Instant)
    key: Mapped[str | None]
    """The key, as JSON, of the last row that the unfinished pass has read.

    For the job `discover`, the column `at` has the `created_at` of the same row. The next run
    continues after that row. Null: the next run begins a new pass.
    """
    swept_at: Mapped[datetime | None] = mapped_column(Instant)
    """The time of the latest run in which the job reached the end of the table."""
