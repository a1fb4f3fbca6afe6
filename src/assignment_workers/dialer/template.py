"""The text of a new `dialerconfig.py`: one dialer queue to begin with."""

from __future__ import annotations

TEMPLATE = '''"""The dialer of this call centre: its dialer queues, their rules, and the outcomes.

`assignment-workers dialer check` checks this file; every process refuses to start on a wrong one.
A change takes effect when the processes are restarted.
"""

from datetime import timedelta

from assignment_workers.dialer import Dialer, Outcome, Person, Queue, Rule, Score

HOUR = timedelta(hours=1)

# A rule is a SQLAlchemy expression over the facts: Person, the CRM's row, and Score, the row of the
# person's calls so far. It is true or false, never null: `.is_(True)` makes null false. Every
# dialer queue also has the ready-made rules: the do-not-contact list, calling hours, and others;
# `assignment-workers dialer show` lists them.
enabled = Rule("disabled", Person.is_enabled.is_(True), means="disabled in the CRM")

# The people of a dialer queue are those who meet its rules, the first in its order first. A person
# who meets the rules of several dialer queues belongs to the first of them.
people = Queue(
    "people",
    "People to call",
    rules=[enabled],
    order=[Score.current_score, Score.created_at],
    # First values of operational settings; operators change them while the system runs:
    # calling_hours="mon-fri 09:00-17:00", holidays="GB-ENG", size_limit=1_000,
)

# Agents see the outcomes in this order. A score makes the next call later than those of people with
# a lower one; nobody is called again before the delay has passed.
outcomes = [
    Outcome("reached", "Reached", delay=24 * HOUR, success=True, meaning="They were reached."),
    Outcome(
        "no_answer",
        "No answer",
        score=1,
        delay=4 * HOUR,
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
    Outcome(
        "do_not_contact",
        "Do not contact",
        terminal=True,
        needs_notes=True,
        meaning="They asked not to be called again.",
    ),
]

dialer = Dialer(queues=[people], outcomes=outcomes)
'''
