"""Many rows in one statement, whatever their number: they travel as one JSON parameter.

The statement's text never changes, so it is compiled and prepared once; a list of values would make
a new statement for each length.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import TableValuedAlias, bindparam, column, exists, func, select
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from assignment_workers.schema.base import Instant, NaiveInstant, sql_text


def rows(parameter: str = "rows", /, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """The parameter of this name, a list of objects, as a table with these columns.

    A missing key is null.
    """
    source = func.jsonb_to_recordset(bindparam(parameter, type_=JSONB))
    return source.table_valued(
        *(column(name, type_) for name, type_ in columns.items())
    ).render_derived(name="given", with_types=True)


def insert_rows(
    model: type[DeclarativeBase],
    *columns: InstrumentedAttribute[Any],
    parameter: str = "rows",
    unless: InstrumentedAttribute[Any] | None = None,
) -> Insert:
    """Insert the parameter of this name into these columns of the table of `model`.

    Times are instants in every row, also where the table keeps them in UTC without a zone. A row
    whose value of the name of `unless` stands in that column is left out.
    """
    naive = {each.key for each in columns if isinstance(each.type, NaiveInstant)}
    types = {each.key: Instant if each.key in naive else each.type for each in columns}
    given = rows(parameter, **types)
    values = select(
        *(
            func.timezone(sql_text("UTC"), given.c[each.key])
            if each.key in naive
            else given.c[each.key]
            for each in columns
        )
    )
    if unless is not None:
        values = values.where(~exists().where(unless == given.c[unless.key]))
    return insert(model).from_select([each.key for each in columns], values)
