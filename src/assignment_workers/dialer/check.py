"""The checks of a dialer's definition that need no database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import Boolean, ColumnElement, Table
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql import visitors
from sqlalchemy.sql.functions import FunctionElement

from assignment_workers.dialer.nulls import may_be_null
from assignment_workers.policy.calling import read_holidays, read_week
from assignment_workers.policy.dialer import DECLARED, Dialer, Queue
from assignment_workers.policy.facts import NEW_PERSONS, Names, News, Persons, kind_of
from assignment_workers.policy.outcomes import REVIEW, Action, Outcome
from assignment_workers.policy.rules import READY_MADE, SETTLED, ReadyRule, Rule, RuleEffect
from assignment_workers.schema.base import NaiveInstant
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import UserCallScore

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
IDENTIFIER = "up to 40 small letters, digits and _, first a letter"
UNSTEADY = {
    *("now", "current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"),
    *("clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday", "random"),
    *("gen_random_uuid", "uuidv4", "uuidv7", "nextval"),
}
"""SQL functions whose value depends on the time, on chance or on earlier calls. Rules must not use
them.
"""
SCORE_AT_MOST = 10**6
SIZE_AT_MOST = 10**8
TEXT_AT_MOST = 500
DELAY_AT_MOST = timedelta(days=10 * 365)


def problems(dialer: Dialer) -> Iterator[str]:
    """Yield each error in a dialer's definition as a line of text.

    The line names the wrong part, such as the dialer queue and the rule.
    """
    yield from _of_the_whole(dialer)
    for queue in _of_type(dialer.queues, Queue):
        for problem in _of_queue(queue):
            yield f"queue {queue.name}: {problem}"
    for outcome in _of_type(dialer.outcomes, Outcome):
        for problem in _of_outcome(outcome):
            yield f"outcome {outcome.name}: {problem}"


def unread(dialer: Dialer) -> Iterator[str]:
    """Yield an error for each table or column whose declaration does not suit an external CRM.

    Only the tables and columns that the dialer reads are checked. There are three errors. First, a
    column has an unsupported type. Second, a table other than that of persons has no way from a row
    to the row's person. Such a way is a column of type `PersonId`, or a foreign key to a table that
    has such a way. Third, a table has several columns of type `PersonId`.
    """
    for source in dialer.external_facts(DECLARED, {}).sources:
        table = f"table {source.name}"
        for name, type_ in source.types.items():
            if kind_of(type_) is None:
                yield f"{table}: column {name}: {type_!r} is not read from {_ELSEWHERE}"
        if source.name == CrmUser.__tablename__:
            continue
        if source.link is None:
            yield (
                f"{table}: neither a PersonId nor a ForeignKey leads to a person, as for"
                f" {_ELSEWHERE}"
            )
        if len(source.person_columns) > 1:
            yield (
                f"{table}: several columns of type PersonId"
                f" ({', '.join(sorted(source.person_columns))}), of which one is read from"
                f" {_ELSEWHERE}"
            )


_ELSEWHERE = "a CRM in another database (CRM_DATABASE_URL)"


def _of_the_whole(dialer: Dialer) -> Iterator[str]:
    yield from _list_of("queues", dialer.queues, Queue)
    yield from _list_of("outcomes", dialer.outcomes, Outcome)
    for what, named in (
        ("queues", _of_type(dialer.queues, Queue)),
        ("outcomes", _of_type(dialer.outcomes, Outcome)),
    ):
        yield from _twice(what, [each.name for each in named])
    actions = [
        action
        for outcome in _of_type(dialer.outcomes, Outcome)
        for action in _of_type(outcome.actions, Action)
    ]
    for action in dict.fromkeys(actions):
        yield from (f"action {action.name}: {said}" for said in _of_action(action))
    yield from (f"persons: {said}" for said in _of_persons(dialer.persons))
    yield from (f"mappings: {said}" for said in _of_mappings(dialer.mappings))
    news = _of_type(dialer.news, News)
    yield from _list_of("news", dialer.news, News, least=0)
    yield from _twice("news", [NEW_PERSONS.name, *(each.name for each in news)])
    for each in news:
        yield from (f"news {each.name}: {said}" for said in _name(each.name))
        if not isinstance(each.created_at.type, NaiveInstant):
            yield f"news {each.name}: created_at is of type {each.created_at.type}, not Time"
    meanings = Counter(action.name for action in dict.fromkeys([*actions, REVIEW]))
    for name, times in meanings.items():
        if times > 1:
            yield f"action {name}: defined {times} times with different meanings"


def _of_persons(persons: object) -> Iterator[str]:
    if not isinstance(persons, Persons):
        yield f"a {type(persons).__name__}, not a Persons"
        return
    if not persons.is_usable:
        yield f"id_type {persons.id_type!r}: a person's id is BigInteger(), Uuid() or Text()"


def _of_mappings(mappings: object) -> Iterator[str]:
    if not isinstance(mappings, Mapping):
        yield f"a {type(mappings).__name__}, not a dict of names by table"
        return
    for word, tables in mappings.items():
        if word == DECLARED:
            yield f"{word} is the word for the names with which the dialer declares its facts"
        for table, names in tables.items() if isinstance(tables, Mapping) else [("", tables)]:
            if not isinstance(names, Names):
                yield f"{word}: {table}: a {type(names).__name__}, not a Names"


def _of_queue(queue: Queue) -> Iterator[str]:
    yield from _name(queue.name)
    yield from _words("title", queue.title)
    if not _is_name(queue.conversion):
        yield f"conversion {queue.conversion!r}: a name is {IDENTIFIER}"
    wrong = list(_list_of("rules", queue.rules, Rule, ReadyRule, least=0))
    yield from wrong
    if wrong:
        return
    yield from _twice("rules", [rule.name for rule in queue.rules])
    for rule in queue.rules:
        yield from (f"rule {rule.name}: {said}" for said in _of_rule(rule))
    for rule in queue.conversion_needs:
        if rule not in queue.rules:
            yield f"conversion_needs: rule {getattr(rule, 'name', rule)} is none of its rules"
    yield from _of_settings(queue)
    for place, each in enumerate(queue.order, start=1):
        for said in _of_order(each):
            yield f"order, expression {place}: {said}"


def _of_settings(queue: Queue) -> Iterator[str]:
    """Yield each error in a dialer queue's calling hours, holidays and size limit."""
    readers: tuple[tuple[str, object, Callable[[str], object]], ...] = (
        ("calling_hours", queue.calling_hours, read_week),
        ("holidays", queue.holidays, read_holidays),
    )
    for name, said, read in readers:
        if said is None:
            continue
        if not isinstance(said, str) or not said.isprintable() or len(said) > TEXT_AT_MOST:
            yield f"{name} {said!r:.80}: a text of one line, at most {TEXT_AT_MOST} letters"
            continue
        try:
            read(said)
        except ValueError as error:
            yield f"{name} {said!r:.80}: {error}"
    limit: object = queue.size_limit
    is_whole = isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= SIZE_AT_MOST
    if limit is not None and not is_whole:
        yield f"size_limit {limit!r}: a whole number from 1 to {SIZE_AT_MOST}"


