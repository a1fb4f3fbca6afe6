"""The three dialers as a model's run needs them: the CRM of each filled, and its facts changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from assignment_workers.assignment.crm import fact_views
from assignment_workers.dialer import Dialer
from assignment_workers.schema.tables import FACT_SCHEMA
from tests.model.rules import Facts, Person
from tests.support.dialers import DIALERS, EXAMPLES
from tests.support.world import DAY, HOUR, Claim, Requirement, User, World

ALL = "crm.users, crm.claims, crm.claim_requirements"

Meaning = Callable[[Person, datetime], bool]
"""Whether a person breaks a rule, as its text and the comments of the CRM's file have it."""


@dataclass(frozen=True)
class Trade:
    """A dialer, and its CRM."""

    name: str
    """That of its dialer."""
    fill: Callable[[World, Sequence[Person]], None]
    """Gives each person the facts of their dialer queue, in tables that are empty."""
    tables: str
    """The tables that it fills."""
    persons: Mapping[str, str]
    """By table that is read: the id of a row's person."""
    changes: Mapping[str, str]
    """By name: what turns a fact about `:user` over, and back again."""
    goals: Mapping[str, str]
    """By dialer queue: the change by which a person reaches what the queue is for."""
    meanings: Mapping[str, Meaning]
    """By rule of its own."""
    prepare: Callable[[World], None] = field(default=lambda _: None)
    schema: str = FACT_SCHEMA
    """That in which the rules read the tables."""

    @property
    def dialer(self) -> Dialer:
        return DIALERS[self.name]

    def facts(self, world: World, people: Collection[int]) -> dict[int, Facts]:
        """What can be read about each of these."""
        found: dict[int, dict[str, list[Any]]] = {
            each: {table: [] for table in self.persons} for each in people
        }
        with world.engine.connect() as connection:
            for table, person in self.persons.items():
                query = f"SELECT {person} AS its_person, t.* FROM {self.schema}.{table} t"
                for row in connection.execute(text(query)).mappings():
                    if row["its_person"] in found:
                        found[row["its_person"]][table].append(row)
        return dict(found)


def _first(person: Person) -> Any:
    return person.facts["users"][0]


def _at(row: Any, name: str) -> datetime:
    found: datetime = row[name].replace(tzinfo=UTC)
    return found


# -- claims -----------------------------------------------------------------------------------------


def _fill_claims(world: World, people: Sequence[Person]) -> None:
    world.add_users(
        User(
            each.id,
            each.score,
            queue=each.queue,
            signature="file" if _goal(each, CLAIMS) == "outstanding_requests" else None,
            claims=(Claim("open", (Requirement(),)),),
            created_at=each.created_at,
            has_score_row=False,
            phone=each.phone,
        )
        for each in people
    )


def _goal(person: Person, trade: Trade) -> str:
    """The dialer queue that they are to belong to."""
    names = list(trade.goals)
    return person.queue or names[-1 if person.id == 16 else 0]


def _alive(person: Person) -> set[int]:
    claims = person.facts["claims"]
    return {each["id"] for each in claims if (each["status"] or "").lower() != "cancelled"}


def _wants(person: Person) -> bool:
    return any(
        each["claim_id"] in _alive(person)
        and each["status"] == "PENDING"
        and each["type"] == "payslip"
        for each in person.facts["claim_requirements"]
    )


CLAIMS = Trade(
    "claims",
    _fill_claims,
    ALL,
    {
        "users": "id",
        "claims": "user_id",
        "claim_requirements": "(SELECT c.user_id FROM crm.claims c WHERE c.id = t.claim_id)",
    },
    {
        "is_enabled": "UPDATE crm.users SET is_enabled = NOT is_enabled WHERE id = :user",
        "is_signed": "UPDATE crm.users SET current_signature_file_id"
        " = CASE coalesce(current_signature_file_id, '') WHEN '' THEN 'file' ELSE '' END"
        " WHERE id = :user",
        "has_live_claim": "UPDATE crm.claims SET status"
        " = CASE status WHEN 'open' THEN 'cancelled' ELSE 'open' END WHERE user_id = :user",
        "has_pending_requirement": "UPDATE crm.claim_requirements SET status"
        " = CASE status WHEN 'PENDING' THEN 'COMPLETED' ELSE 'PENDING' END"
        " WHERE claim_id = :user * 10",
        "in_crm": "UPDATE crm.users SET id = -id, phone_number = reverse(phone_number)"
        " WHERE abs(id) = :user",
    },
    {"unsigned_users": "is_signed", "outstanding_requests": "has_pending_requirement"},
    {
        "disabled": lambda person, _: not _first(person)["is_enabled"],
        "all_claims_cancelled": lambda person, _: (
            bool(person.facts["claims"]) and not _alive(person)
        ),
        "signed": lambda person, _: bool(_first(person)["current_signature_file_id"]),
        "unsigned": lambda person, _: not _first(person)["current_signature_file_id"],
        "requirements_completed": lambda person, _: not _wants(person),
        "too_new": lambda person, now: (
            person.has_score_row and person.score > 0 and person.created_at > now - 2 * HOUR
        ),
    },
    schema="crm",
)

