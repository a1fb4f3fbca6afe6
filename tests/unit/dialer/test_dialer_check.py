"""A `dialerconfig.py` is checked: each mistake is one line with the dialer queue and the rule."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    case,
    column,
    create_engine,
    exists,
    func,
    not_,
    null,
    or_,
    select,
)

from assignment_workers.dialer import (
    IN_CRM,
    Action,
    Claim,
    Dialer,
    Outcome,
    Person,
    PersonId,
    Persons,
    Queue,
    Rule,
    RuleEffect,
    Score,
    fact_table,
)
from assignment_workers.dialer.check import problems, unread
from assignment_workers.dialer.loading import load, read
from assignment_workers.dialer.nulls import may_be_null
from assignment_workers.dialer.template import TEMPLATE
from assignment_workers.dialers import claims
from assignment_workers.errors import UsageError
from assignment_workers.policy.dialer import differences
from assignment_workers.policy.process_dialer import loaded, use
from assignment_workers.policy.rules import FIRST, LAST, READY_MADE, completed
from assignment_workers.settings import Settings

ENABLED = Rule("disabled", Person.is_enabled.is_(True), means="disabled in the CRM")
RECALLS = Queue("recalls", "Recalls", rules=[ENABLED])
REACHED = Outcome("reached", "Reached")


def dialer(queue: Queue = RECALLS, outcome: Outcome = REACHED) -> Dialer:
    return Dialer(queues=[queue], outcomes=[outcome])


def ruled(holds: Any, **values: Any) -> Dialer:
    """A dialer with one rule that has this condition."""
    rule = Rule(**{"name": "mine", "holds": holds, "means": "a reason"} | values)
    return dialer(replace(RECALLS, rules=[rule]))


BASE = Dialer(
    queues=[
        replace(RECALLS, conversion="booked", order=[Person.created_at]),
        Queue("results", "Results", rules=[]),
    ],
    outcomes=[REACHED, Outcome("no_answer", "No answer", retried=True)],
)


def with_first(**values: Any) -> Dialer:
    return replace(BASE, queues=[replace(BASE.queues[0], **values), BASE.queues[1]])


DIFFERENT: dict[str, tuple[Dialer, list[str]]] = {
    "words alone": (with_first(title="Others", rules=[replace(ENABLED, means="off")]), []),
    "a condition": (
        with_first(rules=[replace(ENABLED, holds=Person.is_enabled.is_not(False))]),
        ["queue recalls: rule disabled"],
    ),
    "a value in a condition": (
        with_first(
            rules=[replace(ENABLED, holds=func.coalesce(Person.phone_number == "1", False))]
        ),
        ["queue recalls: rule disabled"],
    ),
    "a kind": (
        with_first(rules=[replace(ENABLED, kind=RuleEffect.CONVERTED)]),
        ["queue recalls: rule disabled"],
    ),
    "an order": (with_first(order=[Person.created_at.desc()]), ["queue recalls: order"]),
    "a conversion": (with_first(conversion="done"), ["queue recalls: conversion"]),
    "a rule less": (
        with_first(rules=[]),
        ["queue recalls: order of rules", "queue recalls: rule disabled is gone"],
    ),
    "a dialer queue more": (
        replace(BASE, queues=[*BASE.queues, Queue("more", "More", rules=[ENABLED])]),
        ["the order of dialer queues", "queue more is new"],
    ),
    "a dialer queue less": (
        replace(BASE, queues=[BASE.queues[0]]),
        ["the order of dialer queues", "queue results is gone"],
    ),
    "an outcome": (
        replace(BASE, outcomes=[REACHED, replace(BASE.outcomes[1], score=1)]),
        ["outcome no_answer"],
    ),
    "an outcome's title": (
        replace(BASE, outcomes=[replace(REACHED, title="There"), BASE.outcomes[1]]),
        [],
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_two_dialers_differ_in_is_named(what: str) -> None:
    other, parts = DIFFERENT[what]
    assert differences(BASE.digests, other.digests) == parts


def test_a_digest_is_the_same_in_each_process() -> None:
    command = "from assignment_workers.dialers import claims; print(claims.dialer.digests)"
    said = [
        subprocess.run(
            [sys.executable, "-c", command],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said == [f"{claims.dialer.digests}\n"] * 2


MISTAKES: dict[str, Callable[[], Dialer]] = {
    "queues: at least one Queue": lambda: Dialer(queues=[], outcomes=[REACHED]),
    "outcomes: at least one Outcome": lambda: Dialer(queues=[RECALLS], outcomes=[]),
    "queues: a list of Queue, not a Queue": lambda: Dialer(
        queues=RECALLS,  # type: ignore[arg-type]
        outcomes=[REACHED],
    ),
    "queues, number 2: a str, not a Queue": lambda: Dialer(
        queues=[RECALLS, "more"],  # type: ignore[list-item]
        outcomes=[REACHED],
    ),
    "queues: recalls is defined 2 times": lambda: Dialer(
        queues=[RECALLS, RECALLS], outcomes=[REACHED]
    ),
    "outcomes: reached is defined 2 times": lambda: Dialer(
        queues=[RECALLS], outcomes=[REACHED, REACHED]
    ),
    "queue Re calls: the name 'Re calls' is not up to": lambda: dialer(
        replace(RECALLS, name="Re calls")
    ),
    "queue recalls: title is missing": lambda: dialer(replace(RECALLS, title=" ")),
    "queue recalls: rules: disabled is defined 2 times": lambda: dialer(
        replace(RECALLS, rules=[ENABLED, ENABLED])
    ),
    "queue recalls: rules, number 1: a function, not a Rule": lambda: dialer(
        replace(RECALLS, rules=[lambda: None])  # type: ignore[list-item]
    ),
    "queue recalls: conversion_needs: rule disabled is none of its rules": lambda: dialer(
        replace(RECALLS, rules=[], conversion_needs=[ENABLED])
    ),
    "queue recalls: conversion 'Done!': a name is": lambda: dialer(
        replace(RECALLS, conversion="Done!")
    ),
    "queue recalls: calling_hours 'nine to five': 'nine to five': days and hours": lambda: dialer(
        replace(RECALLS, calling_hours="nine to five")
    ),
    "queue recalls: calling_hours 'mon 09:00-17:00,\\ntue 09:00-17:00': a text of one": lambda: (
        dialer(replace(RECALLS, calling_hours="mon 09:00-17:00,\ntue 09:00-17:00"))
    ),
    "queue recalls: calling_hours 9: a text": lambda: dialer(
        replace(RECALLS, calling_hours=9)  # type: ignore[arg-type]
    ),
    "queue recalls: holidays 'Mars': no calendar 'Mars'": lambda: dialer(
        replace(RECALLS, holidays="Mars")
    ),
    "queue recalls: size_limit 0: a whole number from 1": lambda: dialer(
        replace(RECALLS, size_limit=0)
    ),
    "queue recalls: size_limit True: a whole number": lambda: dialer(
        replace(RECALLS, size_limit=True)
    ),
    "queue recalls: rule mine: means is missing": lambda: ruled(
        Person.is_enabled.is_(True), means=""
    ),
    "queue recalls: rule mine: kind 'gone' is none of converted": lambda: ruled(
        Person.is_enabled.is_(True), kind="gone"
    ),
    "queue recalls: rule mine: holds is a bool, not a SQL expression": lambda: ruled(True),
    "queue recalls: rule mine: holds is of type BIGINT, not boolean": lambda: ruled(Person.id),
    "queue recalls: rule mine: holds may be null": lambda: ruled(Person.is_enabled),
    "queue recalls: rule mine: uses now(), another value": lambda: ruled(
        func.coalesce(Person.created_at < func.now(), False)
    ),
    "queue recalls: rule mine: reads the table claims outside of exists": lambda: ruled(
        Claim.status.is_(None)
    ),
    "queue recalls: rule mine: until is given": lambda: ruled(
        Person.is_enabled.is_(True), until=Score.next_call_after
    ),
    "queue recalls: rule closed: the name is that of a rule": lambda: ruled(
        Person.is_enabled.is_(True), name="closed"
    ),
    "queue recalls: order, expression 1: uses random(), another value": lambda: dialer(
        replace(RECALLS, order=[func.random()])
    ),
    "queue recalls: order, expression 2: a int, not a SQL expression": lambda: dialer(
        replace(RECALLS, order=[Score.current_score, 3])  # type: ignore[list-item]
    ),
    "outcome reached: title is missing": lambda: dialer(outcome=Outcome("reached", "")),
    "outcome Reached: the name 'Reached' is not": lambda: dialer(outcome=Outcome("Reached", "R")),
    "outcome reached: score -1: a whole number": lambda: dialer(outcome=replace(REACHED, score=-1)),
    "outcome reached: delay 4: a timedelta": lambda: dialer(
        outcome=replace(REACHED, delay=4)  # type: ignore[arg-type]
    ),
    "outcome reached: delay -1 day": lambda: dialer(
        outcome=replace(REACHED, delay=-timedelta(days=1))
    ),
    "outcome reached: needs_callback is given, but callback": lambda: dialer(
        outcome=replace(REACHED, needs_callback=True)
    ),
    "outcome reached: terminal outcomes take no delay": lambda: dialer(
        outcome=replace(REACHED, terminal=True, callback=True)
    ),
    "action send: means is missing": lambda: dialer(
        outcome=replace(REACHED, actions=(Action("send", ""),))
    ),
    "persons: id_type Float(): a person's id is BigInteger(), Uuid() or Text()": lambda: replace(
        dialer(), persons=Persons(id_type=Float())
    ),
    "persons: a str, not a Persons": lambda: replace(
        dialer(),
        persons="clinic.patients",  # type: ignore[arg-type]
    ),
    "mappings: original is the word for the names": lambda: replace(
        dialer(), mappings={"original": {}}
    ),
    "mappings: people: users: a str, not a Names": lambda: replace(
        dialer(),
        mappings={"people": {"users": "people"}},  # type: ignore[dict-item]
    ),
    "action review: defined 2 times": lambda: dialer(
        outcome=replace(REACHED, actions=(Action("review", "Look at it."),))
    ),
}


@pytest.mark.parametrize("persons", [Persons("patients"), Persons(id_type=Text())])
def test_persons_of_any_form_are_read_from_a_crm_in_another_database(persons: Persons) -> None:
    assert list(unread(replace(dialer(), persons=persons))) == []


def test_facts_that_an_external_crm_cannot_give_are_one_line_each() -> None:
    pairs = fact_table(
        "pairs", Column("one", PersonId), Column("other", PersonId), Column("seen", JSON)
    )
    rule = Rule(
        "alone",
        exists(select(1).where(pairs.c.one == Person.id, pairs.c.seen.is_(None))),
        means="m",
    )
    seen, several = unread(dialer(replace(RECALLS, rules=[rule])))
    assert seen.startswith("table pairs: column seen: JSON() is not read from a CRM in another")
    assert several.startswith(
        "table pairs: several columns of type PersonId (one, other), of which"
    )


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line_that_names_where_it_is(said: str) -> None:
    found = list(problems(MISTAKES[said]()))
    assert [each for each in found if each.startswith(said)], found
    assert all("\n" not in each for each in found)


def test_the_packaged_dialer_and_that_of_a_new_file_have_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "dialerconfig.py"
    file.write_text(TEMPLATE)
    assert list(problems(claims.dialer)) == []
    assert list(problems(read(file))) == []


def test_a_file_saved_twice_within_a_second_is_read_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "dialerconfig.py"
    for name in ("east", "west"):
        file.write_text(TEMPLATE.replace('"people"', f'"{name}"'))
        os.utime(file, (1_800_000_000, 1_800_000_000))
        assert [queue.name for queue in read(file).queues] == [name]
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = Pers\n", ", line 2: NameError: name 'Pers' is not defined"),
        ("x = (\n", ", line 1: SyntaxError: '(' was never closed"),
        ("x = 1\n", ": defines no `dialer`, an object Dialer("),
        ("import no_such_module\n", ", line 1: ModuleNotFoundError: No module named"),
        (
            "from assignment_workers.dialer import Queue\n\nQueue('a', colour=3)\n",
            ", line 3: TypeError: Queue.__init__() got an unexpected keyword",
        ),
        (
            TEMPLATE.replace('"People to call"', '""'),
            ": queue people: title is missing",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "dialerconfig.py"
    file.write_text(text)
    settings = Settings.from_environment({"ASSIGNMENT_WORKERS_DIALER_CONFIG": str(file)})
    before = loaded()
    with pytest.raises(UsageError) as refused:
        load(settings)
    assert str(refused.value).startswith(f"{file}{said}")
    assert "\n" not in str(refused.value)
    assert loaded() is before


def test_the_configured_file_goes_before_that_of_the_folder_and_that_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {name: TEMPLATE.replace('"people"', f'"{name}"') for name in ("here", "named")}
    try:
        assert load(Settings.from_environment({})) is claims.dialer
        (tmp_path / "dialerconfig.py").write_text(texts["here"])
        assert [each.name for each in load(Settings.from_environment({})).queues] == ["here"]
        (tmp_path / "other.py").write_text(texts["named"])
        named = Settings.from_environment({"ASSIGNMENT_WORKERS_DIALER_CONFIG": "other.py"})
        assert [each.name for each in load(named).queues] == ["named"]
        missing = Settings.from_environment({"ASSIGNMENT_WORKERS_DIALER_CONFIG": "no.py"})
        with pytest.raises(UsageError, match=r"DIALER_CONFIG='no.py': there is no such file"):
            load(missing)
    finally:
        use(claims.dialer)


@given(placed=some.lists(some.sampled_from([*READY_MADE.values(), ENABLED]), unique=True))
def test_no_queue_can_leave_out_a_rule_that_every_queue_has(placed: list[Any]) -> None:
    found = completed(placed)
    assert {each.name for each in found} == {*READY_MADE, *(each.name for each in placed)}
    assert len({each.name for each in found}) == len(found)
    kinds = [each.kind is RuleEffect.RESTING for each in found]
    assert kinds == sorted(kinds)  # resting ones last
    for group in (placed, [each for each in (*FIRST, *LAST) if each not in placed]):
        kept = [each for each in found if each in group]
        assert kept == sorted(
            kept, key=lambda each: (each.kind is RuleEffect.RESTING, group.index(each))
        )


def test_a_rule_s_position_is_the_queue_s_choice() -> None:
    first = [each.name for each in completed([ENABLED, IN_CRM])]
    assert first.index("disabled") < first.index("not_in_crm")


FACTS = Table("facts", MetaData(), Column("a", Boolean), Column("b", Boolean), Column("n", Integer))
A, B, N = FACTS.c

LEAVES = some.sampled_from(
    [A, B, N > 1, N == 3, null(), A.is_(None), B.is_not(None), A.is_(True), N.is_distinct_from(B)]
)


def grown(inner: some.SearchStrategy[Any]) -> some.SearchStrategy[Any]:
    pairs = some.tuples(inner, inner)
    return (
        pairs.map(lambda each: and_(*each))
        | pairs.map(lambda each: or_(*each))
        | inner.map(not_)
        | pairs.map(lambda each: func.coalesce(*each))
        | inner.map(lambda each: func.coalesce(each, False))
        | pairs.map(lambda each: case((each[0], each[1])))
        | pairs.map(lambda each: case((each[0], each[1]), else_=each[0]))
        | inner.map(lambda each: or_(A.is_(None), each))
        | inner.map(lambda each: and_(N.is_not(None), each))
        | inner.map(lambda each: exists(select(1).where(each)))
    )


@pytest.fixture(scope="module")
def rows() -> Any:
    """A database that has every combination of null and values of `FACTS`."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        FACTS.metadata.create_all(connection)
        connection.execute(
            FACTS.insert(),
            [
                {"a": a, "b": b, "n": n}
                for a in (None, True, False)
                for b in (None, True, False)
                for n in (None, 1, 3)
            ],
        )
        yield connection
    engine.dispose()


