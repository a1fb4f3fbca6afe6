"""Reading assignments: the columns that an answer shows, and who holds whom."""

from __future__ import annotations

from typing import Any

from sqlalchemy import RowMapping

from assignment_workers.assignment.answers import Held
from assignment_workers.schema.base import word
from assignment_workers.schema.tables import Assignment, AssignmentState

ACTIVE = word(AssignmentState.ACTIVE)

HELD_COLUMNS = tuple(getattr(Assignment, name) for name in Held.model_fields)


def held(row: RowMapping | dict[str, Any]) -> Held:
    """The assignment in a row that has `HELD_COLUMNS`.

    Not validated again: the table's types and constraints have.
    """
    return Held.model_construct(**{name: row[name] for name in Held.model_fields})
