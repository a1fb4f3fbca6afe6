"""Determine the state of each table of a dialer's database, before a migration. Changes nothing.

A table may be as in the dialer in production, as in the dialer's draft of a later schema, as this
release needs it, or unknown. The migration then adds what is missing, or refuses to begin.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql

from assignment_workers.adoption.blockers import blockers
from assignment_workers.adoption.catalogue import Found, plain_default, relations_of, revision_of
from assignment_workers.adoption.dependents import notes
from assignment_workers.adoption.findings import Difference, Inspected, Inspection, TableVerdict
from assignment_workers.adoption.preflight import obstacles
from assignment_workers.adoption.shapes import (
    ADDED,
    AGENT_COLUMNS,
    DEPLOYED,
    DISTINGUISHING_COLUMNS,
    LEGACY_CALL_QUEUE,
    OTHERS,
    QUEUE_TABLES,
    READ,
    TARGET,
    Column,
    Shape,
    is_readable,
)
from assignment_workers.adoption.waits import open_transactions
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.errors import CrmUnavailable
from assignment_workers.schema.crm import OPTIONAL, CrmUser
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.migrate import OUR_VIEW, head


def inspect(connection: Connection, crm: Crm | None) -> Inspection:
    """Inspect the database, in the transaction of `connection`. A read-only role is enough.

    `crm`: the external CRM; None if the CRM is in this database. The rows that a migration has to
    decide about are counted: each queue table is scanned once for each kind of such rows, and each
    other table of the dialer once.
    """
    relations = relations_of(connection)
    tables = [_queue_table(name, relations.get(name)) for name in QUEUE_TABLES.values()]
    tables += [
        _dialer_table(table, relations.get(table.name)) for table in Agent.metadata.sorted_tables
    ]
    tables += [_other(name, relations.get(name)) for name in OTHERS]
    tables += _crm(connection, crm)
    live = {
        each.table: relations[each.table]
        for each in tables
        if each.table in DEPLOYED
        and each.verdict in (TableVerdict.DEPLOYED, TableVerdict.TARGET, TableVerdict.HYBRID)
    }
    return Inspection(
        revision=revision_of(connection),
        needs=head(),
        tables=tuple(tables),
        blockers=tuple(blockers(connection, live, relations)),
        obstacles=tuple(obstacles(connection, tables, relations)),
        notes=(*notes(connection, list(live)), *(open_transactions(connection) if live else ())),
    )


def _queue_table(name: str, found: Found | None) -> Inspected:
    if found is None:
        return Inspected(name, TableVerdict.ABSENT, needed=True)
    if found["kind"] == "v" and found["comment"] == OUR_VIEW:
        return Inspected(name, TableVerdict.OURS, needed=True)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(name, found, needed=True)
    shape: Shape = found["shape"]
    deployed, target = DEPLOYED[name], TARGET[name]
    to_deployed = tuple(_differences(shape, deployed, "deployed"))
    to_target = tuple(_differences(shape, target, "target"))
    if not _is_readable(shape):
        return Inspected(
            name, TableVerdict.UNKNOWN, needed=True, differences=to_deployed + to_target
        )
    if not _distinguishing(to_deployed, target):
        return Inspected(name, TableVerdict.DEPLOYED, needed=True, differences=to_deployed)
    if not _distinguishing(to_target, deployed):
        return Inspected(name, TableVerdict.TARGET, needed=True, differences=to_target)
    return Inspected(name, TableVerdict.HYBRID, needed=True, differences=to_deployed + to_target)


def _is_readable(shape: Shape) -> bool:
    """Return True if the queue table has the columns that a migration reads, in suitable types."""
    return any(name in shape.columns for name in AGENT_COLUMNS) and all(
        (found := shape.columns.get(name)) is not None and is_readable(found.type, wanted.type)
        for name, wanted in READ.items()
    )


def _distinguishing(differences: Iterable[Difference], other: Shape) -> list[Difference]:
    """Return those of `differences` that prove that a table does not have the form of schema A.

    A dialer's database has one of two schemas: the one in production, or the draft of a later one.
    Here the two are called A and B, in either order. `differences`: the differences between the
    table as it was found and the table's form in A. `other`: the table's form in B.

    There are two proofs. First, the table lacks a column that A has. Second, the table has a
    column, type or key that B has and A has not. A column, type or key that neither A nor B has
    proves nothing: it only shows that somebody has changed the table. Any other difference, such as
    one in an index, proves nothing either.
    """
    return [
        each
        for each in differences
        if (each.aspect == "column" and each.found is None)
        or (each.aspect != "index" and each.found is not None and _is_of(other, each))
    ]


def _is_of(shape: Shape, difference: Difference) -> bool:
    column = shape.columns.get(difference.what)
    match difference.aspect:
        case "column":
            return column is not None
        case "type":
            return column is not None and column.type == difference.found
        case "unique":
            return tuple(difference.what.split(", ")) in shape.unique
        case "foreign key":
            return tuple(difference.what.split(" -> ")) in shape.foreign_keys
        case _:
            return False


def _dialer_table(table: Table, found: Found | None) -> Inspected:
    """Inspect one of the dialer's tables that this system uses too, such as `callbacks`.

    The queue tables are not among them. `table`: the table as this release needs it. `found`: the
    table in the database; None: it does not exist. The result has a verdict on the table, for
    example that it is as in the dialer in production, or as this release needs it (see
    `TableVerdict`). The result also has the differences between `found` and `table`. Anything that
    only `found` has, such as a further column, is ignored.
    """
    if found is None:
        return Inspected(table.name, TableVerdict.ABSENT, needed=True)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(table.name, found, needed=True)
    shape: Shape = found["shape"]
    differences = tuple(
        each for each in _differences(shape, _modelled(table), "ours") if each.expected is not None
    )
    absent = {each.what for each in differences if each.aspect == "column"}
    missing = absent - ADDED.get(table.name, frozenset())
    of_deployed = DISTINGUISHING_COLUMNS.get(table.name, (frozenset(), frozenset()))[0]
    if missing - of_deployed or not all(
        is_readable(each.found or "", each.expected or "")
        for each in differences
        if each.aspect == "type"
    ):
        verdict = TableVerdict.UNKNOWN
    elif missing:
        verdict = TableVerdict.TARGET if missing == of_deployed else TableVerdict.HYBRID
    elif absent or any(
        each.aspect in ("default", "unique") and each.found is None for each in differences
    ):
        verdict = TableVerdict.DEPLOYED
    else:
        verdict = TableVerdict.OURS
    return Inspected(table.name, verdict, needed=True, differences=differences)


def _modelled(table: Table) -> Shape:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    columns = {}
    for column in table.columns:
        default = getattr(column.server_default, "arg", None)
        columns[column.name] = Column(
            _type(column.type.compile(dialect).lower()),
            null=bool(column.nullable),
            default=None if default is None else plain_default(_quoted(default)),
        )
    return Shape(
        columns,
        unique=frozenset((column.name,) for column in table.columns if column.unique),
        indexes=frozenset(
            tuple(column.name for column in index.columns)
            for index in table.indexes
            if not index.unique
        ),
    )


def _quoted(default: object) -> str:
    """Return a server default in the form that PostgreSQL prints: a plain string gets quotes."""
    plain = not isinstance(default, str) or default.isdigit()
    return str(default) if plain else f"'{default}'"


def _type(name: str) -> str:
    if name.startswith("timestamp(3)"):
        return "timestamp(3) without time zone"
    return name.replace("varchar", "character varying")


def _other(name: str, found: Found | None) -> Inspected:
    if found is None:
        return Inspected(name, TableVerdict.ABSENT, needed=False)
    if found["kind"] == "v" and found["comment"] == OUR_VIEW:
        return Inspected(name, TableVerdict.OURS, needed=False)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(name, found, needed=False)
    shape: Shape = found["shape"]
    if name == "call_queue":
        differences = tuple(
            each
            for each in _differences(shape, LEGACY_CALL_QUEUE, "deployed")
            if each.aspect not in ("index", "unique", "foreign key")
        )
        verdict = TableVerdict.UNKNOWN if differences else TableVerdict.DEPLOYED
        return Inspected(name, verdict, needed=False, differences=differences)
    deployed, target = DISTINGUISHING_COLUMNS[name]
    has = shape.columns.keys()
    if deployed <= has and not target & has:
        return Inspected(name, TableVerdict.DEPLOYED, needed=False)
    if target <= has and not deployed & has:
        return Inspected(name, TableVerdict.TARGET, needed=False)
    differences = tuple(
        Difference("deployed", "column", column, "there", None) for column in sorted(deployed - has)
    ) + tuple(
        Difference("target", "column", column, "there", None) for column in sorted(target - has)
    )
    return Inspected(name, TableVerdict.HYBRID, needed=False, differences=differences)


def _crm(connection: Connection, crm: Crm | None) -> Iterable[Inspected]:
    """Inspect the tables or views of the CRM that this system reads.

    Columns that this system does not read are ignored. The tables of an external CRM are inspected
    under the names in its mapping. The tables of a CRM may be in another database, which a
    migration does not change. So `needed` is False in every result, and no verdict on a table of
    the CRM stops a migration.
    """
    if crm is not None:
        yield from _crm_elsewhere(crm)
        return
    found: dict[str, set[str]] = defaultdict(set)
    for row in connection.execute(_CRM_COLUMNS, {"schema": CrmUser.metadata.schema}):
        found[row.name].add(row.column)
    for table in CrmUser.metadata.sorted_tables:
        name, has = f"{table.schema}.{table.name}", found.get(table.name)
        if has is None:
            yield Inspected(name, TableVerdict.ABSENT, needed=False)
            continue
        missing = tuple(
            Difference("ours", "column", column, str(wanted), None)
            for column, wanted in _modelled(table).columns.items()
            if column not in has and column not in OPTIONAL
        )
        verdict = TableVerdict.UNKNOWN if missing else TableVerdict.OURS
        yield Inspected(name, verdict, needed=False, differences=missing)


def _crm_elsewhere(crm: Crm) -> Iterable[Inspected]:
    try:
        lacking = crm.lacking()
    except CrmUnavailable as error:
        trouble = Difference("ours", "kind", "CRM_DATABASE_URL", "a CRM that answers", str(error))
        yield Inspected("the CRM", TableVerdict.UNKNOWN, needed=False, differences=(trouble,))
        return
    for name, columns in lacking.items():
        missing = tuple(Difference("ours", "column", each, "there", None) for each in columns or ())
        if columns is None:
            verdict = TableVerdict.ABSENT
        else:
            verdict = TableVerdict.UNKNOWN if missing else TableVerdict.OURS
        yield Inspected(f"the CRM's {name}", verdict, needed=False, differences=missing)


def _not_a_table(name: str, found: Found, *, needed: bool) -> Inspected:
    kind = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(
        found["kind"], "no table"
    )
    return Inspected(
        name,
        TableVerdict.UNKNOWN,
        needed=needed,
        differences=(Difference("deployed", "kind", name, "a table", kind),),
    )


def _differences(found: Shape, expected: Shape, than: str) -> Iterable[Difference]:
    for name in sorted(found.columns.keys() | expected.columns.keys()):
        has, wants = found.columns.get(name), expected.columns.get(name)
        if has is None or wants is None:
            yield Difference(
                than,
                "column",
                name,
                None if wants is None else str(wants),
                None if has is None else str(has),
            )
            continue
        if has.type != wants.type:
            yield Difference(than, "type", name, wants.type, has.type)
        if has.null != wants.null:
            yield Difference(
                than,
                "null",
                name,
                "null" if wants.null else "not null",
                "null" if has.null else "not null",
            )
        if has.default != wants.default:
            yield Difference(than, "default", name, wants.default, has.default)
    yield from _sets(than, "unique", found.unique, expected.unique)
    keys = [
        frozenset((f"{column} -> {table}",) for column, table in shape.foreign_keys)
        for shape in (found, expected)
    ]
    yield from _sets(than, "foreign key", keys[0], keys[1])
    yield from _sets(than, "index", found.indexes, expected.indexes)


def _sets(
    than: str, aspect: str, found: frozenset[tuple[str, ...]], expected: frozenset[tuple[str, ...]]
) -> Iterable[Difference]:
    for each in sorted(found ^ expected):
        yield Difference(
            than,
            aspect,
            ", ".join(each),
            "there" if each in expected else None,
            "there" if each in found else None,
        )


_CRM_COLUMNS = text("""
    SELECT c.relname AS name, a.attname AS column
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")
