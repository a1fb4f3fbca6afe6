"""Every error that this package raises on purpose.

The message is a sentence for the person who can act on it.
"""

from __future__ import annotations


def plain(message: str) -> str:
    """Return a validation message without the prefix that Pydantic adds."""
    return message.replace("Value error, ", "", 1)


class AssignmentWorkersError(Exception):
    """An error that a person has to know of; the message is one line."""

    exit_code = 1


class UsageError(AssignmentWorkersError):
    """A setting or an argument cannot be used."""

    exit_code = 2


class SchemaMismatch(AssignmentWorkersError):
    """The database does not have the schema that this version needs."""


class DatabaseUnavailable(AssignmentWorkersError):
    """PostgreSQL cannot answer now; nothing was changed."""

    general = "the database cannot answer"
    """The text for callers; the message itself is for the log, because it may name a host."""


class CrmUnavailable(DatabaseUnavailable):
    """The CRM cannot be read now: the facts are unknown, and no user was judged by them."""

    general = "the CRM cannot be read"

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(f"{self.general}: {reason}")
        self.retry_after = retry_after


class BrokerUnavailable(AssignmentWorkersError):
    """The broker cannot take a message now; nothing was enqueued."""

    @property
    def general(self) -> str:
        """The text for callers: the message without the broker's address."""
        return str(self).partition(": ")[0]


class TaskFailed(AssignmentWorkersError):
    """A task failed in a way that no retry mends.

    The message is the kind of failure; the dead letter has the details.
    """


class NotReplayable(AssignmentWorkersError):
    """A dead letter that cannot be sent again, because parts of its message are missing."""


class NotStored(AssignmentWorkersError):
    """A dead letter cannot be written now: its message must stay with the broker."""


class Malformed(AssignmentWorkersError):
    """A message that is not a valid Celery message of ours.

    `task` and `task_id` are set if the message has them.
    """

    def __init__(self, reason: str, *, task: str | None = None, task_id: str | None = None) -> None:
        super().__init__(reason)
        self.task = task
        self.task_id = task_id


class Overtaken(AssignmentWorkersError):
    """Another run of the same job has begun, so that this run must not commit."""


class StaleTerm(AssignmentWorkersError):
    """Another sequencer has taken over, so that this sequencer's transaction must not commit."""

    def __init__(self, *, held: int, current: int | None) -> None:
        super().__init__(
            f"term {held} is over: it was begun a second time"
            if held == current
            else f"term {held} is over: the current term is {current}"
        )
        self.held = held
        self.current = current
