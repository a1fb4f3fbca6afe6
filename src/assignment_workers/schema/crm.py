"""Models of CRM tables: that of persons, and those about the claims of persons.

The CRM is in our database or in an external one. The tables are those that the replaced dialer read
(docs/original-dialer.md, section 2). The CRM is never written in production.

These models do not decide what is read. The file that defines the dialer queues, such as
`dialerconfig.py`, decides. It may use columns of these models, and declare further columns and
tables. It also declares the CRM's names of tables and columns. The columns that its rules and
orders use are read, and a few columns that are always needed. The module `policy.facts` has the
functions for these declarations.
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

    A rule compares such a column with `Person.id`. `Person` is the name of `CrmUser` in
    `dialerconfig.py`, the file that defines the dialer queues and their rules. If the CRM's ids are
    not integers, both columns have the integer that this project has assigned to each id of the
    CRM.
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
    """The user's country.

    A CRM may lack the columns `country` and `time_zone`. Each is used only if the setting
    `crm_columns` names it.
    """
    time_zone: Mapped[str | None]
    email_address: Mapped[str | None]
    current_signature_file_id: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)


class Claim(CrmBase):
    """A claim that a user makes, as the CRM stores it; `lender` is the lender that it concerns.

    It is not the step that assigns a user to an agent, which is also called claim. A claim of the
    CRM is cancelled if `status` is 'cancelled', ignoring case.
    """

    __tablename__ = "claims"
    __table_args__ = (Index(None, "user_id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(PersonId)
    type: Mapped[str | None]
    status: Mapped[str | None] = mapped_column(AnyCase)
    lender: Mapped[str | None]


class ClaimRequirement(CrmBase):
    """A document or fact that is required for a user's claim in the CRM (see `Claim`).

    It is still missing while `status` is 'PENDING', ignoring case.
    """

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
