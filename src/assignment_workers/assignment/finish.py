"""End holds or keep them alive, each by its owner only (guarantees 5, 7, 8 and 10).

Cost: one read and one write for any number of moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from assignment_workers.assignment import after_call, callbacks, convert, entries, missed_calls
from assignment_workers.assignment.answers import Code, Finished, Held, Refused
from assignment_workers.assignment.holds import CHANGE, NAMED, held
from assignment_workers.assignment.turn import RECORD, EventKind, Turn, raced
from assignment_workers.policy.outcomes import OUTCOMES, Outcome
from assignment_workers.policy.queues import POLICIES
from assignment_workers.schema.tables import AssignmentState, EntryState, Source
from assignment_workers.settings import Settings


@dataclass(frozen=True)
class Owner:
    """Whose assignment is meant. `version` None: whichever it has."""

    assignment_id: UUID
    agent_id: int
    version: int | None = None


@dataclass(frozen=True)
class Complete:
    """The call was made and this came of it.

    The assignment ends, the score and the time of the next call follow the outcome, a promised
    callback is written, the user leaves the published generations (guarantee 10). A callback that
    the call was for is kept by it; or tried again after `retry`, once, if nobody answered. Refused,
    with nothing changed: an unknown outcome, and a callback time or notes that it does not take so.
    """

    owner: Owner
    outcome: str
    notes: str | None = None
    callback_at: datetime | None = None
    retry: timedelta = timedelta(minutes=15)

    becomes = AssignmentState.COMPLETED


@dataclass(frozen=True)
class Skip:
    """Not now: nobody is offered the user for `everyone`, this agent not for `skip_agent`.

    Both are remembered by the assignment itself, so they survive any rebuild (hazards A9, B3).
    """

    owner: Owner
    everyone: timedelta

    becomes = AssignmentState.SKIPPED


@dataclass(frozen=True)
class Release:
    """Give the user back untouched: claimable at once, by anybody, at the place they had."""

    owner: Owner
    by: str | None = None
    """The operator who asked for it; None: its agent did."""
    why: str | None = None

    becomes = AssignmentState.RELEASED


@dataclass(frozen=True)
class Renew:
    """The agent is still at it: the lease runs anew from now, for so long.

    The version stays, so a call that ends while a renewal is under way is not refused for it.
    """

    owner: Owner
    lease: timedelta

    becomes = AssignmentState.ACTIVE


Move = Complete | Skip | Release | Renew


def finish(
    turn: Turn, moves: Sequence[Move], *, outcomes: Mapping[str, Outcome] = OUTCOMES
) -> list[Finished | Refused]:
    """The answer to each move, as if they were made one after the other in their order.

    A late or foreign move is refused and recorded as a race (guarantee 8); one made before gets its
    earlier answer (5). A refused move changes nothing and takes no other with it. Errors of the
    database propagate; then nothing is committed.
    """
    named = [move.owner.assignment_id for move in moves]
    found: dict[UUID, _Found] = {}
    for row in turn.connection.execute(NAMED, {"named": named}).mappings():
        also = (row["ended_as"], row["generation_id"], row["source_id"], row["has_missed_calls"])
        found[row["id"]] = _Found(held(row), *also)
    turn.need(*(each.hold.queue for each in found.values()))
    work = _Finish(turn, found, outcomes)
    answers = [work.carry_out(move) for move in moves]
    work.write()
    return answers


def complete(
    turn: Turn,
    owner: Owner,
    outcome: str,
    *,
    notes: str | None = None,
    callback_at: datetime | None = None,
) -> Finished | Refused:
    """See `Complete`."""
    return finish(turn, [Complete(owner, outcome, notes, callback_at)])[0]


def skip(turn: Turn, owner: Owner, *, settings: Settings) -> Finished | Refused:
    """See `Skip`."""
    return finish(turn, [Skip(owner, settings.skip_everyone)])[0]


def release(turn: Turn, owner: Owner) -> Finished | Refused:
    """See `Release`."""
    return finish(turn, [Release(owner)])[0]


def renew(turn: Turn, owner: Owner, *, settings: Settings) -> Finished | Refused:
    """See `Renew`."""
    return finish(turn, [Renew(owner, settings.lease)])[0]


@dataclass(frozen=True)
class _Found:
    """An assignment as it stands in this turn, the outcome of its call, and what it is for."""

    hold: Held
    outcome: str | None
    generation: int | None
    source_id: UUID | None
    has_missed_calls: bool
    """Of the user: pending ones."""


@dataclass
class _Finish:
    turn: Turn
    found: dict[UUID, _Found]
    """The assignments that are named, with what moves of this turn made of them."""
    outcomes: Mapping[str, Outcome]
    changed: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    """By assignment: what its row shall say."""
    places: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    promises: list[dict[str, Any]] = field(default_factory=list)
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    """What becomes of those that the holds were for."""
    followed_up: list[int] = field(default_factory=list)
    """Users who were spoken to and have missed calls."""
    called_back: list[UUID] = field(default_factory=list)
    skipped_calls: list[dict[str, Any]] = field(default_factory=list)
    """Missed calls."""
    perhaps_converted: dict[str, list[int]] = field(default_factory=dict)
    """By dialer queue: users whose facts are to be looked at once their holds have ended."""
    unwilling: list[int] = field(default_factory=list)
    """Users who are never offered again."""
    events: list[dict[str, Any]] = field(default_factory=list)

    def carry_out(self, move: Move) -> Finished | Refused:
        """The answer to one move; what it changes is left for `write`."""
        if isinstance(move, Complete) and (wrong := _misused(move)):
            return wrong
        hold = self._owned(move)
        if not isinstance(hold, Held):
            return hold
        match move:
            case Complete():
                return self._complete(move, hold)
            case Skip():
                ended = self._end(move, hold)
                until = self.turn.now + move.everyone
                self._settle(hold, EntryState.WAITING, until=until)
                self._was_called_back(hold, None, until)
            case Release():
                ended = self._end(move, hold)
                self._settle(hold, EntryState.READY)
            case Renew():
                ended = self._renew(move, hold)
        return Finished(outcome=_WORDS[move.becomes], assignment=ended)

    def write(self) -> None:
        """All that the moves change, in one statement; callbacks that end or wait, in another."""
        if self.callbacks:
            self.events += callbacks.settle(self.turn, self.callbacks)
        if self.followed_up or self.called_back:
            self.events += missed_calls.follow_up(self.turn, self.followed_up, self.called_back)
        if self.skipped_calls:
            missed_calls.wait(self.turn, self.skipped_calls)
        if self.unwilling:
            self.events += callbacks.call_off(self.turn, self.unwilling, "opted_out")
        if self.promises:
            users = [row["user_id"] for row in self.promises]
            self.events += callbacks.call_off(self.turn, users, "superseded")
        written = {
            "changed": list(self.changed.values()),
            "settled": self.places,
            # In the order in which every job locks score rows, or both could wait for each other.
            "scores": sorted(self.scores, key=lambda row: row["user_id"]),
            "callbacks": self.promises,
            "events": self.turn.dated(self.events),
        }
        entries.need_places(self.turn, [row["user_id"] for row in self.places])
        if any(written.values()):
            self.turn.connection.execute(_WRITE, written)
        for queue, users in self.perhaps_converted.items():
            convert.remove_converted(self.turn, POLICIES[queue], users, policies=POLICIES)

    def _owned(self, move: Move) -> Held | Finished | Refused:
        """The active assignment that is meant; the earlier answer if this was done; or why not."""
        owner = move.owner
        found = self.found.get(owner.assignment_id)
        if found is None:
            return Refused(
                code=Code.UNKNOWN_ASSIGNMENT, reason=f"no assignment {owner.assignment_id}"
            )
        hold = found.hold
        if hold.agent_id != owner.agent_id:
            return self._refuse(owner, hold, Code.NOT_OWNER, "is another agent's")
        if hold.state == AssignmentState.ACTIVE:
            if owner.version in (None, hold.version):
                return hold
            return self._refuse(
                owner,
                hold,
                Code.STALE_VERSION,
                f"has version {hold.version}, not {owner.version}",
            )
        again = (
            hold.state == move.becomes
            and found.outcome == (move.outcome if isinstance(move, Complete) else None)
            and owner.version in (None, hold.version - 1)
        )
        if again:
            return Finished(outcome=_WORDS[move.becomes], assignment=hold, replayed=True)
        return self._refuse(owner, hold, Code.NOT_ACTIVE, f"is {hold.state}")

    def _refuse(self, owner: Owner, hold: Held, code: Code, how: str) -> Refused:
        self.events.append(
            raced(
                code,
                user_id=hold.user_id,
                agent_id=owner.agent_id,
                assignment_id=hold.id,
                queue=hold.queue,
                generation_id=self.found[hold.id].generation,
                error_code=code,
                done="refused",
                holder=hold.agent_id,
                state=hold.state,
                version=hold.version,
                named_version=owner.version,
            )
        )
        return Refused(code=code, reason=f"assignment {hold.id} {how}")

    def _complete(self, move: Complete, hold: Held) -> Finished | Refused:
        if move.callback_at is not None and move.callback_at <= self.turn.now:
            return Refused(
                code=Code.MALFORMED, reason=f"callback_at {move.callback_at.isoformat()} has passed"
            )
        ended = self._end(move, hold)
        self._settle(hold, EntryState.OUT, reason="completed")
        outcome = self.outcomes[move.outcome]
        self.scores.append(after_call.score_row(self.turn, hold, outcome, move.callback_at))
        self._was_called_back(hold, outcome, self.turn.now + move.retry)
        if outcome.converts and hold.queue in POLICIES:
            self.perhaps_converted.setdefault(hold.queue, []).append(hold.user_id)
        if outcome.terminal:
            self.unwilling.append(hold.user_id)
        if move.callback_at is not None:
            row = after_call.callback_row(self.turn, hold, outcome, move.callback_at)
            self.promises.append(row)
            details = {"callback_id": row["id"], "scheduled_for": move.callback_at}
            self._tell(EventKind.CALLBACK_PROMISED, hold, details)
        return Finished(outcome="completed", assignment=ended)

    def _was_called_back(self, hold: Held, outcome: Outcome | None, until: datetime) -> None:
        source = self.found[hold.id].source_id
        if hold.source == Source.CALLBACK and source is not None:
            row = callbacks.after_move(hold, source, outcome=outcome, until=until)
            self.callbacks.append(row)
        if hold.source == Source.MISSED_CALL and source is not None:
            if outcome is None:
                self.skipped_calls.append({"id": source, "until": until})
            else:
                self.called_back.append(source)
        if outcome is not None and outcome.keeps and self.found[hold.id].has_missed_calls:
            self.followed_up.append(hold.user_id)

    def _end(self, move: Complete | Skip | Release, hold: Held) -> Held:
        outcome, notes = (move.outcome, move.notes) if isinstance(move, Complete) else (None, None)
        state = move.becomes.value
        ended = hold.model_copy(update={"state": state, "version": hold.version + 1})
        self._change(ended, outcome=outcome, notes=notes, ended_at=self.turn.now)
        details = {"outcome": outcome} if outcome else {}
        if isinstance(move, Release) and move.by is not None:
            details = {"by": move.by, "why": move.why or ""}
        self._tell(EventKind(state), ended, details)
        return ended

    def _renew(self, move: Renew, hold: Held) -> Held:
        until = max(hold.lease_expires_at, self.turn.now + move.lease)
        renewed = hold.model_copy(update={"lease_expires_at": until})
        self._change(renewed)
        self._tell(EventKind.RENEWED, renewed, {"lease_expires_at": until})
        return renewed

    def _change(
        self,
        becomes: Held,
        *,
        outcome: str | None = None,
        notes: str | None = None,
        ended_at: datetime | None = None,
    ) -> None:
        self.found[becomes.id] = replace(self.found[becomes.id], hold=becomes, outcome=outcome)
        self.changed[becomes.id] = {
            "id": becomes.id,
            "state": becomes.state,
            "version": becomes.version,
            "lease_expires_at": becomes.lease_expires_at,
            "ended_at": ended_at,
            "outcome": outcome,
            "notes": notes,
        }

    def _settle(
        self,
        hold: Held,
        state: EntryState,
        *,
        until: datetime | None = None,
        reason: str | None = None,
    ) -> None:
        self.places.append(
            {"user_id": hold.user_id, "state": state, "until": until, "reason": reason}
        )

    def _tell(self, kind: EventKind, hold: Held, details: Mapping[str, Any]) -> None:
        self.events.append(
            {
                "kind": kind,
                "queue": hold.queue,
                "user_id": hold.user_id,
                "agent_id": hold.agent_id,
                "assignment_id": hold.id,
                "details": details,
            }
        )


def _misused(move: Complete) -> Refused | None:
    rule = OUTCOMES.get(move.outcome)
    if rule is None:
        return Refused(
            code=Code.UNKNOWN_OUTCOME,
            reason=f"no outcome {move.outcome!r}; there are {', '.join(OUTCOMES)}",
        )
    if rule.needs_callback and move.callback_at is None:
        wrong = f"outcome {rule.name} needs callback_at, a time with a zone"
    elif move.callback_at is not None and not rule.callback:
        takers = ", ".join(name for name, other in OUTCOMES.items() if other.callback)
        wrong = f"outcome {rule.name} takes no callback_at; these do: {takers}"
    elif rule.needs_notes and not (move.notes and move.notes.strip()):
        wrong = f"outcome {rule.name} needs notes"
    else:
        return None
    return Refused(code=Code.MALFORMED, reason=wrong)


_WORDS: dict[AssignmentState, Literal["completed", "skipped", "released", "renewed"]] = {
    AssignmentState.COMPLETED: "completed",
    AssignmentState.SKIPPED: "skipped",
    AssignmentState.RELEASED: "released",
    AssignmentState.ACTIVE: "renewed",
}

_WRITE = RECORD.add_cte(
    CHANGE.cte("changed"),
    entries.SETTLE.cte("settled"),
    after_call.SCORE.cte("scored"),
    after_call.PROMISE.cte("promised"),
    nest_here=True,
)
