"""The CRM's tables as far as they are read (original-dialer section 2).

Nothing here is ever written in production.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from assignment_workers.schema.base import CrmBase, NaiveInstant


class CrmUser(CrmBase):
    """A person to call. `current_signature_file_id` null or empty means unsigned."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    is_enabled: Mapped[bool | None]
    status: Mapped[str | None]
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    phone_number: Mapped[str | None]
    email_address: Mapped[str | None]
    current_signature_file_id: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)


class Claim(CrmBase):
    """A claim of a user; `status` 'cancelled' in any case of letters means that it is over."""

    __tablename__ = "claims"
    __table_args__ = (Index(None, "user_id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str | None]
    status: Mapped[str | None]
    lender: Mapped[str | None]


class ClaimRequirement(CrmBase):
    """What a claim still needs from its user while `status` is 'PENDING' in any case of letters."""

    __tablename__ = "claim_requirements"
    __table_args__ = (Index(None, "claim_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    claim_id: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str | None]
    status: Mapped[str | None]
    claim_requirement_reason: Mapped[str | None]
    claim_requirement_rejection_reason: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)
