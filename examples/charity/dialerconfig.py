"""The dialer of a charity: pledges, thanks, and three ways in which people stopped giving.

Five dialer queues, each with an order by money or time in place of scores.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    Interval,
    Text,
    exists,
    func,
    literal,
    not_,
    select,
)

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

DAY = timedelta(days=1)
MAJOR = 1_000
"""Pounds in all from which a donor is a major one."""

# -- facts: the tables of crm.sql ---------------------------------------------------------------

donors = Persons(
    of="charity.donors",
    id_type=Text(),
    names={
        "id": "donor_key",
        "phone_number": "telephone",
        "created_at": "joined_at",
        "may_call": "consents_to_calls",
    },
)
may_call = person_column("may_call", Boolean())

DONOR_KEY = {"donor_id": "donor_key"}
gifts = fact_table(
    "gifts",
    Column("id", BigInteger, primary_key=True),
    Column("donor_id", PersonId),
    Column("pounds", Integer),
    Column("created_at", Time),
    Column("is_thanked", Boolean),
    of="charity.gifts",
    names=DONOR_KEY,
)
pledges = fact_table(
    "pledges",
    Column("donor_id", PersonId),
    Column("pounds", Integer),
    Column("state", Text),
    of="charity.pledges",
    names=DONOR_KEY,
)
debits = fact_table(
    "debits",
    Column("donor_id", PersonId),
    Column("cancelled_at", Time),
    of="charity.debits",
    names=DONOR_KEY,
)
guests = fact_table("guests", Column("donor_id", PersonId), of="charity.guests", names=DONOR_KEY)

GIVEN = gifts.c.donor_id == Person.id
LATELY = gifts.c.created_at > NOW - literal(365 * DAY, Interval())
OPEN = (pledges.c.donor_id == Person.id, pledges.c.state == word("open"))
UNTHANKED = (GIVEN, gifts.c.is_thanked.is_(False))
DEBIT = debits.c.donor_id == Person.id


def some(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that a row of the person meets all these conditions."""
    return exists(select(1).where(*conditions))


def total() -> ColumnElement[int]:
    """Return the pounds that the person has given in all."""
    return func.coalesce(select(func.sum(gifts.c.pounds)).where(GIVEN).scalar_subquery(), 0)


# -- dialer queues ------------------------------------------------------------------------------

WILLING = Rule("may_not_call", may_call.is_(True), means="they do not want to be called")

QUEUES = (
    Queue(
        "pledges",
        "Pledges to collect",
        rules=[
            WILLING,
            Rule("paid", some(*OPEN), RuleEffect.CONVERTED, "no pledge of theirs is open"),
        ],
        conversion="pledge_paid",
        order=[select(func.max(pledges.c.pounds)).where(*OPEN).scalar_subquery().desc()],
    ),
    Queue(
        "thanks",
        "Donors to thank",
        rules=[
            WILLING,
            Rule("thanked", some(*UNTHANKED), RuleEffect.CONVERTED, "every gift was thanked for"),
        ],
        conversion="donor_thanked",
        order=[select(func.min(gifts.c.created_at)).where(*UNTHANKED).scalar_subquery()],
    ),
    Queue(
        "major_donors",
        "Major donors who stopped",
        rules=[
            WILLING,
            Rule("not_major", total() >= MAJOR, means="they gave less in all"),
            Rule("gave", not_(some(GIVEN, LATELY)), RuleEffect.CONVERTED, "they gave this year"),
        ],
        conversion="donor_won_back",
        order=[total().desc()],
    ),
    Queue(
        "regular_donors",
        "Regular donors who stopped",
        rules=[
            WILLING,
            Rule("no_debit", some(DEBIT), means="they never gave regularly"),
            Rule(
                "renewed",
                some(DEBIT, debits.c.cancelled_at.is_not(None)),
                RuleEffect.CONVERTED,
                "their direct debit runs",
            ),
        ],
        conversion="debit_renewed",
        order=[select(func.max(debits.c.cancelled_at)).where(DEBIT).scalar_subquery().desc()],
    ),
    Queue(
        "guests",
        "Guests who never gave",
        rules=[
            WILLING,
            Rule("no_guest", some(guests.c.donor_id == Person.id), means="they were no guest"),
            Rule("is_donor", not_(some(GIVEN)), RuleEffect.CONVERTED, "they gave"),
        ],
        conversion="guest_gave",
        order=[Person.created_at],
    ),
)

# -- outcomes -----------------------------------------------------------------------------------

CARD = Action("send_card", "Send a card with thanks.")
LINK = Action("send_link", "Send a link to the page for gifts.")

OUTCOMES = (
    Outcome(
        "gave",
        "Gave",
        delay=180 * DAY,
        success=True,
        converts=True,
        actions=(CARD,),
        meaning="They gave, or paid their pledge.",
    ),
    Outcome(
        "will_give",
        "Will give",
        delay=14 * DAY,
        success=True,
        callback=True,
        actions=(LINK,),
        review_unpromised=True,
        meaning="They want to give soon.",
    ),
    Outcome("thanked", "Thanked", delay=90 * DAY, success=True, meaning="They were thanked."),
    Outcome(
        "no_answer",
        "No answer",
        delay=DAY,
        keeps=False,
        retried=True,
        meaning="Nobody answered.",
    ),
    Outcome(
        "call_back",
        "Call back",
        callback=True,
        needs_callback=True,
        meaning="They asked to be called at another time.",
    ),
    Outcome("not_now", "Not now", delay=180 * DAY, meaning="They cannot give at present."),
    Outcome(
        "remove_me",
        "Remove me",
        terminal=True,
        needs_notes=True,
        meaning="They asked never to be called again.",
    ),
)

dialer = Dialer(
    queues=QUEUES,
    outcomes=OUTCOMES,
    news=[News("gifts", gifts.c.created_at, gifts.c.id, gifts.c.donor_id)],
    persons=donors,
)
