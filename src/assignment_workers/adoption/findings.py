"""What an inspection says of a database."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from assignment_workers.adoption.shapes import (
    QUEUE_TABLES,
)


class TableVerdict(StrEnum):
    """What a table is. ours: as this version needs it. unknown: it is named and left alone."""

    ABSENT = "absent"
    DEPLOYED = "deployed"
    TARGET = "target"
    HYBRID = "hybrid"
    OURS = "ours"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """One thing in which a table is not as `than` (deployed, target or ours) has it.

    `aspect` is column, type, null, default, unique, foreign key, index or kind; None: not there.
    """

    than: str
    aspect: str
    what: str
    expected: str | None
    found: str | None


@dataclass(frozen=True)
class Inspected:
    """A table of the dialer's. `needed`: this version cannot run without it as ours."""

    table: str
    verdict: TableVerdict
    needed: bool
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Blocker:
    """Rows that a migration has to decide about. `count` is None where the role may not read."""

    table: str
    what: str
    count: int | None


@dataclass(frozen=True)
class Obstacle:
    """Something for which `schema migrate` refuses to begin, and what takes it out of the way."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Inspection:
    """A database: the revision of our schema in it (None: not there), tables and what they hold.

    `obstacles` are those of the role that asked. `notes` change nothing of whether it can be done.
    """

    revision: str | None
    needs: str
    tables: tuple[Inspected, ...]
    blockers: tuple[Blocker, ...]
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether this version can run on it as it is."""
        return self.revision == self.needs and all(
            each.verdict is TableVerdict.OURS
            or (each.table in QUEUE_TABLES.values() and each.verdict is TableVerdict.ABSENT)
            for each in self.tables
            if each.needed
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"is_ours": self.is_ours, **asdict(self)}
