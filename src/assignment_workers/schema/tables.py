"""Our tables.

Every guarantee that a constraint can hold is a constraint here (DESIGN, Guarantees).
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

from assignment_workers.schema.base import Base, Instant, one_of

DEFAULT_LANE = "default"

COMMAND_POSITIONS = Sequence("command_positions", schema="assignment", metadata=Base.metadata)
"""The order in which the database first saw commands: no clock, and no broker, has a say in it."""


class GenerationState(StrEnum):
    """building → published → retired, or failed."""

    BUILDING = "building"
    PUBLISHED = "published"
    RETIRED = "retired"
    FAILED = "failed"


class EntryState(StrEnum):
    """ready: claimable.

    waiting: until `available_from`. held: by an active assignment. out: for a reason.
    """

    READY = "ready"
    WAITING = "waiting"
    HELD = "held"
    OUT = "out"


class AssignmentState(StrEnum):
    """active → completed, skipped, released or expired."""

    ACTIVE = "active"
    COMPLETED = "completed"
    SKIPPED = "skipped"
    RELEASED = "released"
    EXPIRED = "expired"


class EndedHow(StrEnum):
    """How a hold ended where its state does not say it all: two are skipped, one is expired."""

    DEFERRED = "deferred"
    CLOSED = "closed"
    OFFER_LAPSED = "offer_lapsed"
    """Nobody accepted it in its time."""


class AgentStatus(StrEnum):
    """What an agent is about, as they or their moves say."""

    AVAILABLE = "available"
    ON_CALL = "on_call"
    WRAP_UP = "wrap_up"
    BREAK = "break"
    OFFLINE = "offline"


class Source(StrEnum):
    """Where the user of an assignment came from."""

    QUEUE = "queue"
    CALLBACK = "callback"
    MISSED_CALL = "missed_call"


class JobStatus(StrEnum):
    """How a job run stands; skipped: another run held the lock, or this slot was done."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


UNMARKED = UUID(int=0)
"""The id of a term that was begun before terms had ids."""


class LaneTerm(Base):
    """Who may write: one row a lane.

    Every transaction on the assignment queue locks it and proves its term. It changes with the
    term alone: what is updated while a term lasts stands in `sequencer_signs`, because a reader of
    an old snapshot keeps every version of a row, and each turn would go through all of them.
    """

    __tablename__ = "sequencer"
    __table_args__ = (CheckConstraint("term >= 0", name="term"),)

    lane: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[int] = mapped_column(BigInteger, server_default="0")
    leader_host: Mapped[str | None]
    leader_pid: Mapped[int | None]
    since: Mapped[datetime | None] = mapped_column(Instant)
    term_id: Mapped[UUID] = mapped_column(server_default=str(UNMARKED))
    """A random id beside the number, because a number may come twice: after the database has moved
    back to a copy of its past, a restored backup or an asynchronous standby."""
    seen_at: Mapped[datetime | None] = mapped_column(Instant)
    """As release 0.1 leaves its sign of life. With the next two it goes in the release after."""
    probed_at: Mapped[datetime | None] = mapped_column(Instant)
    probe_seconds: Mapped[float | None]
    queues: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """The dialer queues of the lane, as its last leader had them; null: before there were lanes."""
    terms: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), server_default="{}")
    """The lane's latest terms, the newest first: where its messages that were taken are looked for.

    Terms grow by one with each new sequencer of any lane, so those of one lane have gaps.
    """
    marks: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """The same terms as number and id, as the lists of what they have taken are named."""


class SequencerSign(Base):
    """The signs of life of a lane's leader, at most one a second."""

    __tablename__ = "sequencer_signs"

    lane: Mapped[str] = mapped_column(primary_key=True)
    last_turn_at: Mapped[datetime] = mapped_column(Instant)
    last_probe_at: Mapped[datetime | None] = mapped_column(Instant)
    last_probe_seconds: Mapped[float | None]
    """How long the last probe took from its sending to its turn."""


class DialerQueue(Base):
    """What an operator decided about a dialer queue. A row with `paused_at` hands out nobody."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime | None] = mapped_column(Instant)
    paused_by: Mapped[str | None]


class Generation(Base):
    """One complete build of a dialer queue. Exactly one is published per queue: guarantee 2."""

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
    """`pg_current_snapshot()` of the build: which assignments it had seen end."""
    built_at: Mapped[datetime | None] = mapped_column(Instant)
    published_at: Mapped[datetime | None] = mapped_column(Instant)
    retired_at: Mapped[datetime | None] = mapped_column(Instant)
    purged_at: Mapped[datetime | None] = mapped_column(Instant)
    size: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None]


class Entry(Base):
    """A user's place in a generation.

    Partitioned by generation: a build fills a table of its own, a purge drops it.

    No foreign key to `generations`: dropping a partition would lock that table against the claims.
    The partition's bound says the same.
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
    """An integer, as the old reader has it: where its view had to cast, no index would serve it."""
    score: Mapped[int]
    state: Mapped[str] = mapped_column(server_default=EntryState.READY)
    available_from: Mapped[datetime | None] = mapped_column(Instant)
    reason: Mapped[str | None]


