"""The lane of each dialer queue, as configured in the settings.

A lane is a set of dialer queues. Each lane has a separate assignment queue, sequencer, term and
lock. A term is a sequencer's right to write: a number that grows, and a random id. A new term makes
the earlier terms of the lane invalid. A fenced transaction is a sequencer's transaction. First of
all, it proves that the sequencer's term is the lane's present one.

Each lane has one row in the table `assignment.sequencer`. A fenced transaction locks the row of its
lane. Therefore the fenced transactions of one lane follow one another, but those of two lanes run
side by side. A fenced transaction that writes data of other lanes too must lock the rows of those
lanes as well. Otherwise two fenced transactions could write the same data at the same time. See
`FencedTransaction.require_lanes`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from assignment_workers.errors import UsageError, no_queue
from assignment_workers.schema.states import DEFAULT_LANE
from assignment_workers.settings import Settings

ASSIGNMENT = "assignment"
"""Name of the Celery queue of the default lane; the queue of another lane is `assignment.NAME`."""

VARIABLE = "ASSIGNMENT_WORKERS_LANES"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,19}", re.ASCII)


def name_prefix(application: str, lane: str) -> str:
    """Return the prefix of the PostgreSQL application names of a lane's sequencers.

    Each sequencer process sets such an application name on the connection that holds the lane's
    lock or tries to take it. `application`: the text with which the application names of all
    sequencers begin.
    """
    return f"{application} " if lane == DEFAULT_LANE else f"{application} lane {lane} "


def connection_name(application: str, lane: str, host: str | None, pid: int | None) -> str:
    """Return the PostgreSQL application name of a sequencer's connection for the lane's lock.

    The name identifies the process, by `host` and `pid`. The name also contains the lane, unless
    the lane is the default one. The name is cut to 63 characters: PostgreSQL allows at most 63
    bytes, and the name is expected to have only ASCII characters, of one byte each.
    """
    return f"{name_prefix(application, lane)}{host}:{pid}"[:63]


@dataclass(frozen=True)
class Lanes:
    """The lanes of this installation.

    `others`: the lane of each dialer queue that is not in the default lane. Every process must have
    the same lanes: a sequencer does not begin to lead while another one leads with different lanes.
    """

    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all lanes, the default lane first."""
        return (DEFAULT_LANE, *sorted(set(self.others.values())))

    @property
    def is_one(self) -> bool:
        """True if the default lane is the only one."""
        return not self.others

    def of(self, queue: str | None) -> str:
        """Return the name of a dialer queue's lane; the default lane for an unknown queue."""
        return self.others.get(queue or "", DEFAULT_LANE)

    def queues(self, lane: str, queues: Iterable[str]) -> list[str]:
        """Return those of `queues` that are in this lane, sorted by name."""
        return sorted(queue for queue in queues if self.of(queue) == lane)

    def celery_queue(self, lane: str) -> str:
        """Return the name of the Celery queue that is the lane's assignment queue."""
        return ASSIGNMENT if lane == DEFAULT_LANE else f"{ASSIGNMENT}.{lane}"

    @property
    def celery_queues(self) -> list[str]:
        """The names of the Celery queues that are the lanes' assignment queues."""
        return [self.celery_queue(lane) for lane in self.names]

    def way_to(self, queue: str | None) -> str:
        """Return the name of the Celery queue for commands about this dialer queue.

        If `queue` is None or an unknown dialer queue, this is the Celery queue of the default lane.
        """
        return self.celery_queue(self.of(queue))


ONE_LANE = Lanes()


@lru_cache(maxsize=16)
def lanes_of(settings: Settings) -> Lanes:
    """Return the lanes that the setting `lanes` of `settings` defines.

    If the setting is unset, the default lane is the only one. Raises `UsageError`, with a message
    of one line, if the setting's value cannot be used. The names of dialer queues in the value are
    not checked here; `checked_lanes` compares them with the names of the dialer's queues.
    """
    if settings.lanes is None:
        return ONE_LANE
    try:
        return Lanes(dict(_pairs(settings.lanes.split(","))))
    except ValueError as error:
        raise UsageError(f"{VARIABLE}={settings.lanes!r}: {error}") from None


def checked_lanes(settings: Settings, queues: Collection[str]) -> Lanes:
    """Return the lanes of `settings`, after a check that their dialer queues are among `queues`.

    `queues`: the names of the dialer's queues. Raises `UsageError`, with a message of one line, if
    the value of the setting `lanes` cannot be used or names a dialer queue that is not in `queues`.
    Every process calls this when it starts.
    """
    lanes = lanes_of(settings)
    for queue in lanes.others:
        if queue not in queues:
            raise UsageError(f"{VARIABLE}={settings.lanes!r}: {no_queue(queue, queues)}")
    return lanes


def _pairs(parts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield each named dialer queue with its lane; raises `ValueError` for an invalid part.

    `parts`: the parts of the value of the setting `lanes`. For example, the part
    `second=queue_a+queue_b` defines a lane with the name `second`, which has the dialer queues
    `queue_a` and `queue_b`.
    """
    seen: dict[str, str] = {}
    for part in parts:
        lane, equals, said = (each.strip() for each in part.partition("="))
        if not equals:
            raise ValueError(
                f"{part.strip()!r} is not of the form lane=dialer_queue, as in"
                " second=dialer_queue; several queues of a lane have + between"
            )
        if not _NAME.fullmatch(lane) or lane == DEFAULT_LANE:
            raise ValueError(
                f"lane {lane!r}: a name is up to 20 small letters, digits and _, begins with a"
                f" letter and is not {DEFAULT_LANE}"
            )
        if lane in seen.values():
            raise ValueError(f"lane {lane} stands twice; several queues of a lane have + between")
        for queue in (each.strip() for each in said.split("+")):
            if queue in seen:
                raise ValueError(f"dialer queue {queue} is in lane {seen[queue]} already")
            seen[queue] = lane
            yield queue, lane
