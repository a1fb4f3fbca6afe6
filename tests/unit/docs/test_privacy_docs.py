"""docs/privacy.md names every table, and the settings of retention."""

from __future__ import annotations

import re

from assignment_workers.schema.base import Base, DialerBase
from assignment_workers.settings import Settings
from tests.support.root import ROOT

PAGE = (ROOT / "docs" / "privacy.md").read_text()


def test_it_names_every_table_with_its_retention() -> None:
    rows = re.findall(r"^\| (`.*`[^|]*)\|[^|]+\|[^|]+\|$", PAGE, re.MULTILINE)
    named = {name.removeprefix("public.") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    ours = {table.name for table in Base.metadata.sorted_tables}
    dialers = {table.name for table in DialerBase.metadata.sorted_tables} - {"agents"}
    assert ours | dialers <= named, "a table without its retention"


def test_the_settings_that_it_names_are_there() -> None:
    aliases = {field.alias for field in Settings.model_fields.values()}
    named = set(re.findall(r"ASSIGNMENT_WORKERS_[A-Z_]+", PAGE))
    assert len(named) == 4
    assert named <= aliases
