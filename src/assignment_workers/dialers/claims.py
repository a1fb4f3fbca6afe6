"""The dialer of a claims company: sign people up, then collect what their claims need.

In this module, a claim is a row of the CRM: the claim of a person against a lender. A person
without a signature belongs to `unsigned_users`. Once signed, a person belongs to
`outstanding_requests` while a claim waits for something that a call can obtain. Scores, delays and
limits are those of the original dialer (docs/original-dialer.md, sections 3 and 4).
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, and_, exists, false, func, join, not_, or_, select

from assignment_workers.dialer import (
    IN_CRM,
    NOT_CLOSED,
    NOT_OPTED_OUT,
    NOT_QUARANTINED,
    RESTED,
    Action,
    Claim,
    ClaimRequirement,
    Dialer,
    Names,
    News,
    Outcome,
    Person,
    Queue,
    Rule,
    RuleEffect,
    Score,
    settled,
    word,
)

# -- rules --------------------------------------------------------------------------------------

NOT_BY_A_CALL = (
    "signature",
    "vehicle_registration",
    "cfa",
    "solicitor_letter_of_authority",
    "letter_of_authority",
)
"""Types of requirements that do not put a person into the dialer queue `outstanding_requests`.

A requirement is something that a person's CRM claim needs, such as a document. A call to the person
cannot obtain what a requirement of one of these types asks for.
"""

BASE_REQUIREMENT = "base requirement for claim."
"""A value of the CRM's column `claim_requirement_reason`, compared case-sensitively.

The column has the reason for which a claim has the requirement. No user is called for a requirement
of type `id_document` with this reason. For requirements of other types, the reason does not matter.
"""


def is_cancelled() -> ColumnElement[bool]:
    """Return the SQL condition that the status of a CRM claim is `cancelled`, ignoring case."""
    return func.coalesce(func.lower(Claim.status), word("")) == word("cancelled")


def has_claim(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the SQL condition that a user has at least one CRM claim that meets `condition`.

    A CRM claim is a row of the CRM: the claim of the user against a lender. `condition`: a SQL
    condition on the columns of that row.
    """
    return exists(select(1).select_from(Claim).where(Claim.user_id == Person.id, condition))


def is_signed() -> ColumnElement[bool]:
    """Return the SQL condition that a user has signed: the CRM has the user's signature file."""
    return func.coalesce(Person.current_signature_file_id, word("")) != word("")


def wants_something() -> ColumnElement[bool]:
    """Return the SQL condition that a call can obtain something that a user's CRM claim requires.

    The condition holds if a requirement of the claim, such as a document, is pending, and is of a
    kind for which users are called. A CRM claim is the claim of a user against a lender. Cancelled
    claims do not count.
    """
    excused = and_(
        ClaimRequirement.type == word("id_document"),
        ClaimRequirement.claim_requirement_reason == BASE_REQUIREMENT,
    )
    return exists(
        select(1)
        .select_from(ClaimRequirement)
        .join(Claim, Claim.id == ClaimRequirement.claim_id)
        .where(
            Claim.user_id == Person.id,
            not_(is_cancelled()),
            func.upper(ClaimRequirement.status) == word("PENDING"),
            func.coalesce(ClaimRequirement.type, word("")).not_in(map(word, NOT_BY_A_CALL)),
            func.coalesce(excused, false()).is_(False),
        )
    )


ENABLED = Rule("disabled", Person.is_enabled.is_(True), means="disabled in the CRM")
# A person without any claim is called.
CLAIM_ALIVE = Rule(
    "all_claims_cancelled",
    or_(not_(has_claim(is_cancelled())), has_claim(not_(is_cancelled()))),
    means="all their claims are cancelled",
)
UNSIGNED = Rule("signed", not_(is_signed()), RuleEffect.CONVERTED, "they have signed")
SIGNED = Rule("unsigned", is_signed(), means="they have not signed yet", suspicious=True)
WANTING = Rule(
    "requirements_completed",
    wants_something(),
    RuleEffect.CONVERTED,
    "nothing is pending that a call can obtain",
)
PERSON = (IN_CRM, ENABLED, NOT_OPTED_OUT, NOT_QUARANTINED, CLAIM_ALIVE, NOT_CLOSED)
TIMES = (RESTED, settled(timedelta(hours=2)))

# -- dialer queues ------------------------------------------------------------------------------

ORDER = (Score.current_score.asc(), Score.created_at.desc())
"""The order of the users in a dialer queue: by call score, the lowest first. Among users with equal
scores, the one whose score row is the newest comes first.
"""

