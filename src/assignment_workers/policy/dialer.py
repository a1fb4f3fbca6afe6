"""The definition of a dialer: its dialer queues, their rules and order, and its outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from hashlib import sha256
from typing import Any

from sqlalchemy import Text
from sqlalchemy.dialects import postgresql

from assignment_workers.policy import rules
from assignment_workers.policy.calling import CallingRules
from assignment_workers.policy.facts import (
    NEW_PERSONS,
    ExternalFacts,
    FactSource,
    Names,
    News,
    Persons,
    sources,
)
from assignment_workers.policy.outcomes import REVIEW, Action, Outcome
from assignment_workers.policy.queues import ORDER, Ordering, Policy
from assignment_workers.policy.rules import Numbers, ReadyRule, Rule, RuleParameters
from assignment_workers.schema.crm import OPTIONAL
from assignment_workers.schema.dialer import UserCallScore

DECLARED = "original"
"""The value of the setting `ASSIGNMENT_WORKERS_CRM_MAPPING` for an external CRM without a mapping.

The tables and columns of such a CRM have the names that the dialer file declares. A dialer file is
the Python file that defines the dialer, for example `dialerconfig.py`.
"""


@dataclass(frozen=True, eq=False)
class Queue:
    """The definition of a dialer queue: its name, its rules, and the order of its users.

    Every dialer queue also has the rules in `rules.READY_MADE`, such as the do-not-contact list and
    calling hours. A queue may name some of them in `rules` to choose their position.
    """

    name: str
    """The dialer queue's name in interfaces and tables: small letters, digits and underscores."""
    title: str
    """The dialer queue's name as agents and operators see it."""
    rules: Sequence[Rule | ReadyRule]
    """The rules in order. If a user breaks several rules, the first of them is reported."""
    conversion: str = "converted"
    """The `conversion_type` of this dialer queue's rows in the table `conversions`.

    A row is stored when a user reaches the goal of the dialer queue: the user breaks all rules with
    the effect `RuleEffect.CONVERTED`. For example, the user has signed and thereby breaks the rule
    that users are unsigned.
    """
    conversion_needs: Sequence[Rule] = ()
    """Rules of this dialer queue that a converted user must still meet.

    A user is converted only if the user breaks all rules with the effect `RuleEffect.CONVERTED` and
    meets all of these rules. Otherwise no conversion is recorded.
    """
    order: Sequence[Ordering] = ()
    """The order of the users, best first.

    Of two users who are equal in this order, the user with the higher user id comes first. If
    `order` is empty, the order is `queues.ORDER`: the user with the lowest score comes first. Of
    users with equal scores, the user with the newest score row comes first. If these rows were
    created at the same time, the higher user id comes first.
    """
    ages: bool = False
    """True if users of this dialer queue age: each week their score is raised by 5.

    A score of 200 or more is not raised. A user with a higher score is called later, so users who
    wait longer are called later. That is intended; it is the rule of the original dialer
    (docs/original-dialer.md, section 4).
    """
    calling_hours: str | None = None
    """The calling hours of this dialer queue, such as `mon-fri 09:00-17:00`.

    `calling_hours`, `holidays` and `size_limit` are initial values of settings that operators can
    change while the system runs; an operator's value takes precedence. None: the value of the
    setting for all dialer queues applies.
    """
    holidays: str | None = None
    """The places whose public holidays count for this dialer queue, such as `GB-ENG, US`.

    A place is a country, or a part of a country. Users in a place are not called on the public
    holidays of this place. The first place also counts for the users in all places that are not
    listed.
    """
    size_limit: int | None = None
    """The greatest number of users in one build of this dialer queue."""

    @property
    def total_order(self) -> tuple[Ordering, ...]:
        """The order of the users, extended so that no two users are equal."""
        return (*self.order, UserCallScore.user_id.desc()) if self.order else ORDER


