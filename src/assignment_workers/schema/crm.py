"""The columns of the CRM's tables that we read (original-dialer section 2), local or external.

The CRM is never written in production. The columns that are read, and the CRM's names of them,
follow from what the dialer declares (`policy.facts`).
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from assignment_workers.schema.base import CrmBase, NaiveInstant

OPTIONAL = ("country", "time_zone")
"""Columns of the CRM's users that a CRM may lack. They are read only if the settings name them."""
MIRROR_SCHEMA = "crm_mirror"
"""The schema of the mirror: a copy, in our database, of an external CRM's facts at the last
complete read.
"""


class PersonId(BigInteger):
    """The column type for a person's id in a fact table, which is a table about users.

    A rule compares it with `Person.id`. Where the CRM's ids are no integers, both columns have the
    integers by which this project numbers the CRM's ids.
    """


class AnyCase(Text):
    """A column type for text that MySQL and MariaDB compare without case and trailing spaces.

    Text from a CRM on such a server is read in lower case, so rules compare it with lower-case
    words. Text from PostgreSQL is read unchanged.
    """


class CrmUser(CrmBase):
    """A person to call.

    If `current_signature_file_id` is null or empty, the person has not signed yet.
    """

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    is_enabled: Mapped[bool | None]
    status: Mapped[str | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    phone_number: Mapped[str | None]
    country: Mapped[str | None]
    """Optional, like `time_zone`: read only if the settings name the CRM's column for it."""
    time_zone: Mapped[str | None]
    email_address: Mapped[str | None]
    current_signature_file_id: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)


class Claim(CrmBase):
    """A claim that a user makes, with its lender; not the claim of a user by an agent.

    It is over if `status` is 'cancelled', ignoring case.
    """

    __tablename__ = "claims"
    __table_args__ = (Index(None, "user_id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(PersonId)
    type: Mapped[str | None]
    status: Mapped[str | None] = mapped_column(AnyCase)
    lender: Mapped[str | None]


class ClaimRequirement(CrmBase):
    """A document or fact that a user's `Claim` needs while `status` is 'PENDING', ignoring case."""

    __tablename__ = "claim_requirements"
    # The constraint names the way to the person; the CRM decides whether its table has it.
    __table_args__ = (
        Index(None, "claim_id"),
        ForeignKeyConstraint(["claim_id"], ["crm.claims.id"]).ddl_if(
            callable_=lambda *_, **__: False
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    claim_id: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str | None] = mapped_column(AnyCase)
    status: Mapped[str | None] = mapped_column(AnyCase)
    claim_requirement_reason: Mapped[str | None]
    claim_requirement_rejection_reason: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
