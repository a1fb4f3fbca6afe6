"""The two schemas that a dialer's database may have, as data (original-dialer section 1).

One schema is in production. The other is a draft of the dialer's authors for a later schema, which
was never deployed completely. The section is in docs/original-dialer.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

QUEUE_TABLES: Mapping[str, str] = {
    "unsigned_users": "unsigned_users_queue",
    "outstanding_requests": "outstanding_requests_queue",
}
"""Maps a dialer queue to the name of its table in the dialer's database."""

STATUSES = ("pending", "assigned", "completed", "skipped", "inactive", "invalid")
"""The statuses that the dialer declares for the rows of its queue tables."""

KEPT = "_before_adoption"
"""The suffix that a migration adds to the name of the dialer's queue table, to free the name for a
view. The table is never dropped.
"""
MADE = "_made_by_adoption"
"""The suffix in the name of a new view, until the view takes over the name of the old table."""

AGENT_COLUMNS = ("assigned_to_agent_id", "assigned_to_agent")


@dataclass(frozen=True)
class Column:
    """A column of a table, with its type and its default as PostgreSQL prints them.

    `null`: True if the column may be null. `default` is None for a column without a default.
    """

    type: str
    null: bool = True
    default: str | None = None

    def __str__(self) -> str:
        words = [self.type, "null" if self.null else "not null"]
        return " ".join(words + ([f"default {self.default}"] if self.default else []))


@dataclass(frozen=True)
class Shape:
    """The structure of a table: columns, constraints and indexes.

    `unique` has the columns of each unique index, except the primary key. `indexes` has the columns
    of each other index. A foreign key is a pair of a column and the table that it refers to.
    """

    columns: Mapping[str, Column]
    unique: frozenset[tuple[str, ...]] = frozenset()
    foreign_keys: frozenset[tuple[str, str]] = frozenset()
    indexes: frozenset[tuple[str, ...]] = field(default_factory=frozenset)


TIME = "timestamp(3) without time zone"


def _columns(text: str) -> dict[str, Column]:
    """Parse lines with one column each: name, type, and optionally `not null` and `default`."""
    found = {}
    for line in text.strip().splitlines():
        name, _, rest = line.strip().partition(" ")
        rest, _, default = rest.partition(" default ")
        kind = rest.removesuffix(" not null")
        found[name] = Column(
            TIME if kind == "time" else kind,
            null=not rest.endswith(" not null"),
            default=default or None,
        )
    return found


_BASE = _columns("""
    id uuid not null
    user_id bigint not null
    claim_id bigint
    priority_score integer not null default 0
    status text not null default 'pending'
    queue_reason text
    assigned_at time
    created_at time not null default now()
    updated_at time not null
""")
_DEPLOYED = _BASE | _columns("""
    queue_position integer not null
    available_from time not null default now()
    assigned_to_agent integer
""")
_TARGET = _BASE | _columns("""
    queue_position integer
    available_from time
    assigned_to_agent_id integer
    callback_id uuid
""")
_SIGNATURE = _columns("""
    signature_missing_since time
    signature_type text
""")
_REQUIREMENTS = _columns("""
    total_requirements integer not null default 0
    pending_requirements integer not null default 0
    completed_requirements integer not null default 0
    oldest_requirement_date time
""")
_DEPLOYED_INDEXES = frozenset(
    {("status", "priority_score"), ("available_from",), ("queue_position",)}
)
_TARGET_KEYS = frozenset(
    {
        ("user_id", "user_call_scores"),
        ("assigned_to_agent_id", "agents"),
        ("callback_id", "callbacks"),
    }
)
_TARGET_INDEXES = frozenset(
    {
        ("status", "priority_score", "available_from"),
        ("user_id",),
        ("assigned_to_agent_id", "status"),
    }
)

DEPLOYED: Mapping[str, Shape] = {
    "unsigned_users_queue": Shape(_DEPLOYED | _SIGNATURE, indexes=_DEPLOYED_INDEXES),
    "outstanding_requests_queue": Shape(
        _DEPLOYED | _REQUIREMENTS | _columns("requirement_types jsonb not null default '[]'"),
        indexes=_DEPLOYED_INDEXES,
    ),
}
"""Maps the name of a queue table to its structure in the dialer's schema in production."""

