"""Messages that could not be handled, kept whole for an operator (guarantee 11)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from assignment_workers.errors import NotReplayable
from assignment_workers.schema.tables import DeadLetter


@dataclass(frozen=True)
class Letter:
    """One dead letter. `body` is the message's as it came, or as near to it as text can be."""

    id: int
    at: datetime
    celery_queue: str | None
    task: str | None
    task_id: str | None
    body: str
    error: str
    replayed_at: datetime | None
    replayed_as: str | None


def bury(
    engine: Engine,
    *,
    celery_queue: str | None,
    task: str | None,
    task_id: str | None,
    body: bytes | str,
    error: str,
) -> int:
    r"""Keep a message, in a transaction of its own; returns the dead letter's number.

    A byte that is not text is kept as `\xNN`, a null as `\x00`: PostgreSQL's text holds neither.
    """
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body
    with engine.begin() as connection:
        return connection.execute(
            insert(DeadLetter)
            .values(
                at=func.clock_timestamp(),
                celery_queue=celery_queue,
                task=task,
                task_id=task_id,
                body=text.replace("\x00", "\\x00"),
                error=error.replace("\x00", "\\x00"),
            )
            .returning(DeadLetter.id)
        ).scalar_one()


def letters(connection: Connection, *, limit: int = 100) -> Sequence[Letter]:
    """The newest dead letters."""
    columns = [getattr(DeadLetter, name) for name in Letter.__dataclass_fields__]
    rows = connection.execute(select(*columns).order_by(DeadLetter.id.desc()).limit(limit))
    return [Letter(*row) for row in rows]


def letter(connection: Connection, number: int) -> Letter | None:
    """One dead letter; None when there is none of that number."""
    columns = [getattr(DeadLetter, name) for name in Letter.__dataclass_fields__]
    row = connection.execute(select(*columns).where(DeadLetter.id == number)).first()
    return Letter(*row) if row else None


def arguments(found: Letter) -> tuple[str, list[Any], dict[str, Any]]:
    """The task that the message was for, and what it said.

    Raises `NotReplayable`, one line, for one that cannot be sent again.
    """
    if found.task is None:
        raise NotReplayable(f"dead letter {found.id} names no task: it cannot be sent again")
    try:
        body = json.loads(found.body)
        args, kwargs = (body["args"], body["kwargs"]) if isinstance(body, dict) else body[:2]
        return found.task, list(args), dict(kwargs)
    except (ValueError, KeyError, TypeError):
        raise NotReplayable(
            f"dead letter {found.id} has no arguments that can be read: it cannot be sent again"
        ) from None


def mark_replayed(connection: Connection, number: int, task_id: str) -> None:
    """Say that the message was sent again, and as what."""
    connection.execute(
        update(DeadLetter)
        .where(DeadLetter.id == number)
        .values(replayed_at=func.clock_timestamp(), replayed_as=task_id)
    )
