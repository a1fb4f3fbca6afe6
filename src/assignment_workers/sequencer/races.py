"""Log and count races: the conflict, the agent and user concerned, and the resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from assignment_workers.assignment.transaction import EventKind
from assignment_workers.telemetry import RACES

log = structlog.get_logger()


def tell_race(event: Mapping[str, Any], *, term: int) -> None:
    """Log `ASSIGNMENT_RACE_CONDITION` for `event`, the committed event of a race, and count it.

    A race is a conflict between two writers. The log line has these fields: `kind`, the name of the
    race; `error_code`, the same as `kind` unless the event has another code; `done`, the way in
    which the race was resolved; `agent_id`, `user_id`, `queue_entry_id` (generation/user),
    `assignment_id` and `queue`; `term`; and the other details of the event. `done`, `queue` and the
    ids are `unknown` if the event does not have them. `term` is the number of the term of the
    sequencer that recorded the race.
    """
    details: dict[str, Any] = dict(event.get("details", {}))
    kind = details.pop("kind")
    RACES.labels(kind).inc()
    user, generation = event.get("user_id"), event.get("generation_id")
    log.warning(
        EventKind.RACE.value,
        kind=str(kind),
        done=details.pop("done", "unknown"),
        error_code=str(details.pop("error_code", kind)),
        agent_id=_or_unknown(event.get("agent_id")),
        user_id=_or_unknown(user),
        queue_entry_id=f"{generation}/{user}" if user and generation else "unknown",
        assignment_id=_or_unknown(event.get("assignment_id")),
        queue=_or_unknown(event.get("queue")),
        term=term,
        **{name: value for name, value in details.items() if value is not None},
    )


def _or_unknown(value: object) -> object:
    return "unknown" if value is None else str(value) if not isinstance(value, int) else value