# -- the examples -----------------------------------------------------------------------------------


def _prepare(name: str) -> Callable[[World], None]:
    """The CRM of an example; a person's number may be turned over, for what is theirs stays."""

    def prepare(world: World) -> None:
        script = (EXAMPLES / name / "crm.sql").read_text(encoding="utf-8")
        script = re.sub(rf" REFERENCES {name}\.\w+( \(\w+\))?", "", script)
        world.execute("DROP SCHEMA crm CASCADE")
        with world.engine.begin() as connection:
            connection.exec_driver_sql(script.replace("%", "%%"))
            fact_views.make(connection, fact_views.queries(DIALERS[name]))
        world.read_crm(None)

    return prepare


def _number(world: World, people: Sequence[Person], kind: str, own: str) -> None:
    """Give the CRM's id of each person the number by which the model knows them."""
    with world.engine.begin() as connection:
        connection.execute(
            text(
                f"INSERT INTO assignment.user_ids (user_id, {kind}) OVERRIDING SYSTEM VALUE"
                f" SELECT n, {own}(n) FROM unnest(CAST(:numbers AS integer[])) AS of (n)"
                " ON CONFLICT DO NOTHING"
            ),
            {"numbers": [each.id for each in people]},
        )


def _gone(table: str, column: str, own: str, further: str = "") -> str:
    """The statement that turns the id of `:user` in this column into another one, and back."""
    its, other = f"{own}(CAST(:user AS integer))", f"{own}(9000 + CAST(:user AS integer))"
    return (
        f"UPDATE {table} SET {column} = CASE {column} WHEN {its} THEN {other} ELSE {its} END"
        f"{further} WHERE {column} IN ({its}, {other})"
    )


ITS_UUID, ITS_KEY = (
    f"{own}(CAST(:user AS integer))" for own in ("clinic.uuid_of", "charity.key_of")
)


def _patient(number: int) -> UUID:
    return UUID(f"c11c0000-0000-4000-8000-{number:012}")


def _donor(number: int) -> str:
    return f"D-{number:04}"


def _insert(world: World, table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
    names = columns.split(", ")
    values = ", ".join(f":{name}" for name in names)
    with world.engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO {table} ({columns}) VALUES ({values})"),
            [dict(zip(names, row, strict=True)) for row in rows],
        )


