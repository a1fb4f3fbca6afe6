"""Retry a transaction in place while the database fails in a transient way."""

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
    """Call `attempt` and return its result; after a transient failure, call it again.

    The pauses grow to at most a second. Raises `DatabaseUnavailable` if `attempt` still fails in a
    transient way after `seconds`. Any other error is raised at once, unchanged. `attempt` must be
    one transaction that is rolled back when it raises, or several that can be repeated.
    `before_sleep` is called before each pause.
    """
    began = monotonic()
    failed: list[BaseException] = []

    def again() -> T:
        if failed:
            raise failed.pop()
        return attempt()

    try:
        return attempt()  # usually enough; Tenacity costs as much as a statement
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
            raise DatabaseUnavailable(reason(error)) from error
        raise


def is_passing(error: BaseException) -> bool:
    """Return True for a transient error: the same transaction may succeed a moment later."""
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
"""Constraints whose violation is transient: a concurrent transaction of another lane may have
inserted the same key. The retry then sees the row of that transaction.
"""

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
"""Classes of SQLSTATE that are transient: 53 (disk or memory full, too many connections) and 58 (a
failure outside of PostgreSQL).
"""


def constraint_of(error: IntegrityError) -> str | None:
    """Return the name of the constraint that a write violated; None if unknown."""
    return getattr(getattr(error.orig, "diag", None), "constraint_name", None)


def reason(error: BaseException) -> str:
    """Return the reason for which the database cannot answer, as one line for a message."""
    return f"the database cannot answer: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return the message of a driver's error in one line. It holds no address or password."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