@dataclass(frozen=True, eq=False)
class Dialer:
    """The dialer queues and outcomes of a call centre.

    A person belongs to the first dialer queue whose rules about CRM facts hold. An agent who
    requests a user without naming a dialer queue is served from the first queue that has a user.
    """

    queues: Sequence[Queue]
    outcomes: Sequence[Outcome]
    """The outcomes of a call, in the order in which agents see them."""
    news: Sequence[News] = ()
    """CRM tables, other than that of persons, whose new rows may move a person to a queue."""
    persons: Persons = field(default_factory=Persons)
    """The CRM's table of persons. The default is `crm.users`, whose ids are integers."""
    mappings: Mapping[str, Mapping[str, Names]] = field(default_factory=dict)
    """Mappings for CRMs whose table and column names differ from those that this dialer declares.

    Each mapping has a key. The setting `ASSIGNMENT_WORKERS_CRM_MAPPING` is the key of the mapping
    to use. A mapping maps the dialer's name for a table to the CRM's names of the table and of its
    columns. A table that a mapping leaves out has the names that the dialer declares.
    """

    @property
    def actions(self) -> dict[str, Action]:
        """The actions by name: those of this dialer's outcomes, and `review`.

        An action is a task for another system after a call. With `review`, an operator has to look
        at the user. `review` is added because it may follow a call although the call's outcome does
        not list it (`Outcome.review_after`, `Outcome.review_unpromised`).
        """
        asked = (action for outcome in self.outcomes for action in outcome.actions)
        return {action.name: action for action in (*asked, REVIEW)}

    @cached_property
    def outcomes_by_name(self) -> dict[str, Outcome]:
        """The outcomes of a call by name."""
        return {outcome.name: outcome for outcome in self.outcomes}

    def overridden(self, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Outcome]:
        """Return all outcomes by name, with `changes` applied.

        `changes`: by outcome, new values of some of `score`, `delay_seconds`, `actions`,
        `review_after`, `review_unpromised`. Raises `ValueError` for an unknown outcome or action,
        and for a delay of a terminal outcome.
        """
        outcomes = dict(self.outcomes_by_name)
        for name, change in changes.items():
            if name not in outcomes:
                raise ValueError(f"no outcome {name!r}; there are {', '.join(outcomes)}")
            given = dict(change)
            if "delay_seconds" in given:
                if outcomes[name].terminal:
                    raise ValueError(f"outcome {name} takes no delay_seconds: it is for good")
                given["delay"] = timedelta(seconds=given.pop("delay_seconds"))
            if "actions" in given:
                given["actions"] = tuple(map(self._action, given["actions"]))
            outcomes[name] = replace(outcomes[name], **given)
        return outcomes

    def _action(self, name: str) -> Action:
        actions = self.actions
        if name not in actions:
            raise ValueError(f"no action {name!r}; there are {', '.join(actions)}")
        return actions[name]

    @property
    def all_news(self) -> tuple[News, ...]:
        """The CRM tables whose new rows may move a person to a queue.

        The CRM's table of persons is the first of them.
        """
        return (NEW_PERSONS, *self.news)

    @property
    def terminal(self) -> tuple[str, ...]:
        """The names of the outcomes after which a user is never offered again."""
        return tuple(outcome.name for outcome in self.outcomes if outcome.terminal)

    @property
    def numbered(self) -> str | None:
        """The type of the CRM's ids of persons, `uuid` or `text`; None if they are integers.

        Our tables need integer ids. If the CRM's ids are no integers, this project assigns an
        integer to each of them and stores that integer instead.
        """
        return self.persons.numbered

    def sources(self, *further: str) -> list[FactSource]:
        """Return the CRM tables that this dialer reads; the table of persons is the first.

        `further`: additional columns of persons, which the settings name.
        """
        own = [each for queue in self.queues for each in queue.rules if isinstance(each, Rule)]
        read = [
            *(each for rule in own for each in (rule.holds, rule.until)),
            *(each for queue in self.queues for each in queue.order),
            *(each for news in self.news for each in (news.created_at, news.key, news.person)),
            *(news.joined for news in self.news),
        ]
        return sources(self.persons, read, further)

    def external_facts(self, mapping: str, optional: Mapping[str, str]) -> ExternalFacts:
        """Return the tables that this dialer reads from a CRM in another database.

        `mapping`: a key of `mappings`; the CRM's tables and columns have the names in that mapping.
        If `mapping` is `original`, they have the names that the dialer file declares. (A dialer
        file is the Python file that defines the dialer, for example `dialerconfig.py`.)
        `optional`: the CRM's names of the persons' columns `country` and `time_zone`, if the CRM
        has them. Raises `KeyError` for an unknown mapping.
        """
        named = {**self.mappings, DECLARED: {}}[mapping]
        persons, *tables = (each.named(named.get(each.name)) for each in self.sources())
        columns = {**persons.columns, **optional}
        types = {**persons.types, **{name: Text() for name in OPTIONAL}}
        persons = replace(persons, columns=columns, types=types)
        return ExternalFacts((persons, *tables), self.numbered)

    @cached_property
    def digests(self) -> dict[str, str]:
        """A hash of each part of the dialer's definition, such as a rule, by the part's name.

        Sequencers store and compare these hashes to notice that two processes use different
        definitions. Texts for people, such as titles, do not count.
        """
        return {part: _digest(said) for part, said in self._parts()}

    def _parts(self) -> Iterator[tuple[str, tuple[object, ...]]]:
        yield "the order of dialer queues", tuple(queue.name for queue in self.queues)
        for queue in self.queues:
            named = f"queue {queue.name}"
            needs = sorted(rule.name for rule in queue.conversion_needs)
            yield named, ()
            yield f"{named}: conversion", (queue.conversion, *needs, queue.ages)
            yield f"{named}: order", tuple(map(_sql, queue.total_order))
            yield f"{named}: order of rules", tuple(rule.name for rule in queue.rules)
            own = (rule for rule in queue.rules if isinstance(rule, Rule))
            for rule in own:
                until = None if rule.until is None else _sql(rule.until)
                said = (_sql(rule.holds), rule.kind.value, until, rule.suspicious)
                yield f"{named}: rule {rule.name}", said
        yield "the order of outcomes", tuple(outcome.name for outcome in self.outcomes)
        for outcome in self.outcomes:
            yield f"outcome {outcome.name}", (replace(outcome, title="", meaning=""),)

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """The policy of each dialer queue by name, without the configured calling rules.

        The policies have no calling hours and no limits on the number of calls and offers.
        """
        return self.under(CallingRules(), Numbers())

    def under(self, calling: CallingRules, numbers: Numbers) -> dict[str, Policy]:
        """Return the policy of each dialer queue by name, with these calling rules.

        `numbers`: the configuration for parsing phone numbers.
        """
        return {queue.name: self._policy(queue, calling, numbers) for queue in self.queues}

    def _policy(self, queue: Queue, calling: CallingRules, numbers: Numbers) -> Policy:
        terms = RuleParameters(queue.name, self.terminal, calling, numbers)
        return Policy(
            queue=queue.name,
            conversion_type=queue.conversion,
            rules=rules.made(queue.rules, terms),
            conversion_needs=frozenset(rule.name for rule in queue.conversion_needs),
            ages=queue.ages,
            order=queue.total_order,
            hours=calling.hours,
            numbers=numbers,
        )


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Compare two definitions of a dialer by the hashes of their parts; return the differences.

    `before` and `after` are values of `Dialer.digests`. There is one line for each part, such as a
    rule, that was added, removed or changed. If a whole dialer queue was added or removed, its
    parts have no lines of their own.
    """
    found = []
    for part in [*after, *(each for each in before if each not in after)]:
        whole, is_part, _ = part.partition(": ")
        if is_part and (whole in before) is not (whole in after):
            continue
        if part not in before:
            found.append(f"{part} is new")
        elif part not in after:
            found.append(f"{part} is gone")
        elif before[part] != after[part]:
            found.append(part)
    return found


def _sql(expression: Ordering) -> tuple[str, str]:
    """Return the SQL text of an expression, and its parameters."""
    compiled = expression.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    return str(compiled), repr(sorted(compiled.params.items()))


def _digest(said: tuple[object, ...]) -> str:
    return sha256(repr(said).encode()).hexdigest()[:12]