class Assignment(Base):
    """An agent's exclusive hold on a user. The two partial unique indexes are guarantee 1."""

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
    """The callback or missed call that it is for."""
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
    """The transaction that ended it: a build knows by its snapshot whether it had seen that."""
    outcome: Mapped[str | None]
    notes: Mapped[str | None]
    accepted_at: Mapped[datetime | None] = mapped_column(Instant)
    """When its agent took it up. Before, it is an offer; afterwards, work."""
    ended_how: Mapped[str | None]
    put_off_until: Mapped[datetime | None] = mapped_column(Instant)
    """Of one that was skipped or deferred: nobody is offered the user before."""


class AgentSession(Base):
    """An agent as the line knows them: what they said they are about, and their session.

    A row is made by the first state that is stated, or by the first offer that lapses; `state` is
    null for who never stated any. Written in turns only, so no heartbeat can overwrite it.
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
    """Who said so: the agent, an operator, or us; null: their own move."""
    why: Mapped[str | None]
    session_began: Mapped[datetime | None] = mapped_column(Instant)
    calls_in_session: Mapped[int] = mapped_column(server_default="0")
    working_since: Mapped[datetime | None] = mapped_column(Instant)
    """When the session began, or the last break in it ended."""
    last_call_ended_at: Mapped[datetime | None] = mapped_column(Instant)
    offers_lapsed: Mapped[int] = mapped_column(server_default="0")
    """In a row, since the agent last took one up or ended one."""


class AgentSeen(Base):
    """An agent's last heartbeat: written by set, off the assignment queue, and nothing else is."""

    __tablename__ = "agents_seen"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    agent_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seen_at: Mapped[datetime] = mapped_column(Instant)


class Request(Base):
    """An agent's ask and its one answer: guarantee 5 is the primary key."""

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
    """When the asker sent it, where the message says so: by the asker's clock."""
    outcome: Mapped[str]
    answer: Mapped[dict[str, Any]] = mapped_column(JSONB)
    assignment_id: Mapped[UUID | None] = mapped_column(ForeignKey(Assignment.id))
    term: Mapped[int] = mapped_column(BigInteger)
    answered_at: Mapped[datetime] = mapped_column(Instant)
    asked_again_at: Mapped[datetime | None] = mapped_column(Instant)
    """When an active assignment was last given again as the answer to this request id."""


class Command(Base):
    """A command of the assignment queue and its one answer, in the transaction that made it true.

    What `Request` is for an agent's ask, this is for every other message: the same message gets the
    same answer, and changes nothing.
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
    """What its state is the state of; null: nothing that an older command could overwrite."""
    position: Mapped[int] = mapped_column(BigInteger)
    """In the order in which the database first saw commands, by `COMMAND_POSITIONS`."""
    answer: Mapped[Any] = mapped_column(JSONB)
    term: Mapped[int] = mapped_column(BigInteger)
    answered_at: Mapped[datetime] = mapped_column(Instant)


class Event(Base):
    """Every state change, in the order of commit per lane: guarantee 11.

    Append-only by a trigger; what somebody typed stands in `event_texts`.
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
    """What somebody typed into an event, by the names of its details: parted from it by a trigger.

    Emptied by `person forget` and by the purge, while the event stays as it was written.
    """

    __tablename__ = "event_texts"
    __table_args__ = (Index(None, "at"),)

    event_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)
    texts: Mapped[dict[str, Any]] = mapped_column(JSONB)


class AuditBatch(Base):
    """Digests of consecutive events of one lane: each is over the one before it and its event.

    Made by a job, off the assignment queue (`assignment.audit`); append-only by a trigger.
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
    """The position of its first event in the lane's chain, from 1."""
    last: Mapped[int] = mapped_column(BigInteger)
    ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    """The events, in the order of their positions."""
    digests: Mapped[bytes]
    """Of each event 32 bytes."""
    upto: Mapped[int] = mapped_column(BigInteger)
    """Every event of any lane with an id up to this one is in this batch or another."""
    newest: Mapped[datetime] = mapped_column(Instant)
    """When the last of its events was written: the purge deletes a batch whole."""
    made_at: Mapped[datetime] = mapped_column(Instant)


