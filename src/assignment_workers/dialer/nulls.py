"""Find out whether a SQL expression over outer joined tables can be null."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    Case,
    Cast,
    ClauseElement,
    ClauseList,
    ColumnClause,
    False_,
    Grouping,
    Label,
    Null,
    True_,
    TypeClause,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Exists

_NEVER = {
    operators.is_,
    operators.is_not,
    operators.is_distinct_from,
    operators.is_not_distinct_from,
}
_ONE_IS_ENOUGH = {"coalesce", "greatest", "least"}
"""SQL functions that are null only if all their arguments are null."""

Columns = frozenset[Any]


def may_be_null(expression: ClauseElement, known: Columns = frozenset()) -> bool:
    """Return True if the SQL expression may be null; False if it is certainly not null.

    Every column may be null, because its row may be missing, except the columns `known`. An
    expression that this function cannot analyse counts as nullable.
    """
    found = _of_leaf(expression, known)
    return _of_whole(expression, known) if found is None else found


def _of_leaf(expression: ClauseElement, known: Columns) -> bool | None:
    """Return True if an expression may be null, False if it cannot be; None if its parts decide.

    Only the kind of the expression itself is examined. For example, an `EXISTS` cannot be null. A
    column may be null unless it is in `known`, the columns that are not null. An `AND` gives None,
    because its parts decide.
    """
    match expression:
        case Null():
            return True
        case True_() | False_() | Exists():
            return False
        case BindParameter():
            return expression.value is None and not expression.required
        case ColumnClause(is_literal=True):
            begin = str(expression.name)[:1]
            return begin != "'" and not begin.isdecimal()
        case ColumnClause():
            return expression not in known
        case BinaryExpression() if expression.operator in _NEVER:
            return False
    return None


def _of_whole(expression: ClauseElement, known: Columns) -> bool:
    match expression:
        case BooleanClauseList():
            return _of_list(expression, known)
        case UnaryExpression() | Grouping() | Label():
            return _any([expression.element], known)
        case Case():
            branches = [value for _, value in expression.whens]
            return expression.else_ is None or _any((*branches, expression.else_), known)
        case FunctionElement():
            return _of_function(expression, known)
        case BinaryExpression() | Cast() | ClauseList():
            parts = [each for each in expression.get_children() if not _is_type(each)]
            return _any(parts, known)
        case _:
            return True


def _of_list(expression: BooleanClauseList, known: Columns) -> bool:
    """Return True if the result of an AND or OR may be null.

    `known`: the columns that are not null. A part of the AND or OR may test an expression x for
    null. If x is null, `x IS NULL OR …` is true, and `x IS NOT NULL AND …` is false, whatever the
    other parts are. The other parts matter only if x is not null. So x counts as not null in them.
    """
    ruled = operators.is_ if expression.operator is operators.or_ else operators.is_not
    found = [
        each.left
        for each in expression.clauses
        if isinstance(each, BinaryExpression)
        and each.operator is ruled
        and isinstance(each.right, Null)
    ]
    return _any(expression.clauses, known | frozenset(found))


def _of_function(function: FunctionElement[Any], known: Columns) -> bool:
    name = str(getattr(function, "name", "")).lower()
    arguments = list(function.clauses)
    if name == "count":
        return False
    if name in _ONE_IS_ENOUGH:
        return all(may_be_null(each, known) for each in arguments)
    return name == "nullif" or _any(arguments, known)


def _is_type(part: object) -> bool:
    return isinstance(part, TypeClause)


def _any(expressions: Iterable[object], known: Columns) -> bool:
    return any(
        not isinstance(each, ClauseElement) or may_be_null(each, known) for each in expressions
    )
