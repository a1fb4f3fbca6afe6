"""The servers that a command uses: those that the environment names, or the running stack's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from psycopg.errors import InsufficientPrivilege, InvalidSchemaName, UndefinedColumn, UndefinedTable
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError, ProgrammingError

from assignment_workers.addresses import shown
from assignment_workers.assignment import user_ids
from assignment_workers.assignment.calling import numbers_of, policies_of
from assignment_workers.assignment.crm import fact_views
from assignment_workers.assignment.crm.external_crm import Crm, configured
from assignment_workers.assignment.crm.reader import use_fact_schema
from assignment_workers.assignment.lanes import checked_lanes, lanes_of
from assignment_workers.dialer.loading import load
from assignment_workers.errors import DatabaseUnavailable, SchemaMismatch, UsageError, no_queue
from assignment_workers.identity import UserId
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.runtime.stack import resolve, running_stack
from assignment_workers.schema import migrate
from assignment_workers.schema.engine import connect
from assignment_workers.settings import Settings

if TYPE_CHECKING:
    from assignment_workers.client import Client

COMMAND_AT_MOST = timedelta(seconds=30)
CRM_FIRST = (
    "create and fill the CRM's tables first, or set CRM_DATABASE_URL if the CRM is in another"
    " database; `assignment-workers up` makes a demo CRM for the packaged dialer"
)
"""The advice for a database without the tables of a CRM."""


def settings() -> Settings:
    """Return the settings from the environment, and load the dialer's file.

    Raises `UsageError` if the settings or the file cannot be used. Addresses of a running stack are
    not filled in.
    """
    given = Settings.from_environment(os.environ)
    dialer = load(given)
    policies_of(dialer, given)  # a wrong calling rule fails here, with its variable's name
    checked_lanes(given, dialer.policies)
    return given


def need_queue(queue: str) -> None:
    """Raise `UsageError` unless the dialer has a queue of this name."""
    load(Settings.from_environment(os.environ))
    if queue not in loaded().policies:
        raise UsageError(no_queue(queue, loaded().policies))


def user_id(given: str) -> UserId:
    """Parse a user's CRM id from the command line. Raises `UsageError` if the text is no id."""
    settings()
    try:
        return user_ids.read(loaded(), given)
    except UsageError as error:
        raise UsageError(f"{given!r:.50}: {error}") from None


def reader() -> Reader:
    """Return the `Reader` with which this installation reads phone numbers from texts.

    The `Reader` has the installation's settings, such as the region of a number without a country
    code, and the secret key for the hashes of erased users' numbers.
    """
    given = settings()
    if given.number_key is None:
        stack = running_stack(given)
        key = None if stack is None else stack.number_key
        given = given.model_copy(update={"number_key": key})
    return numbers_of(given).reader


def resolved() -> Settings:
    """Return the settings, with the running stack's addresses for servers that are not set."""
    return resolve(settings())


def known() -> Settings:
    """Return the settings; addresses that are not set are those of the running stack, if any.

    Raises `NoStack` if `DATABASE_URL` is not set and no stack runs. If `DATABASE_URL` alone is set
    and no stack runs, the address of Redis stays unset.
    """
    given = with_database()
    if given.redis_url is None and running_stack(given) is not None:
        return resolve(given)
    return given


def with_database() -> Settings:
    """Return the settings with the database's address: `DATABASE_URL`, or the running stack's."""
    given = settings()
    return given if given.database_url is not None else resolve(given)


def located(reason: str) -> str:
    """Add the address of Redis or RabbitMQ to a reason such as `Redis cannot be reached`.

    `reason`: the reason of an answer `Unavailable`. Any other reason is returned unchanged. Only
    the command line prints the address, because only people on this machine need the address. An
    answer over HTTP has the reason without the address.
    """
    server, _, rest = reason.partition(" cannot be reached")
    if server not in {"Redis", "RabbitMQ"}:
        return reason
    given = resolved()
    address = (given.broker_url if server == "RabbitMQ" else None) or given.redis
    return f"{server} cannot be reached at {shown(address)}{rest}"


@contextmanager
def client() -> Iterator[Client]:
    """Yield a client of the running stack, or of the servers that the environment names."""
    from assignment_workers.client import Client

    given = resolved()
    lanes = lanes_of(given)
    with Client.connect(
        given.redis, broker_url=given.broker_url, lanes=lanes, key=given.signing_key
    ) as made:
        yield made


_NOT_THERE = (InvalidSchemaName, UndefinedColumn, UndefinedTable)


def _prepare(connection: Connection, given: Settings) -> None:
    """Create or replace the views through which rules read the CRM's tables.

    A failure is ignored, because not every command needs these views.
    """
    try:
        fact_views.prepare(connection, loaded(), given)
    except SchemaMismatch:
        connection.rollback()


@contextmanager
def database(
    at: Settings | None = None,
    *,
    checked: bool = True,
    views: bool = True,
    patience: timedelta = COMMAND_AT_MOST,
) -> Iterator[Connection]:
    """Yield a connection to the database, for a command that does not need the external CRM.

    See `database_and_crm` for the arguments and errors.
    """
    with database_and_crm(at, checked=checked, views=views, patience=patience) as (connection, _):
        yield connection


@contextmanager
def database_and_crm(
    at: Settings | None = None,
    *,
    checked: bool = True,
    views: bool = True,
    patience: timedelta = COMMAND_AT_MOST,
) -> Iterator[tuple[Connection, Crm | None]]:
    """Yield two values: a connection to our database, and the external CRM or None.

    None means that no external CRM is configured. No statement on the connection lasts longer than
    `patience`. `at`: the settings with the database's address; None: those of the environment or of
    the running stack.

    Raises `DatabaseUnavailable` if the database does not answer in time, or denies a right. If
    `checked`, raises `SchemaMismatch` in two cases. First, the schema `assignment` is of another
    release. Second, a statement in the block reads a table or a column that does not exist in our
    database. In the second case, the missing table or column is the CRM's, whose tables are then in
    our database: our own tables were checked before the block. If both `checked` and `views`, the
    views of the CRM's tables are created or replaced as the dialer needs them.
    """
    at = at or with_database()
    made = connect(
        at.database,
        name="assignment-workers command",
        statement_timeout=patience,
        pool_size=1,
    )
    crm = configured(loaded(), at)
    use_fact_schema(made, loaded(), crm)
    try:
        with made.connect() as connection:
            if checked:
                migrate.check(connection)
                connection.rollback()
                if views:
                    _prepare(connection, at)
            yield connection, crm
    except (OperationalError, ProgrammingError) as error:
        if isinstance(error.orig, InsufficientPrivilege):
            denied = str(error.orig).splitlines()[0]
            raise DatabaseUnavailable(
                f"{denied}: this command needs another database role. Log in as a member of"
                " assignment_gateway, or of assignment_owner for `schema`, `token` and"
                " `do-not-contact import`"
            ) from error
        if checked and isinstance(error.orig, _NOT_THERE):  # our own tables were checked
            reason = str(error.orig).splitlines()[0]
            raise SchemaMismatch(f"the CRM cannot be read ({reason}): {CRM_FIRST}") from error
        raise migrate.unreachable(error) from error
    finally:
        made.dispose()
        if crm is not None:
            crm.close()