class AuditAnchor(Base):
    """Where the purge has cut a lane's chain: the last event that was deleted, and its digest."""

    __tablename__ = "audit_anchors"

    lane: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    event_id: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes]
    purged_at: Mapped[datetime] = mapped_column(Instant)


class Forgotten(Base):
    """A person who was forgotten, by id: no job brings them back, and no suppression is lifted."""

    __tablename__ = "forgotten"

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Instant)


class DeadLetter(Base):
    """A message that could not be handled, until its retention ends."""

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
    """A message whose taking may have ended a process, while it is tried again."""

    __tablename__ = "suspect_messages"
    __table_args__ = (Index(None, "at"),)

    digest: Mapped[str] = mapped_column(primary_key=True)
    celery_queue: Mapped[str]
    at: Mapped[datetime] = mapped_column(Instant)
    """The last try's beginning."""
    ends: Mapped[int]
    part: Mapped[int | None]
    """The part of a message of many that is being tried alone."""
    parts: Mapped[list[int]] = mapped_column(ARRAY(Integer), server_default=text("'{}'"))
    buried: Mapped[int] = mapped_column(server_default=text("0"))


class JobRun(Base):
    """One run of a scheduled or asked-for job.

    A slot is done once: the unique index makes its effect single.
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
    """The numbers that a user's phone text means, as `assignment_workers.phones` read them.

    It is current while `text`, `country`, `time_zone` (what the CRM said) and `reader` are as they
    were; otherwise it is read again before anybody gets the user. Personal data, all of it.
    """

    __tablename__ = "phones"
    __table_args__ = (Index(None, "numbers", postgresql_using="gin"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    text: Mapped[str | None]
    country: Mapped[str | None]
    time_zone: Mapped[str | None]
    reader: Mapped[str]
    numbers: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """In E.164; empty: none can be read."""
    keyed: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """Of each number, and of the text, its hash by the key in the settings, where that is set: by
    it a forgotten number is found."""
    kinds: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """Of each number, what it is."""
    tails: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The last digits of each number and of each part that is none."""
    unread: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """The last digits of what could not be read, or not surely."""
    plain: Mapped[str | None]
    """The text as suppressions by text compare it."""
    zones: Mapped[list[str]] = mapped_column(ARRAY(Text))
    home: Mapped[str | None]
    """The person's country, with its part where that is known."""
    read_at: Mapped[datetime] = mapped_column(Instant)


class PhoneZone(Base):
    """A time zone in which some user may be, or might have been once."""

    __tablename__ = "phone_zones"

    zone: Mapped[str] = mapped_column(primary_key=True)


class SuppressionKind(StrEnum):
    """Why a user or phone number is not to be offered."""

    DO_NOT_CONTACT = "do_not_contact"
    QUARANTINE = "quarantine"
    CLOSED = "closed"
    """Of one dialer queue: an agent closed it for the user."""


class Suppression(Base):
    """A user, or every user with a phone number, is offered to nobody until it is lifted.

    In every dialer queue, or in `queue` alone. One that is `closed` always has a queue.
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
    """In E.164, by which it is compared; null with a phone: no number, compared by its text. Of one
    that was forgotten, its keyed hash (`phones.Reader.keyed`)."""
    plain: Mapped[str | None]
    """The text as texts are compared."""
    tail: Mapped[str | None]
    """Its last digits, by which what cannot be read is in reach of it."""
    unsure: Mapped[bool] = mapped_column(server_default=text("false"))
    """It is no number, or none that was given out: who shares its last digits waits as well."""
    queue: Mapped[str | None]
    reason: Mapped[str]
    source: Mapped[str | None]
    """Where it is from, a register say."""
    since: Mapped[datetime] = mapped_column(Instant)
    by: Mapped[str]
    expires_at: Mapped[datetime | None] = mapped_column(Instant)
    lifted_at: Mapped[datetime | None] = mapped_column(Instant)
    lifted_by: Mapped[str | None]
    lifted_why: Mapped[str | None]


class SuppressionListState(StrEnum):
    """staged → standing → retired."""

    STAGED = "staged"
    STANDING = "standing"
    RETIRED = "retired"


class SuppressionList(Base):
    """One import of a named list of numbers that are not to be called.

    Its numbers are loaded beside those that stand; a command on the assignment queue makes it stand
    and, where it replaces the list, retires what stood by that name.
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
    """A number of a list; partitioned by list, so that one comes and goes as a whole."""

    __tablename__ = "suppressed_numbers"
    __table_args__ = (
        Index("ix_suppressed_numbers_tail", text("right(number, 7)")),
        {"postgresql_partition_by": "LIST (list_id)"},
    )

    list_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime | None] = mapped_column(Instant)


