"""The tables that this project shares with the original dialer (original-dialer section 1).

The section is in docs/original-dialer.md, which describes the dialer that this project replaces.
The columns are those of that dialer, except `Callback.available_from`, `MissedCall.available_from`
and `Conversion.episode`, which this project adds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Mapped, mapped_column

from assignment_workers.schema.base import DialerBase, NaiveInstant

NOW = text("now()")
NEW_UUID = text("gen_random_uuid()")


class Agent(DialerBase):
    """A person who calls users. `allowed_queues` is a JSON list of dialer queue names.

    The columns `allowed_queues` and `Callback.queue_type` have the defaults of the original dialer
    (the dialer that this project replaces), because its programs insert rows without these columns.
    """

    __tablename__ = "agents"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    role: Mapped[str] = mapped_column(server_default="agent")
    team: Mapped[str | None]
    allowed_queues: Mapped[Any] = mapped_column(
        JSON, server_default=text("""'["unsigned_users", "outstanding_requests"]'""")
    )
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    is_ai_agent: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)


class UserCallScore(DialerBase):
    """A user's call score, one row per user.

    A user with a lower `current_score` is called sooner.
    """

    __tablename__ = "user_call_scores"
    __table_args__ = (
        Index(None, "next_call_after", "current_score"),
        Index(None, "is_active", "current_score"),
        Index(None, "current_queue_type", "current_score"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    user_id: Mapped[int] = mapped_column(BigInteger, unique=True)
    current_score: Mapped[int] = mapped_column(server_default="0")
    next_call_after: Mapped[datetime | None] = mapped_column(NaiveInstant)
    last_call_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    total_attempts: Mapped[int] = mapped_column(server_default="0")
    successful_calls: Mapped[int] = mapped_column(server_default="0")
    last_outcome: Mapped[str | None]
    base_score: Mapped[int] = mapped_column(server_default="0")
    outcome_penalty_score: Mapped[int] = mapped_column(server_default="0")
    time_penalty_score: Mapped[int] = mapped_column(server_default="0")
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    current_queue_type: Mapped[str | None]
    last_reset_date: Mapped[datetime | None] = mapped_column(NaiveInstant)
    last_queue_check: Mapped[datetime | None] = mapped_column(NaiveInstant)
    created_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)


class Callback(DialerBase):
    """A promise to call a user at a certain time. A user has at most one pending callback.

    `status` is pending until the promise is kept or cancelled, even while an agent has the user for
    this callback. In that case the original dialer, which this project replaces, wrote the status
    `assigned`; this project never writes it.
    """

    __tablename__ = "callbacks"
    __table_args__ = (
        Index(None, "scheduled_for"),
        Index(None, "status"),
        Index(None, "preferred_agent_id", "status", "scheduled_for"),
        Index(None, "assigned_to_agent_id", "status"),
        Index(None, "user_id", "status"),
        Index(None, "queue_type", "scheduled_for", "status"),
        Index(
            "uq_callbacks_pending_user",
            "user_id",
            unique=True,
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_callbacks_pending",
            "scheduled_for",
            "user_id",
            postgresql_where=text("status = 'pending'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    user_id: Mapped[int] = mapped_column(BigInteger)
    scheduled_for: Mapped[datetime] = mapped_column(NaiveInstant)
    callback_reason: Mapped[str | None]
    preferred_agent_id: Mapped[int | None] = mapped_column(ForeignKey(Agent.id))
    original_call_session_id: Mapped[UUID]
    status: Mapped[str] = mapped_column(server_default="pending")
    completed_call_session_id: Mapped[UUID | None]
    queue_type: Mapped[str] = mapped_column(server_default="outstanding_requests")
    assigned_to_agent_id: Mapped[int | None]
    assigned_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    lease_expires_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    completed_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    retry_count: Mapped[int] = mapped_column(server_default="0")
    max_retries: Mapped[int] = mapped_column(server_default="1")
    last_attempt_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    available_from: Mapped[datetime | None] = mapped_column(NaiveInstant)
    """A column that this project adds: the callback is not offered before this time, nor before
    `scheduled_for`. None: only `scheduled_for` counts.
    """
    created_by_agent_id: Mapped[int | None]
    created_by_source: Mapped[str] = mapped_column(server_default="agent")
    created_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)


class MissedCall(DialerBase):
    """An inbound call that no agent answered.

    `status`: pending, then followed_up, cancelled, or for_operator (the caller is unknown or must
    not be called).
    """

    __tablename__ = "missed_calls"
    __table_args__ = (
        Index(None, "status", "missed_at"),
        Index(None, "assigned_to_agent_id"),
        Index(None, "phone_number"),
        Index(None, "twilio_call_sid"),
        Index(
            "uq_missed_calls_pending_call",
            "twilio_call_sid",
            unique=True,
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_missed_calls_pending",
            "missed_at",
            "id",
            postgresql_where=text("status = 'pending'"),
        ),
        Index(
            "ix_missed_calls_pending_user",
            "user_id",
            postgresql_where=text("status = 'pending'"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    phone_number: Mapped[str] = mapped_column(String(20))
    caller_name: Mapped[str | None]
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    missed_at: Mapped[datetime] = mapped_column(NaiveInstant)
    reason: Mapped[str] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(server_default="pending")
    assigned_to_agent_id: Mapped[int | None] = mapped_column(
        ForeignKey(Agent.id, ondelete="SET NULL")
    )
    assigned_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    twilio_call_sid: Mapped[str | None]
    session_id: Mapped[str | None]
    available_from: Mapped[datetime | None] = mapped_column(NaiveInstant)
    """A column that this project adds: a skipped missed call is not offered before this time."""
    created_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)


class Conversion(DialerBase):
    """The record that a user reached the goal of the dialer queue that the user was in."""

    __tablename__ = "conversions"
    __table_args__ = (
        Index(None, "user_id"),
        Index(None, "converted_at"),
        Index("uq_conversions_episode", "user_id", "previous_queue_type", "episode", unique=True),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    user_id: Mapped[int] = mapped_column(BigInteger)
    previous_queue_type: Mapped[str]
    conversion_type: Mapped[str]
    conversion_reason: Mapped[str | None]
    final_score: Mapped[int] = mapped_column(server_default="0")
    total_call_attempts: Mapped[int] = mapped_column(server_default="0")
    last_call_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
    converted_at: Mapped[datetime] = mapped_column(NaiveInstant)
    primary_agent_id: Mapped[int | None] = mapped_column(ForeignKey(Agent.id))
    contributing_agents: Mapped[Any | None] = mapped_column(JSON)
    signature_obtained: Mapped[bool] = mapped_column(server_default=text("false"))
    episode: Mapped[int | None]
    """A column that this project adds: the number, from 1, of the user's stay in the dialer queue.
    Each stay has at most one conversion.
    """
    created_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
    updated_at: Mapped[datetime] = mapped_column(NaiveInstant, server_default=NOW)