QUEUES = (
    Queue(
        "unsigned_users",
        "Unsigned users",
        rules=(*PERSON, UNSIGNED, *TIMES),
        conversion="signature_obtained",
        order=ORDER,
        ages=True,
    ),
    Queue(
        "outstanding_requests",
        "Outstanding requests",
        rules=(*PERSON, SIGNED, WANTING, *TIMES),
        conversion="requirements_completed",
        conversion_needs=(SIGNED,),
        order=ORDER,
    ),
)

# -- outcomes -----------------------------------------------------------------------------------

SEND_SMS = Action("send_sms", "Send the user a text message.")
SEND_MAGIC_LINK = Action("send_magic_link", "Send the user a link that signs them in.")
FLAG_NUMBER = Action("flag_number", "Report the wrong phone number to the system that stores it.")
HOUR = timedelta(hours=1)

OUTCOMES = (
    Outcome(
        "no_answer",
        "No answer",
        score=1,
        delay=4 * HOUR,
        keeps=False,
        retried=True,
        review_after=2,
        meaning="Nobody answered.",
    ),
    Outcome(
        "call_back",
        "Call back",
        score=0,
        delay=24 * HOUR,
        success=True,
        callback=True,
        needs_callback=True,
        actions=(SEND_SMS,),
        meaning="The user asked to be called at another time.",
    ),
    Outcome(
        "missed_call",
        "Missed call",
        callback=True,
        needs_callback=True,
        actions=(SEND_SMS,),
        review_after=0,
        meaning="The user called and nobody took the call.",
    ),
    Outcome(
        "completed_form",
        "Completed the form",
        score=0,
        delay=24 * HOUR,
        success=True,
        capped=True,
        converts=True,
        actions=(SEND_SMS,),
        meaning="The user completed the form during the call.",
    ),
    Outcome(
        "going_to_complete",
        "Going to complete",
        score=0,
        delay=72 * HOUR,
        success=True,
        callback=True,
        actions=(SEND_MAGIC_LINK, SEND_SMS),
        review_unpromised=True,
        meaning="The user will complete the form soon.",
    ),
    Outcome(
        "might_complete",
        "Might complete",
        score=2,
        delay=24 * HOUR,
        callback=True,
        actions=(SEND_SMS,),
        review_unpromised=True,
        meaning="The user may complete the form.",
    ),
    Outcome(
        "hung_up",
        "Hung up",
        score=2,
        delay=4 * HOUR,
        review_after=2,
        meaning="The user hung up.",
    ),
    Outcome(
        "bad_number",
        "Bad number",
        score=50,
        delay=672 * HOUR,
        keeps=False,
        actions=(FLAG_NUMBER,),
        review_after=0,
        meaning="The number is wrong or out of service.",
    ),
    Outcome(
        "no_claim",
        "No claim",
        score=200,
        terminal=True,
        capped=True,
        meaning="The user has no claim.",
    ),
    Outcome(
        "not_interested",
        "Not interested",
        score=100,
        delay=672 * HOUR,
        review_after=1,
        meaning="The user does not want it.",
    ),
    Outcome(
        "do_not_contact",
        "Do not contact",
        score=200,
        terminal=True,
        capped=True,
        needs_notes=True,
        meaning="The user asked not to be called again.",
    ),
)

REQUIREMENTS = News(
    "requirements",
    ClaimRequirement.created_at,
    ClaimRequirement.id,
    Claim.user_id,
    joined=join(ClaimRequirement, Claim, Claim.id == ClaimRequirement.claim_id),
)
"""The CRM table of requirements of claims against lenders, such as a missing document.

A job looks in this table for new rows, because a new requirement may move its user to the dialer
queue `outstanding_requests`.
"""

MAPPINGS = {
    "people": {
        "users": Names(
            "people",
            {
                "id": "people_id",
                "is_enabled": "enabled_flag",
                "phone_number": "telephone",
                "current_signature_file_id": "signature_ref",
                "created_at": "registered_at",
            },
        ),
        "claims": Names("cases", {"id": "case_id", "user_id": "people_id", "status": "case_state"}),
        "claim_requirements": Names(
            "case_documents",
            {
                "id": "document_id",
                "claim_id": "case_id",
                "type": "document_kind",
                "status": "document_state",
                "claim_requirement_reason": "reason_text",
                "created_at": "asked_at",
            },
        ),
    }
}
"""Mappings for external CRMs, by name. The setting `crm_mapping` chooses one.

A mapping translates our names of tables and columns to the names in an external CRM.
"""

dialer = Dialer(queues=QUEUES, outcomes=OUTCOMES, news=[REQUIREMENTS], mappings=MAPPINGS)