def _naive(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(tzinfo=None)


def _fill_clinic(world: World, people: Sequence[Person]) -> None:
    now = _naive(world.now)
    goals = {each.id: _goal(each, CLINIC) for each in people}
    _number(world, people, "uuid", "clinic.uuid_of")
    patients = [
        (_patient(each.id), each.phone, None if each.id % 2 else "pl", now - DAY) for each in people
    ]
    _insert(world, "clinic.patients", "patient_no, mobile, speaks, registered_at", patients)
    results = [
        (
            _patient(each),
            _patient(each),
            now - each % 4 * HOUR,
            "ready" if goal == "results" else "told",
        )
        for each, goal in goals.items()
    ]
    _insert(world, "clinic.results", "result_no, patient_no, arrived_at, state", results)
    missed = [
        (
            each,
            _patient(each),
            now - each % 3 * DAY,
            "missed" if goal == "missed_appointments" else "kept",
        )
        for each, goal in goals.items()
    ]
    _insert(world, "clinic.appointments", "appointment_no, patient_no, starts_at, state", missed)
    recalls = [
        # Of those who are in no other dialer queue, some are due now, and some soon.
        (each, _patient(each), now + (each % 3 - 1) * HOUR, "open" if goal == "recalls" else "done")
        for each, goal in goals.items()
    ]
    _insert(world, "clinic.recalls", "recall_no, patient_no, due_at, state", recalls)


def _is_due(person: Person, now: datetime) -> bool:
    return any(
        each["state"] == "open" and _at(each, "due_at") <= now for each in person.facts["recalls"]
    )


CLINIC = Trade(
    "clinic",
    _fill_clinic,
    "clinic.patients, clinic.results, clinic.appointments, clinic.recalls",
    {
        "users": "id",
        "results": "patient_id",
        "appointments": "patient_id",
        "recalls": "patient_id",
    },
    {
        "is_deceased": "UPDATE clinic.patients SET died_on"
        " = CASE WHEN died_on IS NULL THEN date '2027-01-01' END WHERE patient_no = " + ITS_UUID,
        "speaks": "UPDATE clinic.patients SET speaks"
        " = CASE speaks WHEN 'cy' THEN 'es' ELSE 'cy' END WHERE patient_no = " + ITS_UUID,
        "result": "UPDATE clinic.results SET state"
        " = CASE state WHEN 'ready' THEN 'told' ELSE 'ready' END WHERE patient_no = " + ITS_UUID,
        "missed": "UPDATE clinic.appointments SET state"
        " = CASE state WHEN 'missed' THEN 'kept' ELSE 'missed' END WHERE patient_no = " + ITS_UUID,
        "recall": "UPDATE clinic.recalls SET state"
        " = CASE state WHEN 'open' THEN 'done' ELSE 'open' END WHERE patient_no = " + ITS_UUID,
        "in_crm": _gone(
            "clinic.patients", "patient_no", "clinic.uuid_of", ", mobile = reverse(mobile)"
        ),
    },
    {"results": "result", "missed_appointments": "missed", "recalls": "recall"},
    {
        "deceased": lambda person, _: _first(person)["died_on"] is not None,
        "no_speaker": lambda person, _: _first(person)["language"] == "cy",
        "discussed": lambda person, _: not _any(person, "results", state="ready"),
        "rebooked": lambda person, _: not _any(person, "appointments", state="missed"),
        "not_due": lambda person, now: not _is_due(person, now),
    },
    _prepare("clinic"),
)


def _any(person: Person, table: str, **has: Any) -> bool:
    return any(has.items() <= dict(each).items() for each in person.facts[table])


def _fill_charity(world: World, people: Sequence[Person]) -> None:
    now = _naive(world.now)
    goals = {each.id: _goal(each, CHARITY) for each in people}
    _number(world, people, "text", "charity.key_of")
    donors = [(_donor(each.id), each.phone, True, now - each.id % 5 * DAY) for each in people]
    columns = "donor_key, telephone, consents_to_calls, joined_at"
    _insert(world, "charity.donors", columns, donors)
    pledges = [
        (each, _donor(each), each % 3 * 10, "open" if goal == "pledges" else "paid")
        for each, goal in goals.items()
    ]
    _insert(world, "charity.pledges", "id, donor_key, pounds, state", pledges)
    gifts = [
        # A year ago to the hour: who gave in it, and soon did not.
        (
            each,
            _donor(each),
            2_000 if goal == "major_donors" else 20,
            now - timedelta(days=365) + (each % 3 - 1) * HOUR,
            goal != "thanks",
        )
        for each, goal in goals.items()
        if goal != "guests"
    ]
    _insert(world, "charity.gifts", "id, donor_key, pounds, created_at, is_thanked", gifts)
    debits = [
        (each, _donor(each), now - each % 2 * DAY if goal == "regular_donors" else None)
        for each, goal in goals.items()
        if goal in {"regular_donors", "thanks"}
    ]
    _insert(world, "charity.debits", "id, donor_key, cancelled_at", debits)
    guests = [(each, _donor(each)) for each in goals if each % 2]
    guests += [(100 + each, _donor(each)) for each in goals]
    _insert(world, "charity.guests", "id, donor_key", guests)


def _given(person: Person) -> int:
    return sum(each["pounds"] for each in person.facts["gifts"])


CHARITY = Trade(
    "charity",
    _fill_charity,
    "charity.donors, charity.pledges, charity.gifts, charity.debits, charity.guests",
    {
        "users": "id",
        "gifts": "donor_id",
        "pledges": "donor_id",
        "debits": "donor_id",
        "guests": "donor_id",
    },
    {
        "may_call": "UPDATE charity.donors SET consents_to_calls = NOT consents_to_calls"
        " WHERE donor_key = " + ITS_KEY,
        "pledge": "UPDATE charity.pledges SET state"
        " = CASE state WHEN 'open' THEN 'paid' ELSE 'open' END WHERE donor_key = " + ITS_KEY,
        "thanks": "UPDATE charity.gifts SET is_thanked = NOT is_thanked WHERE donor_key = "
        + ITS_KEY,
        "gift": "UPDATE charity.gifts SET created_at = created_at + CASE WHEN created_at"
        " < timestamp '2026-12-01' THEN interval '200 days' ELSE interval '-200 days' END"
        " WHERE donor_key = " + ITS_KEY,
        "debit": "UPDATE charity.debits SET cancelled_at"
        " = CASE WHEN cancelled_at IS NULL THEN timestamp '2027-01-01' END WHERE donor_key = "
        + ITS_KEY,
        "donor": _gone("charity.gifts", "donor_key", "charity.key_of"),
        "in_crm": _gone(
            "charity.donors", "donor_key", "charity.key_of", ", telephone = reverse(telephone)"
        ),
    },
    {
        "pledges": "pledge",
        "thanks": "thanks",
        "major_donors": "gift",
        "regular_donors": "debit",
        "guests": "donor",
    },
    {
        "may_not_call": lambda person, _: not _first(person)["may_call"],
        "paid": lambda person, _: not _any(person, "pledges", state="open"),
        "thanked": lambda person, _: not _any(person, "gifts", is_thanked=False),
        "not_major": lambda person, _: _given(person) < 1_000,
        "gave": lambda person, now: any(
            _at(each, "created_at") > now - timedelta(days=365) for each in person.facts["gifts"]
        ),
        "no_debit": lambda person, _: not person.facts["debits"],
        "renewed": lambda person, _: all(
            each["cancelled_at"] is None for each in person.facts["debits"]
        ),
        "no_guest": lambda person, _: not person.facts["guests"],
        "is_donor": lambda person, _: bool(person.facts["gifts"]),
    },
    _prepare("charity"),
)

TRADES = {each.name: each for each in (CLAIMS, CLINIC, CHARITY) if each.name in DIALERS}
