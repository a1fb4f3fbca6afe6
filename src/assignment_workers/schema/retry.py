"""Try a transaction again, in place, while the database fails in a way that passes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from psycopg import errors as postgres
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)

from assignment_workers.errors import DatabaseUnavailable

T = TypeVar("T")


def patiently(
    attempt: Callable[[], T],
    *,
    seconds: float,
    before_sleep: Callable[[RetryCallState], None] | None = None,
) -> T:
    """What `attempt` returns, tried again with growing pauses of at most a second.

    Raises `DatabaseUnavailable` when it still fails in a passing way after `seconds`; any other
    failure at once, as it is. `attempt` is a whole transaction: what it began was rolled back.
    """
    began = monotonic()
    failed: list[BaseException] = []

    def again() -> T:
        if failed:
            raise failed.pop()
        return attempt()

    try:
        return attempt()  # mostly that is all, and the machinery costs as much as a statement
    except DBAPIError as error:
        if not is_passing(error):
            raise
        failed.append(error)
    try:
        return Retrying(
            retry=retry_if_exception(is_passing),
            wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.05),
            stop=stop_after_delay(seconds - (monotonic() - began)),
            before_sleep=before_sleep,
            reraise=True,
        )(again)
    except (DBAPIError, DatabaseUnavailable) as error:
        if is_passing(error):
            raise DatabaseUnavailable(_reason(error)) from error
        raise


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may succeed a moment later, here or on the next server."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if isinstance(error, IntegrityError):
        return constraint_of(error) in _MET_ELSEWHERE
    if isinstance(error.orig, _PASSING):
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, OperationalError)
    return state[:2] in _PASSING_CLASSES


_MET_ELSEWHERE = {
    "uq_assignments_active_user",
    "uq_assignments_active_agent",
    "uq_assignments_request_id",
    "pk_requests",
    "pk_commands",
}
"""What another lane's turn may have written meanwhile: the next try finds it and goes by it."""

_PASSING = (
    postgres.SerializationFailure,
    postgres.DeadlockDetected,
    postgres.LockNotAvailable,
    postgres.QueryCanceled,
    postgres.ReadOnlySqlTransaction,
    postgres.AdminShutdown,
    postgres.CrashShutdown,
    postgres.CannotConnectNow,
    postgres.IdleInTransactionSessionTimeout,
)

_PASSING_CLASSES = {"53", "58"}
"""A disk or a memory that is full, too many connections; a failure outside of PostgreSQL."""


def constraint_of(error: IntegrityError) -> str | None:
    """The constraint that a write would have broken, by name."""
    return getattr(getattr(error.orig, "diag", None), "constraint_name", None)


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip().splitlines()
    return f"the database cannot answer: {text[0] if text else type(error).__name__}"
