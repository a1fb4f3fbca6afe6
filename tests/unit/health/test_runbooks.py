"""The runbooks, as they are printed and linked wherever the package is installed."""

from __future__ import annotations

import re

import pytest

from assignment_workers.gateway.dashboard.runbooks import rendered
from assignment_workers.health.runbooks import runbooks


def test_each_runbook_has_a_title_and_a_text_of_its_own() -> None:
    found = runbooks()
    assert len(found) > 20
    assert found["celery-queues"].title == "Celery queues"
    assert all(each.text and "### " not in each.text for each in found.values())


@pytest.mark.parametrize("name", runbooks())
def test_a_printed_runbook_names_no_file_and_no_anchor(name: str) -> None:
    plain = runbooks()[name].plain
    assert ".md" not in plain
    assert "](" not in plain


def test_a_link_to_another_runbook_is_the_command_that_prints_it() -> None:
    assert "Sequencer (`assignment-workers runbook sequencer`)" in runbooks()["celery-queues"].plain


def test_each_link_of_the_page_leads_to_a_place_on_it() -> None:
    page = str(rendered())
    links = set(re.findall(r'href="([^"]*)"', page))
    assert links
    assert {each.removeprefix("#") for each in links} <= set(re.findall(r' id="([^"]*)"', page))