class TokenRole(StrEnum):
    """What the bearer of an API token may do."""

    AGENT = "agent"
    FRONTEND = "frontend"
    SUPERVISOR = "supervisor"
    OPERATOR = "operator"


class ApiToken(Base):
    """A token of the gateway's callers: its hash, never itself."""

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
    """From then on it is void; null: it does not expire."""
    last_used_at: Mapped[datetime | None] = mapped_column(Instant)
    """To the minute; written off the calls' way."""


class AccessKind(StrEnum):
    """What the access log records."""

    TOKEN_CREATED = "token_created"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    SIGNED_IN = "signed_in"
    SIGNED_OUT = "signed_out"
    SIGN_IN_FAILED = "sign_in_failed"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    ACTED_FOR = "acted_for"
    """A frontend, or another token that is no agent's own, made moves of an agent."""


class AccessRecord(Base):
    """Who came in, was refused at the gateway, or acted for an agent.

    A refusal's row is a sum of a minute; that of a token that acts for an agent is one an hour.
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
    """The token's name, or the user of the machine who ran the command."""
    subject: Mapped[str | None]
    """The token that was made or revoked; `agent 26` for whom a token acted."""
    address: Mapped[str | None]
    count: Mapped[int] = mapped_column(server_default="1")


class DashboardSession(Base):
    """A browser that has signed in to the dashboard: the hash of its cookie, never itself."""

    __tablename__ = "dashboard_sessions"
    __table_args__ = (
        CheckConstraint("octet_length(hash) = 32", name="hash"),
        CheckConstraint("(token_id IS NULL) <> (stack IS NULL)", name="opened_by"),
        UniqueConstraint("link"),
    )

    hash: Mapped[bytes] = mapped_column(primary_key=True)
    token_id: Mapped[str | None] = mapped_column(ForeignKey(ApiToken.id))
    """The token that opened the session, which ends with it."""
    stack: Mapped[str | None]
    """The digest of a stack's own secret, where that opened it."""
    link: Mapped[str | None]
    """The one-time link that opened it: none opens two."""
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    """When its browser signed out."""


class Finding(Base):
    """What the doctor found when it last ran by itself: a row for each check, replaced together."""

    __tablename__ = "findings"

    check_name: Mapped[str] = mapped_column(primary_key=True)
    guarantee: Mapped[int | None]
    ok: Mapped[bool]
    count: Mapped[int]
    examples: Mapped[list[str]] = mapped_column(JSONB)
    repairable: Mapped[bool]
    examined_at: Mapped[datetime] = mapped_column(Instant)


class OperatorAction(Base):
    """What an operator asked for: kept before it is done, with what came of it afterwards."""

    __tablename__ = "operator_actions"
    __table_args__ = (
        CheckConstraint("length(why) BETWEEN 1 AND 500", name="why"),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(Instant)
    who: Mapped[str]
    """The token's name, `anybody` where tokens are off, or who ran the command."""
    action: Mapped[str]
    subject: Mapped[str]
    """What it was done to, as words: a dialer queue, a user, an assignment, a dead letter."""
    why: Mapped[str | None]
    outcome: Mapped[str | None]
    """`done`, `refused: ...` or `unavailable: ...`; null: it is not known what came of it."""
    ended_at: Mapped[datetime | None] = mapped_column(Instant)


class CrmRead(Base):
    """When the CRM, which is elsewhere, was last read whole: the age of `crm_mirror`. One row."""

    __tablename__ = "crm_reads"
    __table_args__ = (CheckConstraint("whole", name="one"),)

    whole: Mapped[bool] = mapped_column(primary_key=True)
    read_at: Mapped[datetime] = mapped_column(Instant)
    """When the reading began: the mirror has the facts as they were then, or later."""
    seconds: Mapped[float]
    counts: Mapped[dict[str, int]] = mapped_column(JSONB)


class Watermark(Base):
    """How far a source was read for what is new in it (`assignment.pools.discover`)."""

    __tablename__ = "watermarks"

    source: Mapped[str] = mapped_column(primary_key=True)
    reached: Mapped[datetime | None] = mapped_column(Instant)
    """Whatever was there up to this instant was seen to; null: nothing yet."""
    seen: Mapped[datetime | None] = mapped_column(Instant)
    """The latest that the sweep under way has met."""
    at: Mapped[datetime | None] = mapped_column(Instant)
    key: Mapped[str | None]
    """Where the sweep under way goes on, with `at`; null: the next begins anew."""
    swept_at: Mapped[datetime | None] = mapped_column(Instant)
    """When a sweep last came to its end."""
