"""docs/calling-rules.md says what is so: the settings, that each example is taken, the rules' names."""

from __future__ import annotations

import re

import pytest

from assignment_workers.assignment.calling import calling_rules, numbers_of, policies_of
from assignment_workers.policy.calling import CallingRules
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.settings import Settings
from tests.support.root import ROOT

PAGE = (ROOT / "docs" / "calling-rules.md").read_text()
ROWS = dict(re.findall(r"^\| `(ASSIGNMENT_WORKERS_\w+)` \| `([^`]*)` \|", PAGE, re.MULTILINE))
CALLING = re.compile(r"_(CALLING|CALLS_PER|CALL_COOLDOWN|ATTEMPTS|OFFER_GAP)")


def test_every_calling_rule_has_its_row() -> None:
    there = {str(field.alias) for field in Settings.model_fields.values()}
    assert set(ROWS) == {name for name in there if CALLING.search(name)}


@pytest.mark.parametrize("variable", ROWS)
def test_each_example_is_taken_and_none_is_on_without_it(variable: str) -> None:
    hours = {"ASSIGNMENT_WORKERS_CALLING_HOURS": ROWS["ASSIGNMENT_WORKERS_CALLING_HOURS"]}
    without = {} if variable in hours else hours
    plain, with_it = (
        (calling_rules(settings, loaded().policies), numbers_of(settings).reader)
        for given in (without, without | {variable: ROWS[variable]})
        for settings in [Settings.from_environment(given)]
    )
    assert plain != with_it
    assert calling_rules(Settings.from_environment({}), loaded().policies) == CallingRules()


def test_it_names_every_rule_that_they_add() -> None:
    rules = {
        rule.name
        for policy in policies_of(loaded(), Settings.from_environment(ROWS)).values()
        for rule in policy.rules
    }
    before = {rule.name for policy in loaded().policies.values() for rule in policy.rules}
    assert len(rules - before) > 3
    assert {each for each in rules - before if f"`{each}`" not in PAGE} == set()
