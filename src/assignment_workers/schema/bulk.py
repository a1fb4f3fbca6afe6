"""Pass any number of rows to one statement as a single JSON parameter.

The SQL text is constant, so it is compiled and prepared once. A list of values would make a new
statement for each length.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import TableValuedAlias, bindparam, column, exists, func, select
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.types import TypeEngine

from assignment_workers.schema.base import Instant, NaiveInstant, sql_text


def rows(parameter: str = "rows", /, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Return the statement parameter `parameter`, a JSON list of objects, as a table expression.

    `columns`: the name and type of each column. A key that an object lacks is null.
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
    """Build an INSERT into the table of `model`, with rows from one JSON parameter.

    `columns`: the columns to fill. `parameter`: the parameter's name; its value is a list of
    objects. Each time in a row must have a UTC offset, also for a column that stores UTC without a
    zone. `unless`: a column, of this table or of another, with the same name as one of `columns`. A
    row is left out if the row's value of that name is already stored in the column `unless`. With
    `Forgotten.user_id`, for example, a row is left out if its `user_id` is in the table of
    `Forgotten`.
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
