"""End a hold or keep it alive, by its owner only (guarantees 5, 7, 8 and 10)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from assignment_workers.assignment import entries
from assignment_workers.assignment.answers import Code, Finished, Held, Refused
from assignment_workers.assignment.expire import THIS_TRANSACTION
from assignment_workers.assignment.holds import ACTIVE, HELD_COLUMNS, held
from assignment_workers.assignment.turn import EventKind, Turn
from assignment_workers.policy.outcomes import OUTCOMES, Outcome, score_after
from assignment_workers.schema.dialer import Callback, UserCallScore
from assignment_workers.schema.tables import Assignment, AssignmentState
from assignment_workers.settings import Settings


@dataclass(frozen=True)
class Owner:
    """Whose assignment is meant. `version` None: whichever it has."""

    assignment_id: UUID
    agent_id: int
    version: int | None = None


def complete(
    turn: Turn,
    owner: Owner,
    outcome: str,
    *,
    notes: str | None = None,
    callback_at: datetime | None = None,
) -> Finished | Refused:
    """The call was made and this came of it.

    In this one transaction: the assignment ends, the score and the time of the next call follow the
    outcome, a promised callback is kept, the user leaves the published generations (guarantee 10).
    Refused, with nothing changed: an unknown outcome, a callback time that is missing, past or not
    taken by the outcome, missing notes, and what `_owned` refuses.
    """
    rule = OUTCOMES.get(outcome)
    if rule is None:
        return Refused(
            code=Code.UNKNOWN_OUTCOME,
            reason=f"no outcome {outcome!r}; there are {', '.join(OUTCOMES)}",
        )
    if wrong := _misused(rule, notes, callback_at):
        return Refused(code=Code.MALFORMED, reason=wrong)
    found = _owned(turn, owner, AssignmentState.COMPLETED, outcome)
    if not isinstance(found, Held):
        return found
    if callback_at is not None and callback_at <= turn.now:
        return Refused(
            code=Code.MALFORMED, reason=f"callback_at {callback_at.isoformat()} has passed"
        )
    ended = _end(turn, found, AssignmentState.COMPLETED, outcome=outcome, notes=notes)
    _score(turn, found, rule, callback_at)
    entries.leave(turn, [found.user_id], "completed")
    if callback_at is not None:
        _promise(turn, found, rule, callback_at)
    return Finished(outcome="completed", assignment=ended)


def skip(turn: Turn, owner: Owner, *, settings: Settings) -> Finished | Refused:
    """Not now: nobody is offered the user for `skip_everyone`, this agent not for `skip_agent`.

    Both are remembered by the assignment itself, so they survive any rebuild (hazards A9, B3).
    """
    found = _owned(turn, owner, AssignmentState.SKIPPED)
    if not isinstance(found, Held):
        return found
    ended = _end(turn, found, AssignmentState.SKIPPED)
    entries.wait(turn, found.user_id, turn.now + settings.skip_everyone)
    return Finished(outcome="skipped", assignment=ended)


def release(turn: Turn, owner: Owner) -> Finished | Refused:
    """Give the user back untouched: claimable at once, by anybody, at the place they had."""
    found = _owned(turn, owner, AssignmentState.RELEASED)
    if not isinstance(found, Held):
        return found
    ended = _end(turn, found, AssignmentState.RELEASED)
    entries.give_back(turn, [found.user_id])
    return Finished(outcome="released", assignment=ended)


def renew(turn: Turn, owner: Owner, *, settings: Settings) -> Finished | Refused:
    """The agent is still at it: the lease runs anew from now.

    The version stays, so a call that ends while a renewal is under way is not refused for it.
    """
    found = _owned(turn, owner, AssignmentState.ACTIVE)
    if not isinstance(found, Held):
        return found
    until = max(found.lease_expires_at, turn.now + settings.lease)
    turn.connection.execute(_RENEW, {"assignment": found.id, "until": until})
    renewed = found.model_copy(update={"lease_expires_at": until})
    turn.record(_event(EventKind.RENEWED, renewed) | {"details": {"lease_expires_at": until}})
    return Finished(outcome="renewed", assignment=renewed)


def _owned(
    turn: Turn, owner: Owner, becomes: AssignmentState, outcome: str | None = None
) -> Held | Finished | Refused:
    """The active assignment that is meant; the earlier answer if this was done before; or why not.

    A late or foreign one is refused and recorded as a race (guarantee 8).
    """
    row = turn.connection.execute(_FIND, {"assignment": owner.assignment_id}).mappings().first()
    if row is None:
        return Refused(code=Code.UNKNOWN_ASSIGNMENT, reason=f"no assignment {owner.assignment_id}")
    found = held(row)
    if found.agent_id != owner.agent_id:
        return _refuse(turn, owner, found, Code.NOT_OWNER, "is another agent's")
    if found.state == AssignmentState.ACTIVE:
        if owner.version in (None, found.version):
            return found
        return _refuse(
            turn,
            owner,
            found,
            Code.STALE_VERSION,
            f"has version {found.version}, not {owner.version}",
        )
    again = (
        found.state == becomes
        and row["ended_as"] == outcome
        and owner.version in (None, found.version - 1)
    )
    if again:
        return Finished(outcome=_WORDS[becomes], assignment=found, replayed=True)
    return _refuse(turn, owner, found, Code.NOT_ACTIVE, f"is {found.state}")


def _refuse(turn: Turn, owner: Owner, found: Held, code: Code, how: str) -> Refused:
    turn.race(
        code,
        user_id=found.user_id,
        agent_id=owner.agent_id,
        assignment_id=found.id,
        queue=found.queue,
        done="refused",
        holder=found.agent_id,
        state=found.state,
        version=found.version,
        named_version=owner.version,
    )
    return Refused(code=code, reason=f"assignment {found.id} {how}")


def _end(
    turn: Turn,
    found: Held,
    state: AssignmentState,
    *,
    outcome: str | None = None,
    notes: str | None = None,
) -> Held:
    turn.connection.execute(
        _END,
        {
            "assignment": found.id,
            "becomes": state.value,
            "at": turn.now,
            "came": outcome,
            "said": notes,
        },
    )
    ended = found.model_copy(update={"state": state.value, "version": found.version + 1})
    details = {"outcome": outcome} if outcome else {}
    turn.record(_event(EventKind(state.value), ended) | {"details": details})
    return ended


def _event(kind: EventKind, assignment: Held) -> dict[str, Any]:
    return {
        "kind": kind,
        "queue": assignment.queue,
        "user_id": assignment.user_id,
        "agent_id": assignment.agent_id,
        "assignment_id": assignment.id,
    }


def _misused(rule: Outcome, notes: str | None, callback_at: datetime | None) -> str | None:
    if rule.needs_callback and callback_at is None:
        return f"outcome {rule.name} needs callback_at, a time with a zone"
    if callback_at is not None and not rule.callback:
        takers = ", ".join(name for name, other in OUTCOMES.items() if other.callback)
        return f"outcome {rule.name} takes no callback_at; these do: {takers}"
    if rule.needs_notes and not (notes and notes.strip()):
        return f"outcome {rule.name} needs notes"
    return None


def _score(turn: Turn, found: Held, rule: Outcome, callback_at: datetime | None) -> None:
    """One atomic statement on the score row: nothing is read before it (hazard D5).

    A row that is gone is made again as for a first call (original-dialer section 4).
    """
    called = {
        "next_call_after": callback_at or (turn.now + rule.delay if rule.delay else None),
        "last_call_at": turn.now,
        "last_outcome": rule.name,
        "updated_at": turn.now,
    }
    turn.connection.execute(
        upsert(UserCallScore)
        .values(
            id=turn.new_id(),
            user_id=found.user_id,
            current_score=rule.score,
            total_attempts=1,
            successful_calls=int(rule.success),
            current_queue_type=found.queue,
            created_at=turn.now,
            **called,
        )
        .on_conflict_do_update(
            index_elements=[UserCallScore.user_id],
            set_={
                "current_score": score_after(rule),
                "total_attempts": UserCallScore.total_attempts + 1,
                "successful_calls": UserCallScore.successful_calls + int(rule.success),
                **called,
            },
        )
    )


def _promise(turn: Turn, found: Held, rule: Outcome, callback_at: datetime) -> None:
    """A callback row.

    The assignment stands for the call session, which the dialer table demands.
    """
    callback = turn.new_id()
    turn.connection.execute(
        insert(Callback).values(
            id=callback,
            user_id=found.user_id,
            scheduled_for=callback_at,
            callback_reason=rule.name,
            preferred_agent_id=found.agent_id,
            original_call_session_id=found.id,
            queue_type=found.queue,
            created_by_agent_id=found.agent_id,
            created_at=turn.now,
            updated_at=turn.now,
        )
    )
    details = {"callback_id": callback, "scheduled_for": callback_at}
    turn.record(_event(EventKind.CALLBACK_PROMISED, found) | {"details": details})


_WORDS: dict[AssignmentState, Literal["completed", "skipped", "released", "renewed"]] = {
    AssignmentState.COMPLETED: "completed",
    AssignmentState.SKIPPED: "skipped",
    AssignmentState.RELEASED: "released",
    AssignmentState.ACTIVE: "renewed",
}

_FIND = (
    select(*HELD_COLUMNS, Assignment.outcome.label("ended_as"))
    .where(Assignment.id == bindparam("assignment"))
    .with_for_update()
)

_END = (
    update(Assignment)
    .where(Assignment.id == bindparam("assignment"), Assignment.state == ACTIVE)
    .values(
        state=bindparam("becomes"),
        version=Assignment.version + 1,
        ended_at=bindparam("at"),
        ended_xid=THIS_TRANSACTION,
        outcome=bindparam("came"),
        notes=bindparam("said"),
    )
)

_RENEW = (
    update(Assignment)
    .where(Assignment.id == bindparam("assignment"), Assignment.state == ACTIVE)
    .values(lease_expires_at=bindparam("until"))
)
