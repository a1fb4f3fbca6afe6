"""Which schema a database has, table by table: read from the catalogues, nothing changed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects import postgresql

from assignment_workers.adoption.shapes import (
    ADDED,
    AGENT_COLUMNS,
    DEPLOYED,
    LEGACY_CALL_QUEUE,
    OTHERS,
    QUEUE_TABLES,
    STATUSES,
    TARGET,
    TELLING,
    Column,
    Shape,
)
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.migrate import OUR_VIEW, head

Found = Mapping[str, Any]


class Verdict(StrEnum):
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
    verdict: Verdict
    needed: bool
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Blocker:
    """Rows that a migration has to decide about. `count` is None where the role may not read."""

    table: str
    what: str
    count: int | None


@dataclass(frozen=True)
class Report:
    """A database: the revision of our schema in it (None: not there), tables and blockers."""

    revision: str | None
    needs: str
    tables: tuple[Inspected, ...]
    blockers: tuple[Blocker, ...]

    @property
    def is_ours(self) -> bool:
        """Whether this version can run on it as it is."""
        return self.revision == self.needs and all(
            each.verdict is Verdict.OURS
            or (each.table in QUEUE_TABLES.values() and each.verdict is Verdict.ABSENT)
            for each in self.tables
            if each.needed
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"is_ours": self.is_ours, **asdict(self)}


def inspect(connection: Connection) -> Report:
    """What is deployed. Reads in the connection's transaction; a read-only role is enough.

    Blockers are counted by scanning the queue tables once or twice each.
    """
    relations = _relations(connection)
    tables = [_queue_table(name, relations.get(name)) for name in QUEUE_TABLES.values()]
    tables += [
        _dialer_table(table, relations.get(table.name)) for table in Agent.metadata.sorted_tables
    ]
    tables += [_other(name, relations.get(name)) for name in OTHERS]
    tables += _crm(connection)
    live = {
        each.table: relations[each.table]
        for each in tables
        if each.table in DEPLOYED
        and each.verdict in (Verdict.DEPLOYED, Verdict.TARGET, Verdict.HYBRID)
    }
    return Report(
        revision=_revision(connection),
        needs=head(),
        tables=tuple(tables),
        blockers=tuple(_blockers(connection, live, relations.get("agents"))),
    )


def _queue_table(name: str, found: Found | None) -> Inspected:
    if found is None:
        return Inspected(name, Verdict.ABSENT, needed=True)
    if found["kind"] == "v" and found["comment"] == OUR_VIEW:
        return Inspected(name, Verdict.OURS, needed=True)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(name, found, needed=True)
    shape: Shape = found["shape"]
    to_deployed = tuple(_differences(shape, DEPLOYED[name], "deployed"))
    to_target = tuple(_differences(shape, TARGET[name], "target"))
    if not _telling(to_deployed):
        return Inspected(name, Verdict.DEPLOYED, needed=True, differences=to_deployed)
    if not _telling(to_target):
        return Inspected(name, Verdict.TARGET, needed=True, differences=to_target)
    verdict = (
        Verdict.HYBRID if _is_between(shape, DEPLOYED[name], TARGET[name]) else Verdict.UNKNOWN
    )
    return Inspected(name, verdict, needed=True, differences=to_deployed + to_target)


def _telling(differences: Iterable[Difference]) -> list[Difference]:
    """Without indexes: those change how fast a table is, not what it means."""
    return [each for each in differences if each.aspect != "index"]


def _is_between(found: Shape, deployed: Shape, target: Shape) -> bool:
    """Whether each part of it is of one of the two schemas and what both have is there."""
    shared = deployed.columns.keys() & target.columns.keys()
    return (
        shared <= found.columns.keys()
        and any(name in found.columns for name in AGENT_COLUMNS)
        and all(
            any(
                _parts_between(column, shape.columns[name], shape.columns[name])
                for shape in (deployed, target)
                if name in shape.columns
            )
            or (
                name in shared
                and _parts_between(column, deployed.columns[name], target.columns[name])
            )
            for name, column in found.columns.items()
        )
        and found.unique <= deployed.unique | target.unique
        and found.foreign_keys <= deployed.foreign_keys | target.foreign_keys
    )


def _parts_between(found: Column, one: Column, other: Column) -> bool:
    return (
        found.type in (one.type, other.type)
        and found.null in (one.null, other.null)
        and found.default in (one.default, other.default)
    )


def _dialer_table(table: Table, found: Found | None) -> Inspected:
    """One of the tables that we share with the dialer: more columns than ours do no harm."""
    if found is None:
        return Inspected(table.name, Verdict.ABSENT, needed=True)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(table.name, found, needed=True)
    shape: Shape = found["shape"]
    differences = tuple(
        each for each in _differences(shape, _modelled(table), "ours") if each.expected is not None
    )
    telling = _telling(differences)
    absent = {each.what for each in telling if each.aspect == "column"}
    missing = absent - ADDED.get(table.name, frozenset())
    of_deployed = TELLING.get(table.name, (frozenset(), frozenset()))[0]
    if any(each.aspect == "type" for each in telling) or missing - of_deployed:
        verdict = Verdict.UNKNOWN
    elif missing:
        verdict = Verdict.TARGET if missing == of_deployed else Verdict.HYBRID
    elif absent or any(each.aspect in ("default", "unique") for each in telling):
        verdict = Verdict.DEPLOYED
    else:
        verdict = Verdict.OURS
    return Inspected(table.name, verdict, needed=True, differences=differences)


def _modelled(table: Table) -> Shape:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    columns = {}
    for column in table.columns:
        default = getattr(column.server_default, "arg", None)
        columns[column.name] = Column(
            _type(column.type.compile(dialect).lower()),
            null=bool(column.nullable),
            default=None if default is None else _default(_quoted(default)),
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
    """A server default as PostgreSQL prints it: one that is given as a plain string is quoted."""
    plain = not isinstance(default, str) or default.isdigit()
    return str(default) if plain else f"'{default}'"


def _type(name: str) -> str:
    if name.startswith("timestamp(3)"):
        return "timestamp(3) without time zone"
    return name.replace("varchar", "character varying")


def _other(name: str, found: Found | None) -> Inspected:
    if found is None:
        return Inspected(name, Verdict.ABSENT, needed=False)
    if found["kind"] == "v" and found["comment"] == OUR_VIEW:
        return Inspected(name, Verdict.OURS, needed=False)
    if found["kind"] not in ("r", "p"):
        return _not_a_table(name, found, needed=False)
    shape: Shape = found["shape"]
    if name == "call_queue":
        differences = tuple(
            each
            for each in _differences(shape, LEGACY_CALL_QUEUE, "deployed")
            if each.aspect not in ("index", "unique", "foreign key")
        )
        verdict = Verdict.UNKNOWN if differences else Verdict.DEPLOYED
        return Inspected(name, verdict, needed=False, differences=differences)
    deployed, target = TELLING[name]
    has = shape.columns.keys()
    if deployed <= has and not target & has:
        return Inspected(name, Verdict.DEPLOYED, needed=False)
    if target <= has and not deployed & has:
        return Inspected(name, Verdict.TARGET, needed=False)
    differences = tuple(
        Difference("deployed", "column", column, "there", None) for column in sorted(deployed - has)
    ) + tuple(
        Difference("target", "column", column, "there", None) for column in sorted(target - has)
    )
    return Inspected(name, Verdict.HYBRID, needed=False, differences=differences)


def _crm(connection: Connection) -> Iterable[Inspected]:
    """The CRM's tables that are read, tables or views: more columns than those do no harm.

    None is needed here: a CRM may be in a database of its own.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for row in connection.execute(_CRM_COLUMNS, {"schema": CrmUser.metadata.schema}):
        found[row.name].add(row.column)
    for table in CrmUser.metadata.sorted_tables:
        name, has = f"{table.schema}.{table.name}", found.get(table.name)
        if has is None:
            yield Inspected(name, Verdict.ABSENT, needed=False)
            continue
        missing = tuple(
            Difference("ours", "column", column, str(wanted), None)
            for column, wanted in _modelled(table).columns.items()
            if column not in has
        )
        verdict = Verdict.UNKNOWN if missing else Verdict.OURS
        yield Inspected(name, verdict, needed=False, differences=missing)