def _of_rule(rule: Rule | ReadyRule) -> Iterator[str]:
    ready = READY_MADE.get(rule.name)
    if isinstance(rule, ReadyRule) or rule is ready or rule.name == SETTLED:
        return
    yield from _name(rule.name)
    if ready is not None:
        yield "the name is that of a rule that every dialer queue has"
    if rule.kind not in set(RuleEffect):
        yield f"kind {rule.kind!r} is none of {', '.join(map(str, RuleEffect))}"
    yield from _words("means", rule.means)
    holds = _expression(rule.holds)
    if not isinstance(holds, ColumnElement):
        yield f"holds is a {type(holds).__name__}, not a SQL expression"
        return
    if not isinstance(holds.type, Boolean):
        yield f"holds is of type {holds.type}, not boolean"
        return
    yield from _unsteady(holds, "; the time is the parameter NOW")
    yield from _foreign(holds)
    if may_be_null(holds):
        yield (
            "holds may be null where a fact is missing: wrap it, as in"
            " func.coalesce(…, False) or (…).is_(True)"
        )
    if rule.until is not None and rule.kind is not RuleEffect.RESTING:
        yield "until is given, but only a rule of kind resting has an end"


def _of_order(given: object) -> Iterator[str]:
    each = _expression(given)
    if not isinstance(each, ColumnElement):
        yield f"a {type(each).__name__}, not a SQL expression"
        return
    yield from _unsteady(each, ", so the order is not stable")
    yield from _foreign(each)


