"""Every error this package raises on purpose.

The message is a sentence for the person who can act on it.
"""

from __future__ import annotations


def plain(message: str) -> str:
    """What a check said, without the words that Pydantic puts before it."""
    return message.replace("Value error, ", "", 1)


class AssignmentWorkersError(Exception):
    """Something is wrong that a person has to know of; the message is one line."""

    exit_code = 1


class UsageError(AssignmentWorkersError):
    """A setting or an argument was given that cannot be used."""

    exit_code = 2


class SchemaMismatch(AssignmentWorkersError):
    """The database does not have the schema that this version needs."""


class DatabaseUnavailable(AssignmentWorkersError):
    """PostgreSQL cannot answer now; nothing was changed."""

    general = "the database cannot answer"
    """The reason for callers: the message may name a host, and is for the log."""


class CrmUnavailable(DatabaseUnavailable):
    """The CRM cannot be read now: what it would say is unknown, and nobody was judged by it."""

    general = "the CRM cannot be read"

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(f"{self.general}: {reason}")
        self.retry_after = retry_after


class BrokerUnavailable(AssignmentWorkersError):
    """The broker cannot take a message now; nothing was enqueued."""

    @property
    def general(self) -> str:
        """The reason for callers: the message without the address that it may name."""
        return str(self).partition(": ")[0]


class TaskFailed(AssignmentWorkersError):
    """A task failed for a reason that no retry mends: the kind; the dead letter has the rest."""


class NotReplayable(AssignmentWorkersError):
    """A dead letter does not say enough to be sent again."""


class NotStored(AssignmentWorkersError):
    """A dead letter cannot be written now: its message must stay with the broker."""


class Malformed(AssignmentWorkersError):
    """A message does not have the form of one of ours; its `task` and `task_id` where known."""

    def __init__(self, reason: str, *, task: str | None = None, task_id: str | None = None) -> None:
        super().__init__(reason)
        self.task = task
        self.task_id = task_id


class Overtaken(AssignmentWorkersError):
    """Another run of the same job has begun: this one must not commit."""


class StaleTerm(AssignmentWorkersError):
    """Another sequencer has taken over: a transaction of this one must not commit."""

    def __init__(self, *, held: int, current: int | None) -> None:
        super().__init__(
            f"term {held} is over: it was begun a second time"
            if held == current
            else f"term {held} is over: the current term is {current}"
        )
        self.held = held
        self.current = current
