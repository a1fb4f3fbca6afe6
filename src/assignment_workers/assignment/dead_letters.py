"""Messages that could not be handled, stored for an operator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, text, update

from assignment_workers.errors import NotReplayable
from assignment_workers.schema.tables import DeadLetter

LOCK_MILLISECONDS = 500
"""Maximum time in milliseconds that storing a dead letter waits for a lock.

Other messages wait meanwhile.
"""
ERROR_AT_MOST = 4_000
"""Maximum length of an error that is stored with a dead letter, in characters."""
DISMISSED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Letter:
    """A message that could not be carried out, stored for an operator.

    `body`: the message as it arrived; bytes that are not text are escaped.
    """

    id: int
    at: datetime
    celery_queue: str | None
    task: str | None
    task_id: str | None
    body: str
    error: str
    replayed_at: datetime | None
    replayed_as: str | None
    replayable: bool
    attempts: int
    dismissed_at: datetime | None
    dismissed_by: str | None
    dismissed_why: str | None

    @property
    def state(self) -> str:
        """State of the dead letter: `dismissed`, `sent_again`, `to_send_again` or `to_dismiss`.

        The last two wait for an operator. `to_send_again`: the message may succeed if it is sent
        again. `to_dismiss`: it cannot succeed, so an operator can only dismiss it.
        """
        if self.dismissed_at is not None:
            return "dismissed"
        if self.replayed_at is not None:
            return "sent_again"
        return "to_send_again" if self.replayable else "to_dismiss"


def store_dead_letter(
    engine: Engine,
    *,
    celery_queue: str | None,
    task: str | None,
    task_id: str | None,
    body: bytes | str,
    error: str,
    replayable: bool = True,
    again: int | None = None,
) -> int:
    r"""Store a message in a transaction of its own; return the number of the dead letter.

    A byte that is not text is stored as `\xNN`, a null character as `\x00`, because PostgreSQL's
    text can hold neither. `error`: the reason for storing the message. `replayable`: True if the
    message may succeed when it is sent again. `again`: the number of an earlier dead letter, if an
    operator sent its message again. If that dead letter has the same task and body, it is reopened,
    and no second one is stored.
    """
    whole = body if isinstance(body, str) else body.decode("utf-8", "backslashreplace")
    values = {
        "celery_queue": celery_queue,
        "task": task,
        "task_id": task_id,
        "body": _stored(whole),
        "error": _stored(error)[:ERROR_AT_MOST],
        "replayable": replayable and task is not None,
    }
    now = func.clock_timestamp()
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(HURRY)
        if again is not None:
            found = connection.execute(
                update(DeadLetter)
                .where(
                    DeadLetter.id == again,
                    DeadLetter.task == task,
                    DeadLetter.body == values["body"],
                )
                .values(
                    at=now,
                    error=values["error"],
                    replayable=values["replayable"],
                    attempts=DeadLetter.attempts + 1,
                    replayed_at=None,
                    replayed_as=None,
                    dismissed_at=None,
                )
                .returning(DeadLetter.id)
            ).scalar_one_or_none()
            if found is not None:
                return found
        return connection.execute(
            insert(DeadLetter).values(at=now, **values).returning(DeadLetter.id)
        ).scalar_one()


HURRY = text(
    f"SELECT set_config('lock_timeout', '{LOCK_MILLISECONDS}', true),"
    f" set_config('statement_timeout', '{2 * LOCK_MILLISECONDS}', true)"
)


def _stored(said: str) -> str:
    return said.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def letters(connection: Connection, *, limit: int = 100) -> Sequence[Letter]:
    """Return the newest dead letters, at most `limit`."""
    columns = [getattr(DeadLetter, name) for name in Letter.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(DeadLetter.id.desc()).limit(limit))
    return [Letter(*row) for row in rows]


def letter(connection: Connection, number: int) -> Letter | None:
    """Return the dead letter with this number; None if there is none."""
    columns = [getattr(DeadLetter, name) for name in Letter.__dataclass_fields__]
    row = connection.execute(select(*columns).where(DeadLetter.id == number)).first()
    return Letter(*row) if row else None


def arguments(found: Letter) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name of the task in a dead letter's message, and the task's arguments.

    Raises `NotReplayable`, with a message of one line, if the dead letter cannot be sent again.
    """
    if found.task is None or not found.replayable:
        raise NotReplayable(
            f"dead letter {found.id} is malformed and would be refused again: it cannot be sent"
            " again, but be dismissed"
        )
    try:
        body = json.loads(found.body)
        args, kwargs = (body["args"], body["kwargs"]) if isinstance(body, dict) else body[:2]
        return found.task, list(args), dict(kwargs)
    except (ValueError, KeyError, TypeError):
        raise NotReplayable(
            f"dead letter {found.id} has no arguments that can be read: it cannot be sent again"
        ) from None


def mark_replayed(connection: Connection, found: Letter, task_id: str) -> None:
    """Record that the dead letter's message was sent again, as the task with the id `task_id`.

    `found`: the dead letter as it was read before the message was sent again. By the time of this
    call, the message that was sent again may already have failed too. `store_dead_letter` has then
    reopened the dead letter, and its time `at` is that of the new failure. In this case nothing is
    recorded here, so that the dead letter stays open.
    """
    connection.execute(
        update(DeadLetter)
        .where(DeadLetter.id == found.id, DeadLetter.at == found.at)
        .values(replayed_at=func.clock_timestamp(), replayed_as=task_id)
    )


def dismiss(
    connection: Connection, numbers: Sequence[int] | None, *, by: str, why: str | None
) -> list[int]:
    """Mark dead letters as dismissed; return the numbers of those that were not dismissed before.

    `numbers` None: the oldest `DISMISSED_AT_ONCE` that were neither sent again nor dismissed. `by`:
    the operator; `why`: the reason, if any.
    """
    open_letters = select(DeadLetter.id).where(
        DeadLetter.dismissed_at.is_(None),
        DeadLetter.replayed_at.is_(None) if numbers is None else DeadLetter.id.in_(numbers),
    )
    taken = connection.execute(
        update(DeadLetter)
        .where(
            DeadLetter.id.in_(open_letters.order_by(DeadLetter.id).limit(DISMISSED_AT_ONCE)),
            DeadLetter.dismissed_at.is_(None),
        )
        .values(dismissed_at=func.clock_timestamp(), dismissed_by=by, dismissed_why=why)
        .returning(DeadLetter.id)
    ).scalars()
    return sorted(taken)
