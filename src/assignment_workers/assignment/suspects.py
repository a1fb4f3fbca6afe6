"""The record of messages that may have ended the process that handled them.

If a worker process ends while it handles a message, the message is delivered again. The message may
have ended the process. The table `suspect_messages` then gets a row for the message, with the
number of processes that ended while they handled the message. An end that the message is known not
to have caused is not counted. The row is written before the message is tried again, and deleted
when that try comes to its end. If the row still exists at the next delivery, another process ended
during the try, and the number grows by one. A message that is delivered for the first time has no
row.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, case, delete, func, update
from sqlalchemy.dialects.postgresql import insert

from assignment_workers.assignment.dead_letters import HURRY
from assignment_workers.schema.tables import SuspectMessage


@dataclass(frozen=True)
class Suspicion:
    """The record of a message during whose handling worker processes ended.

    `digest` identifies the message. `ends`: the number of processes that ended, including the one
    that ended during the last try. Ends that the message is known not to have caused are not
    counted.
    """

    digest: str
    ends: int
    parts: tuple[int, ...] = ()
    """Positions, in a batch message, of the requests or commands during which a process ended."""
    buried: int = 0
    """Number of requests or commands of a batch message that are stored as dead letters.

    A process ended during the handling of each of these. Their positions are the first elements of
    `parts`.
    """

    @property
    def of_the_whole(self) -> int:
        """The number of ended processes that cannot be attributed to a part of the message.

        The parts of a batch message are its requests or commands. They are handled one by one if a
        process ended during an earlier try of the message. If a process ends while it handles a
        single part, its end is attributed to this part, and is not counted here. All other ends are
        attributed to the whole message.
        """
        return self.ends - len(self.parts)


def count(engine: Engine, digest: str, *, celery_queue: str, excused: bool) -> Suspicion:
    """Record that a worker process ended while it handled a message; return the message's record.

    `digest` identifies the message. The record has the number of processes that ended while they
    handled the message (`Suspicion.ends`). This number grows by one. `excused`: True if the message
    is known not to have caused the end of the process; the number then does not grow. The record is
    committed.
    """
    there = insert(SuspectMessage).excluded
    ended = SuspectMessage.parts.op("||")(SuspectMessage.part)
    within = SuspectMessage.part.is_not(None) & (there.ends > 0)
    statement = (
        insert(SuspectMessage)
        .values(
            digest=digest,
            celery_queue=celery_queue,
            ends=0 if excused else 1,
            at=func.clock_timestamp(),
        )
        .on_conflict_do_update(
            index_elements=[SuspectMessage.digest],
            set_={
                "ends": SuspectMessage.ends + there.ends,
                "parts": case((within, ended), else_=SuspectMessage.parts),
                "part": None,
                "at": there.at,
            },
        )
        .returning(SuspectMessage.ends, SuspectMessage.parts, SuspectMessage.buried)
    )
    with engine.begin() as connection:
        connection.execute(HURRY)
        ends, parts, buried = connection.execute(statement).one()
    return Suspicion(digest, ends, tuple(parts), buried)


def try_part(engine: Engine, digest: str, part: int | None) -> None:
    """Record that this request or command of a batch message is handled next, by itself.

    `digest` identifies the message, and `part` is the position of the request or command in the
    message. If the process ends while it handles this part, the record shows which part it was.
    `part` None: all parts were handled. If the process ends after that, its end is attributed to
    the whole message.
    """
    _change(engine, digest, part=part)


def mark_buried(engine: Engine, digest: str, buried: int) -> None:
    """Record how many items of a batch message were stored as dead letters.

    Those are the requests or commands during which a process ended. `digest` identifies the
    message.
    """
    _change(engine, digest, buried=buried)


def _change(engine: Engine, digest: str, **values: int | None) -> None:
    with engine.begin() as connection:
        connection.execute(HURRY)
        row = update(SuspectMessage).where(SuspectMessage.digest == digest)
        connection.execute(row.values(**values))


def acquit(engine: Engine, digest: str) -> None:
    """Delete the record of the message with this digest, because it was handled to the end."""
    with engine.begin() as connection:
        connection.execute(HURRY)
        connection.execute(delete(SuspectMessage).where(SuspectMessage.digest == digest))
