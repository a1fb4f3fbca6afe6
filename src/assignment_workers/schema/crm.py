"""The columns of the CRM's tables that we read (original-dialer section 2), local or external.

The CRM is never written in production. An external CRM may use other names for its tables and
columns; a `CrmMapping` translates them, and is all that supporting another CRM needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Column, Index, MetaData, Table
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
    country: Mapped[str | None]
    """Optional, like `time_zone`: read only if the settings name the column of the CRM for it."""
    time_zone: Mapped[str | None]
    email_address: Mapped[str | None]
    current_signature_file_id: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)


class Claim(CrmBase):
    """A claim of a user. The claim is over if `status` is 'cancelled', ignoring case."""

    __tablename__ = "claims"
    __table_args__ = (Index(None, "user_id"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str | None]
    status: Mapped[str | None]
    lender: Mapped[str | None]


class ClaimRequirement(CrmBase):
    """A document or fact that a claim needs while `status` is 'PENDING', ignoring case."""

    __tablename__ = "claim_requirements"
    __table_args__ = (Index(None, "claim_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    claim_id: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str | None]
    status: Mapped[str | None]
    claim_requirement_reason: Mapped[str | None]
    claim_requirement_rejection_reason: Mapped[str | None]
    created_at: Mapped[datetime | None] = mapped_column(NaiveInstant)


FACTS: dict[type[CrmBase], tuple[str, ...]] = {
    CrmUser: (
        *("id", "is_enabled", "phone_number", "country", "time_zone"),
        *("current_signature_file_id", "created_at"),
    ),
    Claim: ("id", "user_id", "status"),
    ClaimRequirement: (
        *("id", "claim_id", "type", "status", "claim_requirement_reason", "created_at"),
    ),
}
"""The columns that rules and jobs read: all that is ever copied from an external CRM.

No name and no postal or email address of a person is among them.
"""

OPTIONAL = ("country", "time_zone")
"""Columns of users that a CRM may lack; they are read only if a `CrmMapping` names them."""

FOLDED = {(Claim, "status"), (ClaimRequirement, "status"), (ClaimRequirement, "type")}
"""The columns that are compared without case and trailing spaces, because MySQL takes 'PENDING',
'pending' and 'pending ' as equal."""


@dataclass(frozen=True)
class CrmMapping:
    """The names that a CRM has for our tables and our columns of users and claims."""

    tables: Mapping[type[CrmBase], str]
    columns: Mapping[type[CrmBase], Mapping[str, str]]

    def column(self, model: type[CrmBase], name: str) -> str:
        """Return the CRM's name of our column `name`; our own name if it is not mapped."""
        return self.columns.get(model, {}).get(name, name)

    def has(self, model: type[CrmBase], name: str) -> bool:
        """Return True if the CRM has our column `name`: always, unless the column is optional."""
        return name not in OPTIONAL or name in self.columns.get(model, {})

    def with_columns(self, optional: Mapping[str, str]) -> CrmMapping:
        """Return a copy that also maps these optional columns of users, keyed by our names."""
        users = {**self.columns.get(CrmUser, {}), **optional}
        return CrmMapping(self.tables, {**self.columns, CrmUser: users})


MAPPINGS = {
    "original": CrmMapping({model: model.__tablename__ for model in FACTS}, {}),
    "people": CrmMapping(
        {CrmUser: "people", Claim: "cases", ClaimRequirement: "case_documents"},
        {
            CrmUser: {
                "id": "people_id",
                "is_enabled": "enabled_flag",
                "phone_number": "telephone",
                "current_signature_file_id": "signature_ref",
                "created_at": "registered_at",
            },
            Claim: {"id": "case_id", "user_id": "people_id", "status": "case_state"},
            ClaimRequirement: {
                "id": "document_id",
                "claim_id": "case_id",
                "type": "document_kind",
                "status": "document_state",
                "claim_requirement_reason": "reason_text",
                "created_at": "asked_at",
            },
        },
    ),
}
"""The known CRMs, by the name that selects one in the settings."""

MIRROR_SCHEMA = "crm_mirror"
MIRROR = MetaData(schema=MIRROR_SCHEMA, naming_convention=CrmBase.metadata.naming_convention)
"""The tables of the mirror: the facts of an external CRM at its last complete read, in our
database."""

INCOMING = "incoming_"
"""The prefix of the mirror's tables that a read fills; they replace the others when it is complete.
"""

for _model, _names in FACTS.items():
    _of = _model.__table__
    for _prefix in ("", INCOMING):
        _made = Table(
            _prefix + _model.__tablename__,
            MIRROR,
            *(
                Column(name, _of.c[name].type, primary_key=name == "id", autoincrement=False)
                for name in _names
            ),
            prefixes=["UNLOGGED"] if _prefix else [],
        )
        if not _prefix and len(_names[1:]) and _names[1].endswith("_id"):
            Index(None, _made.c[_names[1]])
