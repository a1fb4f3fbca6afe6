"""SQL expressions over facts, evaluated in plain Python: null is None, and has three truth values.

What PostgreSQL makes of a dialer's rules and orders is compared with this.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.sql import elements, functions, operators, selectable

Row = Mapping[str, Any]
Evaluated = Callable[["Scope"], Any]


@dataclass(frozen=True)
class Scope:
    """The rows that the names of an expression stand for, and the tables that it may look into."""

    rows: Mapping[str, Row | None]
    """By table; None: an outer join found no row."""
    tables: Mapping[str, Sequence[Row]]
    now: datetime

    def joined(self, table: str, row: Row) -> Scope:
        return Scope({**self.rows, table: row}, self.tables, self.now)


def plain(expression: Any) -> Evaluated:
    """The expression as a function of a scope. Instants of columns are UTC, without a zone."""
    if hasattr(expression, "__clause_element__"):
        expression = expression.__clause_element__()
    for kind, read in _KINDS:
        if isinstance(expression, kind):
            return read(expression)
    raise NotImplementedError(f"{type(expression).__name__}: {expression}")


def _column(column: elements.ColumnClause[Any]) -> Evaluated:
    if column.is_literal:
        text = str(column.name)
        assert text[0] == text[-1] == "'", text
        return _constant(text[1:-1])
    assert column.table is not None, column
    table, name = str(column.table.name), str(column.name)  # type: ignore[attr-defined]

    def value(scope: Scope) -> Any:
        row = scope.rows[table]
        return None if row is None else row[name]

    return value


def _constant(value: Any) -> Evaluated:
    return lambda _: value


def _parameter(parameter: elements.BindParameter[Any]) -> Evaluated:
    if parameter.key == "now":
        return lambda scope: scope.now.astimezone(UTC).replace(tzinfo=None)
    return _constant(parameter.value)


def _strict(does: Callable[..., Any]) -> Callable[..., Any]:
    """Null, if an argument is null."""
    return lambda *given: None if None in given else does(*given)


def _in(value: Any, among: Sequence[Any]) -> bool | None:
    if value is None:
        return None
    return True if value in among else None if None in among else False


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


_BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    **{
        each: _strict(each)
        for each in (
            *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
            *(operator.add, operator.sub),
        )
    },
    operators.is_: operator.is_,
    operators.is_not: operator.is_not,
    operators.in_op: _in,
    operators.not_in_op: lambda value, among: _not(_in(value, among)),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "coalesce": lambda *given: next((each for each in given if each is not None), None),
    "lower": _strict(str.lower),
    "upper": _strict(str.upper),
    "timezone": _strict(lambda _, naive: naive.replace(tzinfo=UTC)),
}
_AGGREGATES: dict[str, Callable[[Iterable[Any]], Any]] = {"sum": sum, "min": min, "max": max}


def _binary(given: elements.BinaryExpression[Any]) -> Evaluated:
    does, left, right = _BINARY[given.operator], plain(given.left), plain(given.right)
    return lambda scope: does(left(scope), right(scope))


def _together(given: elements.BooleanClauseList) -> Evaluated:
    """Of `and`, one false is false; of `or`, one true is true; else one null is null."""
    decides = given.operator is operators.or_
    parts = [plain(each) for each in given.clauses]

    def value(scope: Scope) -> bool | None:
        found = [part(scope) for part in parts]
        return decides if decides in found else None if None in found else not decides

    return value


def _unary(given: elements.UnaryExpression[Any]) -> Evaluated:
    assert given.operator is operators.inv, given
    inner = plain(given.element)
    return lambda scope: _not(inner(scope))


def _inner(given: Any) -> Evaluated:
    return plain(given.element)


def _list(given: elements.ClauseList) -> Evaluated:
    parts = [plain(each) for each in given.clauses]
    return lambda scope: [part(scope) for part in parts]


def _called(given: functions.FunctionElement[Any]) -> Evaluated:
    does, parts = _FUNCTIONS[given.name], [plain(each) for each in given.clauses]
    return lambda scope: does(*(part(scope) for part in parts))


Matching = Callable[[Scope], Iterable[Scope]]


def _matching(query: Any) -> Matching:
    """Each combination of rows of the query's own tables that meets its conditions."""
    tables = [_rows(each) for each in query.get_final_froms()]
    condition = _constant(True) if query.whereclause is None else plain(query.whereclause)

    def found(scope: Scope) -> Iterable[Scope]:
        scopes = [scope]
        for rows in tables:
            scopes = [wider for each in scopes for wider in rows(each)]
        return filter(condition, scopes)

    return found


def _rows(table: Any) -> Matching:
    if isinstance(table, selectable.Join):
        assert table.onclause is not None
        assert not table.isouter
        left, right, on = _rows(table.left), _rows(table.right), plain(table.onclause)
        return lambda scope: [both for each in left(scope) for both in right(each) if on(both)]
    name = table.name
    return lambda scope: (
        [scope]  # of the enclosing query
        if name in scope.rows
        else [scope.joined(name, row) for row in scope.tables[name]]
    )


def _exists(given: selectable.Exists) -> Evaluated:
    matching = _matching(given.element.element)
    return lambda scope: any(True for _ in matching(scope))


def _scalar(given: selectable.ScalarSelect[Any]) -> Evaluated:
    """The aggregate of one column; null of no row."""
    (shown,) = given.element.selected_columns
    does, part = _AGGREGATES[shown.name], plain(next(iter(shown.clauses)))
    matching = _matching(given.element)

    def value(scope: Scope) -> Any:
        known = [each for each in map(part, matching(scope)) if each is not None]
        return does(known) if known else None

    return value


_KINDS: tuple[tuple[type[Any], Callable[[Any], Evaluated]], ...] = (
    (selectable.Exists, _exists),
    (selectable.ScalarSelect, _scalar),
    (elements.True_, lambda _: _constant(True)),
    (elements.False_, lambda _: _constant(False)),
    (elements.Null, lambda _: _constant(None)),
    (elements.ColumnClause, _column),
    (elements.BindParameter, _parameter),
    (elements.BooleanClauseList, _together),
    (elements.BinaryExpression, _binary),
    (elements.UnaryExpression, _unary),
    (elements.Grouping, _inner),
    (functions.FunctionElement, _called),
    (elements.ClauseList, _list),
)


@dataclass(frozen=True)
class Order:
    """One expression of an order."""

    value: Evaluated
    is_falling: bool

    @classmethod
    def of(cls, expression: Any) -> Order:
        directions = {operators.desc_op: True, operators.asc_op: False}
        modifier = getattr(expression, "modifier", None)
        if modifier is None:
            return cls(plain(expression), is_falling=False)
        return cls(plain(expression.element), directions[modifier])

    def sort(self, scopes: list[tuple[int, Scope]]) -> None:
        """Sort by this, and leave equals as they are: nulls come last, or first if it falls."""

        def key(each: tuple[int, Scope]) -> tuple[bool, Any]:
            value = self.value(each[1])
            return value is None, 0 if value is None else value

        scopes.sort(key=key, reverse=self.is_falling)
