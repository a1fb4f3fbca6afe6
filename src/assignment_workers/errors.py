"""Errors that this package raises on purpose.

The message is a sentence for the person who can act on it.
"""

from __future__ import annotations

from collections.abc import Iterable


def no_queue(queue: str | None, queues: Iterable[str]) -> str:
    """Return the error message for `queue`, a name that no dialer queue in `queues` has."""
    return f"no dialer queue {queue!r}; there are {', '.join(queues)}"


def plain(message: str) -> str:
    """Return a validation message without the prefix that Pydantic adds."""
    return message.replace("Value error, ", "", 1)


class AssignmentWorkersError(Exception):
    """The base class of errors that a person must learn of. The message is one line."""

    exit_code = 1


class UsageError(AssignmentWorkersError):
    """A setting or an argument is invalid."""

    exit_code = 2


class SchemaMismatch(AssignmentWorkersError):
    """The database does not have the schema that this release needs."""


class DatabaseUnavailable(AssignmentWorkersError):
    """PostgreSQL cannot answer now. A COMMIT whose reply was lost may have taken effect."""

    general = "the database cannot answer"
    """The text sent to clients instead of the exception's message, which may name a host."""


class CrmUnavailable(DatabaseUnavailable):
    """The CRM cannot be read now, so the users' facts are unknown and no rule was checked."""

    general = "the CRM cannot be read"

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(f"{self.general}: {reason}")
        self.retry_after = retry_after


class BrokerUnavailable(AssignmentWorkersError):
    """The broker cannot accept a message now. The message may have been sent nevertheless."""

    @property
    def general(self) -> str:
        """The text for callers: the message without the broker's address."""
        return str(self).partition(": ")[0]


class TaskFailed(AssignmentWorkersError):
    """A task failed in a way that no retry can change.

    The message is the kind of failure; the dead letter has the details.
    """


class NotReplayable(AssignmentWorkersError):
    """A dead letter cannot be sent again, because parts of its message are missing."""


class NotStored(AssignmentWorkersError):
    """A dead letter cannot be stored now, so its message must stay with the broker."""


class Malformed(AssignmentWorkersError):
    """A message is not a valid Celery message of this project.

    `task` and `task_id` are set if the message has them.
    """

    def __init__(self, reason: str, *, task: str | None = None, task_id: str | None = None) -> None:
        super().__init__(reason)
        self.task = task
        self.task_id = task_id


class Overtaken(AssignmentWorkersError):
    """Another run of the same job has begun, so this run must not commit."""


class StaleTerm(AssignmentWorkersError):
    """Another sequencer has taken over, so the transaction of this sequencer must not commit."""

    def __init__(self, *, held: int, current: int | None) -> None:
        super().__init__(
            f"term {held} is over: it was begun a second time"
            if held == current
            else f"term {held} is over: the current term is {current}"
        )
        self.held = held
        self.current = current
