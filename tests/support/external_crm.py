"""A CRM in another database: its tables as a mapping names them, and what a test changes there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    make_url,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.pool import NullPool

from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import Claim, ClaimRequirement, CrmUser
from assignment_workers.schema.engine import driver_url

MINUTE = DateTime().with_variant(mysql.DATETIME(fsp=3), "mysql")


class OtherCrm:
    """The CRM's side: who may write there. `url` is what our side is told."""

    def __init__(self, url: str, mapping: str) -> None:
        self.url = url
        self.name = mapping
        self.declared = loaded().external_facts(mapping, {})
        address = make_url(url)
        if address.get_backend_name() in {"mysql", "mariadb"}:
            address = address.set(drivername="mysql+pymysql")
        else:
            address = driver_url(url)
        self.engine: Engine = create_engine(address, poolclass=NullPool)
        metadata = MetaData()
        models: tuple[type[CrmBase], ...] = (CrmUser, Claim, ClaimRequirement)
        self.tables = {model: self._table(model, metadata) for model in models}
        metadata.create_all(self.engine)

    def _table(self, model: type[CrmBase], metadata: MetaData) -> Table:
        types: dict[type[Any], Any] = {int: BigInteger, bool: self._flag, str: String(255)}
        types[datetime] = MINUTE
        source = self.declared.source(model.__tablename__)
        columns = [
            Column(
                source.columns[name],
                types[model.__table__.c[name].type.python_type],
                primary_key=name == "id",
                autoincrement=False,
                index=name in {"user_id", "claim_id"},
            )
            for name in source.columns
        ]
        return Table(source.of, metadata, *columns)

    def column(self, model: type[CrmBase], name: str) -> str:
        """The CRM's name of our column."""
        return self.declared.source(model.__tablename__).columns[name]

    @property
    def _flag(self) -> Any:
        """The second CRM says Y and N; MySQL's boolean is 0 or 1."""
        return Boolean() if self.name == "original" else String(1)

    def add(self, model: type[CrmBase], rows: Sequence[dict[str, Any]]) -> None:
        """New rows, named by our columns."""
        if rows:
            with self.engine.begin() as connection:
                named = [self._named(model, row) for row in rows]
                connection.execute(self.tables[model].insert(), named)

    def change(self, model: type[CrmBase], number: int | str, **values: Any) -> None:
        """Other values for a row, by our columns."""
        of = self.tables[model]
        key = of.c[self.column(model, "id")]
        with self.engine.begin() as connection:
            changed = connection.execute(
                of.update().where(key == number).values(self._named(model, values))
            )
            assert changed.rowcount == 1

    def write(self, model: type[CrmBase], column: str, values: Mapping[int, Any]) -> None:
        """Another value in one column of each of these rows, by id, all together."""
        of = self.tables[model]
        key = of.c[self.column(model, "id")]
        change = of.update().where(key == bindparam("row"))
        change = change.values({self.column(model, column): bindparam("value")})
        with self.engine.begin() as connection:
            connection.execute(change, [{"row": n, "value": each} for n, each in values.items()])

    def remove(self, model: type[CrmBase], number: int | str) -> None:
        """One row less."""
        of = self.tables[model]
        key = of.c[self.column(model, "id")]
        with self.engine.begin() as connection:
            assert connection.execute(of.delete().where(key == number)).rowcount == 1

    def sign(self, user: int) -> None:
        """The user has signed."""
        self.change(CrmUser, user, current_signature_file_id="a file")

    def cancel(self, claim: int) -> None:
        """A claim is over, in whatever case the CRM writes it."""
        self.change(Claim, claim, status="Cancelled")

    def settle(self, requirement: str) -> None:
        """Nothing is needed any more."""
        self.change(ClaimRequirement, requirement, status="DONE")

    def _named(self, model: type[CrmBase], row: dict[str, Any]) -> dict[str, Any]:
        return {self.column(model, name): self._said(each) for name, each in row.items()}

    def _said(self, value: Any) -> Any:
        if isinstance(value, bool) and self.name != "original":
            return "Y" if value else "N"
        if isinstance(value, datetime) and value.tzinfo:
            return value.astimezone(UTC).replace(tzinfo=None)
        return value