def _expression(given: object) -> object:
    return given.expression if isinstance(given, InstrumentedAttribute) else given


def _of_outcome(outcome: Outcome) -> Iterator[str]:
    yield from _name(outcome.name)
    yield from _words("title", outcome.title)
    score: object = outcome.score
    if not isinstance(score, int) or not 0 <= score <= SCORE_AT_MOST:
        yield f"score {score!r}: a whole number from 0 to {SCORE_AT_MOST}"
    delay: object = outcome.delay
    if not isinstance(delay, timedelta):
        yield f"delay {delay!r}: a timedelta"
    elif not timedelta(0) <= delay <= DELAY_AT_MOST:
        yield f"delay {delay}: from nothing to ten years"
    if outcome.needs_callback and not outcome.callback:
        yield "needs_callback is given, but callback is not"
    if outcome.terminal and (outcome.callback or outcome.delay):
        yield "terminal outcomes take no delay and no callback: nobody is called again"
    yield from _list_of("actions", outcome.actions, Action, least=0)


def _of_action(action: Action) -> Iterator[str]:
    yield from _name(action.name)
    yield from _words("means", action.means)


def _name(name: object) -> Iterator[str]:
    if not _is_name(name):
        yield f"the name {name!r} is not {IDENTIFIER}"


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _words(what: str, said: object) -> Iterator[str]:
    if not isinstance(said, str) or not said.strip():
        yield f"{what} is missing"
    elif "\n" in said:
        yield f"{what} has more than one line"


def _twice(what: str, names: Iterable[object]) -> Iterator[str]:
    for name, times in Counter(map(str, names)).items():
        if times > 1:
            yield f"{what}: {name} is defined {times} times"


def _list_of(what: str, given: object, *kinds: type, least: int = 1) -> Iterator[str]:
    named = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(given, list | tuple):
        yield f"{what}: a list of {named}, not a {type(given).__name__}"
        return
    if len(given) < least:
        yield f"{what}: at least one {named}"
    for place, each in enumerate(given, start=1):
        if not isinstance(each, kinds):
            yield f"{what}, number {place}: a {type(each).__name__}, not a {named}"


def _of_type(given: Iterable[object], kind: type[T]) -> list[T]:
    if not isinstance(given, list | tuple):
        return []
    return [each for each in given if isinstance(each, kind)]


def _unsteady(expression: ColumnElement[Any], why: str) -> Iterator[str]:
    for each in visitors.iterate(expression):
        if isinstance(each, FunctionElement) and str(getattr(each, "name", "")) in UNSTEADY:
            yield f"uses {each.name}(), another value at each reading{why}"


def _foreign(expression: ColumnElement[Any]) -> Iterator[str]:
    """Yield an error for each table that a SQL expression wrongly reads outside of a subquery.

    The expression is the condition of a rule, or a part of the order of users in a dialer queue.
    It may read the table of persons and the table of scores outside of a subquery, because a person
    has at most one row in each of these two. It may read any other table only in a subquery,
    because a person may have several rows in that table.
    """
    for each in expression._from_objects:  # noqa: SLF001 - SQLAlchemy has no public name for it
        if each not in {CrmUser.__table__, UserCallScore.__table__}:
            name = each.name if isinstance(each, Table) else str(each)
            yield f"reads the table {name} outside of exists(…): a person may have several rows"
