"""docs/crm.md says what is so: settings and their defaults, what is read, jobs, events, figures."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from assignment_workers.assignment.crm import external_crm, mirror
from assignment_workers.assignment.pools import discover
from assignment_workers.assignment.transaction import EventKind
from assignment_workers.dialers.claims import MAPPINGS, dialer
from assignment_workers.settings import Settings
from assignment_workers.telemetry import CRM_OPEN, CRM_READS, CRM_SECONDS
from tests.support.root import ROOT

PAGE = (ROOT / "docs" / "crm.md").read_text()
SETTINGS = {
    found[1]: (found[2], found[3])
    for found in re.finditer(r"^\| `(\w*CRM_\w+)` \| (.*?) \| `(.*?)` \|", PAGE, re.MULTILINE)
}
PLAIN = Settings.from_environment({})


def test_every_setting_of_the_crm_has_its_row() -> None:
    named = {str(field.alias) for field in Settings.model_fields.values()}
    assert set(SETTINGS) == {name for name in named if "CRM" in name}


@pytest.mark.parametrize("variable", SETTINGS)
def test_each_default_and_each_example_is_taken(variable: str) -> None:
    default, example = SETTINGS[variable]
    assert Settings.from_environment({variable: example}) != PLAIN
    given = {variable: default.strip("`")} if default.startswith("`") else {}
    assert Settings.from_environment(given) == PLAIN


def test_it_names_what_is_read_and_no_more() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    read = {table: set(re.findall(r"`(\w+)`", columns)) for table, columns in rows}
    sources = dialer.external_facts("original", {}).sources
    assert read == {each.name: set(each.types) for each in sources}
    assert all(f"`{name}`" in PAGE for name in MAPPINGS)


def test_its_jobs_events_and_figures_are_those_of_the_code() -> None:
    for name in (mirror.READING, "queue.discover", "queue.reconcile", "user.place"):
        assert f"`{name}`" in PAGE
    for event in (EventKind.DISCOVERED, EventKind.POOL_CHANGED):
        assert f"`{event}`" in PAGE
    for figure in (CRM_SECONDS, CRM_READS, CRM_OPEN):
        (told,) = figure.describe()
        assert f"`{told.name}" in PAGE


def test_its_times_are_those_of_the_code() -> None:
    assert f"After {external_crm.FAILURES} failures" in PAGE
    assert f"left alone for {external_crm.OPEN_SECONDS:g} s" in PAGE
    assert f"younger than {mirror.FRESH.total_seconds():g} s" in PAGE
    assert timedelta(minutes=10) == discover.OVERLAP
    assert "up to 10\n  minutes before the watermark" in PAGE