TARGET: Mapping[str, Shape] = {
    "unsigned_users_queue": Shape(
        _TARGET
        | _SIGNATURE
        | _columns("""
            reminders_sent integer not null default 0
            last_reminder_at time
            signature_block_reason text
            urgent_signature boolean not null default false
        """),
        unique=frozenset({("user_id",)}),
        foreign_keys=_TARGET_KEYS,
        indexes=_TARGET_INDEXES
        | {
            ("signature_missing_since", "urgent_signature"),
            ("reminders_sent", "last_reminder_at"),
            ("urgent_signature", "status", "priority_score"),
        },
    ),
    "outstanding_requests_queue": Shape(
        _TARGET
        | _REQUIREMENTS
        | _columns("""
            requirement_types text[]
            follow_up_scheduled time
            requirements_priority text
            last_document_received time
            document_deadline time
            escalation_level integer not null default 0
        """),
        unique=frozenset({("user_id",)}),
        foreign_keys=_TARGET_KEYS,
        indexes=_TARGET_INDEXES
        | {
            ("total_requirements", "pending_requirements"),
            ("oldest_requirement_date", "escalation_level"),
            ("requirements_priority", "follow_up_scheduled"),
            ("document_deadline", "escalation_level"),
            ("escalation_level", "status", "priority_score"),
        },
    ),
}
"""Maps the name of a queue table to its structure in the dialer's draft schema.

The draft is a later schema that the dialer's authors began and never deployed completely.
"""

LEGACY_CALL_QUEUE = Shape(
    _columns("""
        id uuid not null
        user_id bigint not null
        claim_id bigint
        queue_type text not null
        priority_score integer not null default 0
        queue_position integer
        status text not null default 'pending'
        queue_reason text
        assigned_to_agent_id integer
        assigned_at time
        callback_id uuid
        available_from time
        created_at time not null default now()
        updated_at time not null
    """)
)
"""The structure of the dialer's old table `call_queue`.

It is the same in the schema in production and in the later schema that the dialer's authors drafted
and never deployed completely. Foreign keys are left out, because a script of the dialer drops one
of them.
"""

LEASES = frozenset(
    {
        "assigned_to_agent_id",
        "assigned_at",
        "lease_expires_at",
        "completed_at",
        "retry_count",
        "max_retries",
        "last_attempt_at",
        "created_by_agent_id",
        "created_by_source",
    }
)
CONVERSION = frozenset(
    {
        "user_id",
        "previous_queue_type",
        "conversion_type",
        "conversion_reason",
        "final_score",
        "total_call_attempts",
        "last_call_at",
        "converted_at",
        "contributing_agents",
        "signature_obtained",
    }
)

DISTINGUISHING_COLUMNS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "callbacks": (LEASES, frozenset()),
    "conversions": (CONVERSION, frozenset()),
    "agent_sessions": (frozenset({"ended_at", "last_heartbeat"}), frozenset()),
    "call_sessions": (frozenset(), frozenset({"unsigned_queue_id", "outstanding_queue_id"})),
}
"""Maps a table of the dialer to the columns in which the dialer's two schemas differ.

The first set of columns is only in the schema in production. The second is only in the later schema
that the dialer's authors drafted and never deployed completely. All other columns of these tables
are the same in both schemas.
"""

ADDED: Mapping[str, frozenset[str]] = {
    "callbacks": frozenset({"available_from", "updated_at"}),
    "missed_calls": frozenset({"available_from", "updated_at"}),
    "conversions": frozenset({"episode", "created_at", "updated_at"}),
}
"""Maps a table of the dialer to the columns that the migration adds.

The dialer has these columns neither in the schema in production nor in the later schema that its
authors drafted.
"""

READ: Mapping[str, Column] = {
    name: _DEPLOYED[name]
    for name in (
        "id",
        "user_id",
        "status",
        "priority_score",
        "queue_position",
        "queue_reason",
        "assigned_at",
        "created_at",
        "updated_at",
    )
}
"""The columns that a migration needs in a queue table of the dialer, with the expected types.

A migration also needs at least one of the columns for the agent (`AGENT_COLUMNS`). Any other column
may have any type.
"""

_FAMILIES = (
    re.compile(r"smallint|integer|bigint"),
    re.compile(r"text|character varying(\(\d+\))?"),
    re.compile(r"timestamp(\(\d\))? (without|with) time zone"),
    re.compile(r"jsonb?"),
)


def is_readable(found: str, wanted: str) -> bool:
    """Return True if a column of type `found` can be used where type `wanted` is expected.

    True for equal types. True also for two types of one family: whole numbers, texts, timestamps,
    or JSON. Exception: False if `found` is another type than `wanted`, and is a `varchar` that is
    too narrow (`NARROWEST`) for the longest name of a dialer queue, because this release writes
    such names.
    """
    if found == wanted:
        return True
    width = re.fullmatch(r"character varying\((\d+)\)", found)
    if width and int(width[1]) < NARROWEST:
        return False
    return any(each.fullmatch(found) and each.fullmatch(wanted) for each in _FAMILIES)


NARROWEST = len("outstanding_requests")
"""Minimum width, in characters, of a `varchar` column of the dialer, so that a queue name fits.

`outstanding_requests` is the longest name of a dialer queue.
"""

OTHERS = ("call_queue", "agent_sessions", "call_sessions")
"""Tables of the dialer that this system does not need and does not change. They are only reported.
"""