@given(expression=some.recursive(LEAVES, grown, max_leaves=8))
def test_an_expression_that_passes_is_never_null(
    rows: Any, expression: ColumnElement[bool]
) -> None:
    if not may_be_null(expression):
        found = select(func.count()).select_from(FACTS).where(expression.is_(None))
        assert rows.execute(found).scalar_one() == 0


def test_usual_ways_to_write_a_rule_pass() -> None:
    for each in (
        or_(A.is_(None), A),
        and_(A.is_not(None), A),
        func.coalesce(A, False),
        func.coalesce(func.lower(column("x")), "") != "",
        A.is_(True),
        ~exists(select(1).where(A)),
    ):
        assert not may_be_null(each), each


def test_the_packaged_dialer_s_rules_stand_in_this_order() -> None:
    """The first broken rule is the one that is reported, so their order is an interface."""
    person = [
        "not_in_crm",
        "disabled",
        "opted_out",
        "quarantined",
        "all_claims_cancelled",
        "closed",
    ]
    behind = ["in_other_queue", "inactive", "do_not_contact", "number_unread", "number_unclear"]
    resting = ["cooling_down", "too_new", "promised"]
    assert {
        name: [rule.name for rule in each.rules] for name, each in loaded().policies.items()
    } == {
        "unsigned_users": [*person, "signed", *behind, *resting],
        "outstanding_requests": [
            *person,
            "unsigned",
            "requirements_completed",
            *behind,
            *resting,
        ],
    }
