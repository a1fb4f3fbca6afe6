"""The results of inspecting a dialer's database before a migration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from assignment_workers.adoption.shapes import (
    QUEUE_TABLES,
)


class TableVerdict(StrEnum):
    """The state of a table in a dialer's database, compared with the known schemas.

    absent: the table does not exist. deployed: the table is as in the dialer in production. target:
    as in the draft of a later schema by the dialer's authors. hybrid: partly as in production,
    partly as in the draft. ours: as this release needs it. unknown: none of these; such a table is
    reported and not changed.
    """

    ABSENT = "absent"
    DEPLOYED = "deployed"
    TARGET = "target"
    HYBRID = "hybrid"
    OURS = "ours"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """A difference between a table as it was found and the form that a schema requires.

    `than`: the name of that schema: deployed (the dialer's in production), target (a draft of the
    dialer's authors for a later schema) or ours. `aspect`: the part of the table that differs, one
    of `column`, `type`, `null`, `default`, `unique`, `foreign key`, `index` and `kind`. `what`: the
    names of the columns concerned; for a foreign key, also the table that it refers to. `expected`:
    the form in the schema; None: the schema has no such column, default, key or index. `found`: the
    form of the table; None: the table has no such column, default, key or index.

    The aspect `kind` has two uses. First, the object with the table's name is not a table, but for
    example a view; `what` is then that name. Second, the external CRM does not answer, so that its
    tables cannot be compared; `what` is then `CRM_DATABASE_URL`, the setting with the address of
    that CRM, and `found` is the error.
    """

    than: str
    aspect: str
    what: str
    expected: str | None
    found: str | None


@dataclass(frozen=True)
class Inspected:
    """A table with its classification, the verdict.

    `needed`: True if this release can run only when the verdict is `ours` (see `TableVerdict`).
    Exception: if the table is a queue table of the dialer, this release can also run when the
    verdict is `absent`. False: this release can run whatever the verdict is.
    """

    table: str
    verdict: TableVerdict
    needed: bool
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class UndecidedRows:
    """Rows of one kind in one table that a migration has to decide about.

    Such rows do not stop a migration. `what` describes the kind, such as "users twice in this
    queue". `count`, the number of these rows, is None if the database role has no right to read the
    table.
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

    `revision`: the revision of the schema `assignment`; None: the schema does not exist, or the
    role may not read it. `needs`: the revision that this release needs. `obstacles`: the reasons
    for which a migration by the inspecting database role would refuse to begin, such as a missing
    privilege. `blockers`: counts of rows that the migration has to decide about, such as users who
    are twice in a queue table. Despite the name of this field, such rows do not stop a migration.
    `notes`: information for the operator.
    """

    revision: str | None
    needs: str
    tables: tuple[Inspected, ...]
    blockers: tuple[UndecidedRows, ...]
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