def _not_a_table(name: str, found: Found, *, needed: bool) -> Inspected:
    kind = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(
        found["kind"], "no table"
    )
    return Inspected(
        name,
        Verdict.UNKNOWN,
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


def _relations(connection: Connection) -> dict[str, dict[str, Any]]:
    """Every relation of interest in `public`: its kind, its comment and its shape."""
    names = [*DEPLOYED, *(table.name for table in Agent.metadata.sorted_tables), *OTHERS]
    found: dict[str, dict[str, Any]] = {}
    for row in connection.execute(_RELATIONS, {"names": names}):
        found[row.name] = {
            "kind": row.kind,
            "comment": row.comment,
            "readable": row.readable,
            "columns": {},
            "unique": set(),
            "foreign_keys": set(),
            "indexes": set(),
        }
    for row in connection.execute(_COLUMNS, {"names": names}):
        found[row.name]["columns"][row.column] = Column(
            row.type, null=not row.required, default=_default(row.default)
        )
    for row in connection.execute(_INDEXES, {"names": names}):
        if row.is_primary:
            continue
        found[row.name]["unique" if row.is_unique else "indexes"].add(tuple(row.columns))
    for row in connection.execute(_KEYS, {"names": names}):
        found[row.name]["foreign_keys"].update((column, row.target) for column in row.columns)
    for each in found.values():
        each["shape"] = Shape(
            each["columns"],
            frozenset(each["unique"]),
            frozenset(each["foreign_keys"]),
            frozenset(each["indexes"]),
        )
    return found


def _default(expression: str | None) -> str | None:
    """A default without casts; the names of the same function are one."""
    if expression is None:
        return None
    plain = re.sub(r"::[a-z ]+(\(\d+\))?(\[\])?", "", expression)
    return "now()" if plain.upper().startswith("CURRENT_TIMESTAMP") else plain


def _revision(connection: Connection) -> str | None:
    if not connection.execute(_MAY_READ_REVISION).scalar():
        return None
    return connection.execute(text("SELECT version_num FROM assignment.alembic_version")).scalar()


def agent_expression(columns: Iterable[str], alias: str) -> str:
    """The agent of a queue row in SQL, whichever of the two columns holds it."""
    names = [f"{alias}.{name}" for name in AGENT_COLUMNS if name in set(columns)]
    return f"coalesce({', '.join(names)})"


def _blockers(
    connection: Connection, live: Mapping[str, Found], agents: Found | None
) -> Iterable[Blocker]:
    counts: dict[str, dict[str, str]] = defaultdict(dict)
    for name, found in live.items():
        columns = found["shape"].columns
        agent = agent_expression(columns, "q")
        there = (
            f"NOT EXISTS (SELECT FROM public.agents a WHERE a.id = {agent})"
            if agents is not None and agents["readable"]
            else "true"
        )
        statuses = ", ".join(f"'{status}'" for status in STATUSES)
        rows = f"SELECT count(*) FROM public.{name} q WHERE"
        counts[name] = {
            "users twice in this queue": (
                f"SELECT count(*) FROM (SELECT FROM public.{name} "
                "GROUP BY user_id HAVING count(*) > 1) twice"
            ),
            "assigned with no agent": f"{rows} q.status = 'assigned' AND {agent} IS NULL",
            "agents that do not exist": f"{rows} {agent} IS NOT NULL AND {there}",
            "statuses outside the vocabulary": f"{rows} q.status NOT IN ({statuses})",
            "positions missing": f"{rows} q.status = 'pending' AND q.queue_position IS NULL",
        }
        if all(column in columns for column in AGENT_COLUMNS):
            one, other = AGENT_COLUMNS
            counts[name]["agent columns that disagree"] = f"{rows} q.{one} <> q.{other}"
    if len(live) == len(QUEUE_TABLES):
        one, other = live
        counts[one]["users in both queues"] = (
            f"SELECT count(DISTINCT q.user_id) FROM public.{one} q "
            f"WHERE EXISTS (SELECT FROM public.{other} o WHERE o.user_id = q.user_id)"
        )
    for name, each in counts.items():
        for what, sql in each.items():
            readable = live[name]["readable"] and (
                what != "users in both queues" or all(other["readable"] for other in live.values())
            )
            count = connection.execute(text(sql)).scalar_one() if readable else None
            yield Blocker(name, what, count)


_OF_INTEREST = (
    "c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public') "
    "AND c.relname = ANY(:names)"
)
_RELATIONS = text(f"""
    SELECT c.relname AS name, c.relkind::text AS kind,
           obj_description(c.oid, 'pg_class') AS comment,
           has_schema_privilege(c.relnamespace, 'USAGE')
           AND has_table_privilege(c.oid, 'SELECT') AS readable
    FROM pg_class c WHERE {_OF_INTEREST} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")
_COLUMNS = text(f"""
    SELECT c.relname AS name, a.attname AS column, a.attnotnull AS required,
           format_type(a.atttypid, a.atttypmod) AS type, pg_get_expr(d.adbin, d.adrelid) AS default
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE {_OF_INTEREST} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")
_CRM_COLUMNS = text("""
    SELECT c.relname AS name, a.attname AS column
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")
_INDEXES = text(f"""
    SELECT c.relname AS name, i.indisunique AS is_unique, i.indisprimary AS is_primary,
           ARRAY(SELECT coalesce(a.attname::text, '(expression)')
                 FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS key(number, place)
                 LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = key.number
                 ORDER BY place) AS columns
    FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid
    WHERE {_OF_INTEREST} AND i.indisvalid AND (i.indpred IS NULL OR NOT i.indisunique)
""")
_KEYS = text(f"""
    SELECT c.relname AS name, t.relname AS target,
           ARRAY(SELECT a.attname::text FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum = ANY(k.conkey)) AS columns
    FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'f'
    JOIN pg_class t ON t.oid = k.confrelid WHERE {_OF_INTEREST}
""")
_MAY_READ_REVISION = text("""
    SELECT has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'assignment' AND c.relname = 'alembic_version'
""")
