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

    absent: it does not exist. deployed: it is as in the dialer in production. target: it is as in
    the dialer's draft of a later schema. hybrid: it is partly like both. ours: it is as this
    release needs it. unknown: it is none of these; such a table is reported and not changed.
    """

    ABSENT = "absent"
    DEPLOYED = "deployed"
    TARGET = "target"
    HYBRID = "hybrid"
    OURS = "ours"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """A difference between a table and its form in the schema `than`.

    `than` is deployed (in production), target (a draft of the dialer) or ours.

    `aspect` is column, type, null, default, unique, foreign key, index or kind. `what` names the
    columns concerned, or for the aspect kind the table or the setting. `expected` is None if the
    schema lacks what was found, `found` if the table lacks what was expected.
    """

    than: str
    aspect: str
    what: str
    expected: str | None
    found: str | None


@dataclass(frozen=True)
class Inspected:
    """A table and its classification, the verdict.

    `needed`: True if this release runs only if the table is `ours` (see `TableVerdict`) or, for a
    queue table, does not exist.
    """

    table: str
    verdict: TableVerdict
    needed: bool
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Blocker:
    """Rows of one kind in one table that a migration has to decide about.

    `what` describes the kind. `count`, the number of these rows, is None if the database role has
    no right to read the table.
    """

    table: str
    what: str
    count: int | None


@dataclass(frozen=True)
class Obstacle:
    """A reason for which `schema migrate` refuses to begin, and the remedy for the operator."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Inspection:
    """The result of inspecting a database before a migration.

    `revision` is that of the schema `assignment` (None: it does not exist), `needs` the revision
    that this release needs. `blockers` count rows that the migration has to decide about.
    `obstacles` are the reasons for which a migration would refuse to begin if the same database
    role ran it. `notes` are information and stop nothing.
    """

    revision: str | None
    needs: str
    tables: tuple[Inspected, ...]
    blockers: tuple[Blocker, ...]
    obstacles: tuple[Obstacle, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """True if this release can run on the database without a migration."""
        return self.revision == self.needs and all(
            each.verdict is TableVerdict.OURS
            or (each.table in QUEUE_TABLES.values() and each.verdict is TableVerdict.ABSENT)
            for each in self.tables
            if each.needed
        )

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as a dictionary of JSON values."""
        return {"is_ours": self.is_ours, **asdict(self)}
