"""The dialer of a clinic: results to discuss, missed appointments, and check-ups that are due.

Nobody has a score that counts: each dialer queue has an order of its own. A patient is called only
in a language that the desk speaks.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Column, Date, Text, Uuid, exists, func, select

from assignment_workers.dialer import (
    NOW,
    Action,
    Dialer,
    News,
    Outcome,
    Person,
    PersonId,
    Persons,
    Queue,
    Rule,
    RuleEffect,
    Time,
    fact_table,
    person_column,
    word,
)

HOUR = timedelta(hours=1)
SPOKEN = ("en", "es", "pl")

# -- facts: the tables of crm.sql ---------------------------------------------------------------

patients = Persons(
    of="clinic.patients",
    id_type=Uuid(),
    names={
        "id": "patient_no",
        "phone_number": "mobile",
        "created_at": "registered_at",
        "language": "speaks",
    },
)
language = person_column("language", Text())
died_on = person_column("died_on", Date())

PATIENT_NO = {"patient_id": "patient_no"}
recalls = fact_table(
    "recalls",
    Column("patient_id", PersonId),
    Column("due_at", Time),
    Column("state", Text),
    of="clinic.recalls",
    names=PATIENT_NO,
)
appointments = fact_table(
    "appointments",
    Column("patient_id", PersonId),
    Column("starts_at", Time),
    Column("state", Text),
    of="clinic.appointments",
    names=PATIENT_NO,
)
results = fact_table(
    "results",
    Column("id", Uuid, primary_key=True),
    Column("patient_id", PersonId),
    Column("created_at", Time),
    Column("state", Text),
    of="clinic.results",
    names={"id": "result_no", "created_at": "arrived_at", **PATIENT_NO},
)

READY = (results.c.patient_id == Person.id, results.c.state == word("ready"))
MISSED = (appointments.c.patient_id == Person.id, appointments.c.state == word("missed"))
DUE = (recalls.c.patient_id == Person.id, recalls.c.state == word("open"), recalls.c.due_at <= NOW)

# -- dialer queues ------------------------------------------------------------------------------

PATIENT = (
    Rule("deceased", died_on.is_(None), means="they have died"),
    Rule(
        "no_speaker",
        func.coalesce(language, word("en")).in_(map(word, SPOKEN)),
        means="nobody at the desk speaks their language",
    ),
)

QUEUES = (
    Queue(
        "results",
        "Results to discuss",
        rules=[
            *PATIENT,
            Rule(
                "discussed",
                exists(select(1).where(*READY)),
                RuleEffect.CONVERTED,
                "no result waits to be discussed",
            ),
        ],
        conversion="result_discussed",
        order=[select(func.min(results.c.created_at)).where(*READY).scalar_subquery()],
    ),
    Queue(
        "missed_appointments",
        "Missed appointments",
        rules=[
            *PATIENT,
            Rule(
                "rebooked",
                exists(select(1).where(*MISSED)),
                RuleEffect.CONVERTED,
                "no missed appointment is without a new one",
            ),
        ],
        conversion="appointment_rebooked",
        order=[select(func.max(appointments.c.starts_at)).where(*MISSED).scalar_subquery().desc()],
    ),
    Queue(
        "recalls",
        "Check-ups due",
        rules=[
            *PATIENT,
            Rule(
                "not_due",
                exists(select(1).where(*DUE)),
                RuleEffect.CONVERTED,
                "no check-up is due",
            ),
        ],
        conversion="check_up_booked",
        order=[select(func.min(recalls.c.due_at)).where(*DUE).scalar_subquery()],
    ),
)

# -- outcomes -----------------------------------------------------------------------------------

LETTER = Action("send_letter", "Send the patient a letter.")

OUTCOMES = (
    Outcome(
        "booked",
        "Booked",
        delay=24 * HOUR,
        success=True,
        converts=True,
        meaning="An appointment was booked, or the result discussed.",
    ),
    Outcome(
        "no_answer",
        "No answer",
        delay=3 * HOUR,
        keeps=False,
        retried=True,
        review_after=4,
        meaning="Nobody answered.",
    ),
    Outcome(
        "call_again",
        "Call again",
        callback=True,
        needs_callback=True,
        meaning="The patient asked to be called at another time.",
    ),
    Outcome(
        "prefers_letter",
        "Prefers a letter",
        delay=14 * 24 * HOUR,
        actions=(LETTER,),
        meaning="The patient wants it in writing.",
    ),
    Outcome(
        "declined",
        "Declined",
        delay=90 * 24 * HOUR,
        needs_notes=True,
        meaning="The patient does not want the appointment.",
    ),
    Outcome(
        "left_the_clinic",
        "Left the clinic",
        terminal=True,
        meaning="The patient is with another clinic, and is not called again.",
    ),
)

dialer = Dialer(
    queues=QUEUES,
    outcomes=OUTCOMES,
    news=[News("results", results.c.created_at, results.c.id, results.c.patient_id)],
    persons=patients,
)
