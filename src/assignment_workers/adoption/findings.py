"""The results of an inspection of a database."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from assignment_workers.adoption.shapes import (
    QUEUE_TABLES,
)


class TableVerdict(StrEnum):
    """The classification of a table.

    ours: as this version needs it. unknown: reported and left alone.
    """

    ABSENT = "absent"
    DEPLOYED = "deployed"
    TARGET = "target"
    HYBRID = "hybrid"
    OURS = "ours"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """A difference between a table and its form in `than` (deployed, target or ours).

    `aspect` is column, type, null, default, unique, foreign key, index or kind. `expected` or
    `found` is None for a thing that is absent.
    """

    than: str
    aspect: str
    what: str
    expected: str | None
    found: str | None


@dataclass(frozen=True)
class Inspected:
    """An inspected table. `needed`: this version cannot run unless the table is ours."""

    table: str
    verdict: TableVerdict
    needed: bool
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Blocker:
    """Rows that a migration has to decide about. `count` is None if the role may not read them."""

    table: str
    what: str
    count: int | None


@dataclass(frozen=True)
class Obstacle:
    """A reason for which `schema migrate` refuses to begin, and its remedy."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Inspection:
    """An inspected database: the revision of our schema (None: absent), its tables and rows.

    `obstacles` are those of the role that inspected. `notes` do not affect whether it can be
    migrated.
    """

    revision: str | None
    needs: str
    tables: tuple[Inspected, ...]
    blockers: tuple[Blocker, ...]
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """True if this version can run on the database as it is."""
        return self.revision == self.needs and all(
            each.verdict is TableVerdict.OURS
            or (each.table in QUEUE_TABLES.values() and each.verdict is TableVerdict.ABSENT)
            for each in self.tables
            if each.needed
        )

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as a dictionary, for programs."""
        return {"is_ours": self.is_ours, **asdict(self)}
