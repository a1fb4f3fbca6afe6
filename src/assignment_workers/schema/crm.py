"""The CRM's tables as far as they are read (original-dialer section 2), here and elsewhere.

Nothing of the CRM is ever written in production. A CRM elsewhere may name its tables and columns as
it likes: a `CrmMapping` says how, and is all that another CRM needs.
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
    """Optional, as is `time_zone`: read only where the settings name the CRM's column."""
    time_zone: Mapped[str | None]
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
"""What the rules and the jobs read, and so all that is ever brought here from a CRM elsewhere.

No name and no address of a person is among it.
"""

OPTIONAL = ("country", "time_zone")
"""Columns of users that a CRM may have; a `CrmMapping` that has them maps them."""

FOLDED = {(Claim, "status"), (ClaimRequirement, "status"), (ClaimRequirement, "type")}
"""Words: a MySQL server takes 'PENDING', 'pending' and 'pending ' for one and the same."""


@dataclass(frozen=True)
class CrmMapping:
    """How a CRM names what we read: for each of our tables its own, and for our columns its own."""

    tables: Mapping[type[CrmBase], str]
    columns: Mapping[type[CrmBase], Mapping[str, str]]

    def column(self, model: type[CrmBase], name: str) -> str:
        """What the CRM calls this column of ours; one that is not mapped has our name."""
        return self.columns.get(model, {}).get(name, name)

    def has(self, model: type[CrmBase], name: str) -> bool:
        """Whether the CRM has this column of ours: every one that is not optional."""
        return name not in OPTIONAL or name in self.columns.get(model, {})

    def with_columns(self, optional: Mapping[str, str]) -> CrmMapping:
        """The same with these optional columns of users, by our names."""
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
"""The CRMs that are known, by the name that chooses one in the settings."""

MIRROR_SCHEMA = "crm_mirror"
MIRROR = MetaData(schema=MIRROR_SCHEMA, naming_convention=CrmBase.metadata.naming_convention)
"""The facts of a CRM elsewhere as they were last read whole, in our database."""

INCOMING = "incoming_"
"""What is being read stands in tables of these names until it is complete."""

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
