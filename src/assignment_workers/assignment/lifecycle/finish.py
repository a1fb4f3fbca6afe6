"""End or renew assignments, each by its owner only (guarantees 5, 7, 8 and 10).

docs/how-it-works.md has the list of guarantees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Insert

from assignment_workers.assignment.active_assignments import CHANGE, HELD_COLUMNS, NAMED, held_by
from assignment_workers.assignment.agents import sessions
from assignment_workers.assignment.answers import Code, Finished, Held, Refused
from assignment_workers.assignment.callbacks import callbacks, missed_calls
from assignment_workers.assignment.generations import entries
from assignment_workers.assignment.lifecycle import after_call
from assignment_workers.assignment.lifecycle.moves import (
    Accept,
    Close,
    Complete,
    Defer,
    Move,
    Owner,
    Release,
    Renew,
    Skip,
)
from assignment_workers.assignment.pools import convert
from assignment_workers.assignment.suppressions import CLOSE, closing
from assignment_workers.assignment.transaction import (
    RECORD,
    EventKind,
    FencedTransaction,
    raced,
    sent_by,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.schema.pipeline import Statement, expression_cache
from assignment_workers.schema.tables import AssignmentState, EndedHow, EntryState, Source
from assignment_workers.settings import Settings


def finish(
    transaction: FencedTransaction,
    moves: Sequence[Move],
    *,
    outcomes: Mapping[str, Outcome] | None = None,
    settings: Settings | None = None,
) -> list[Finished | Refused]:
    """Carry out the moves, as if one after the other; return an answer for each, in their order.

    A move is an agent's command about an assignment, such as completing it. `outcomes`: the
    outcomes that a completed call may have, by name; None: those of the dialer. `settings`: the
    settings in force; their limits, such as the lease, replace the limits in the moves. None: the
    limits in the moves apply.

    A move that comes after the assignment has ended, or from another agent, is refused and recorded
    as a race (guarantee 8 in docs/how-it-works.md). A repeated move gets its earlier answer
    (guarantee 5). A refused move changes nothing and does not affect the other moves. Errors of the
    database propagate; then nothing is committed.
    """
    named = [move.owner.assignment_id for move in moves]
    found: dict[UUID, _Found] = {}
    (rows,) = transaction.run(Statement(NAMED, {"named": named}))
    for row in rows:
        found[row.id] = _Found(
            held_by(row[: len(HELD_COLUMNS)]),
            row.ended_as,
            row.ended_how,
            row.generation_id,
            row.source_id,
            row.has_missed_calls,
            row.earlier,
        )
    transaction.require_lanes(*(each.hold.queue for each in found.values()))
    if settings is not None:
        moves = [_limited(each, found.get(each.owner.assignment_id), settings) for each in moves]
    work = _Finish(transaction, found, outcomes or transaction.dialer.outcomes_by_name)
    answers = [work.carry_out(move) for move in moves]
    work.write()
    return answers


@dataclass(frozen=True)
class _Found:
    """An assignment as read in this transaction, with the outcome of its call, if any.

    `source_id`: the callback or missed call for which the assignment was made; None: the user came
    from the dialer queue. `how`: the way in which this assignment ended, such as `deferred`, if its
    state alone does not show it; None: the state shows it, or the assignment has not ended.
    """

    hold: Held
    outcome: str | None
    how: str | None
    generation: int | None
    source_id: UUID | None
    has_missed_calls: bool
    """True if the user's own call was missed by the agents, and no follow-up has been made."""
    earlier: Sequence[str]
    """The outcomes of the user's calls that were completed before this transaction."""


@dataclass
class _Finish:
    transaction: FencedTransaction
    found: dict[UUID, _Found]
    """The assignments that the moves (commands of agents) are about, by id.

    Each move that is carried out also changes the assignment here. So a later move about the same
    assignment is checked against the changed assignment.
    """
    outcomes: Mapping[str, Outcome]
    changed: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    """The new column values of each changed assignment, by the assignment's id."""
    places: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    promises: list[dict[str, Any]] = field(default_factory=list)
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    """The new states of callbacks, which are calls that agents promised to users.

    The rows are arguments of `callbacks.settle`. There is one for each assignment that was made for
    a callback and that an agent completed, skipped or deferred.
    """
    followed_up: list[int] = field(default_factory=list)
    """Ids of users who answered a call, and whose missed calls are thereby followed up."""
    called_back: list[UUID] = field(default_factory=list)
    skipped_calls: list[dict[str, Any]] = field(default_factory=list)
    """Missed calls whose user was skipped or deferred."""
    perhaps_converted: dict[str, list[int]] = field(default_factory=dict)
    """Ids of users who may have reached the goal of a dialer queue, by the queue's name.

    An example of a goal is a signed contract. The outcome of the user's call says that the user may
    have reached it. Once the assignments have ended, the CRM facts of these users are checked, and
    users who have reached the goal are removed from the queue.
    """
    unwilling: list[int] = field(default_factory=list)
    """Ids of users whose call had a terminal outcome: they are never offered again."""
    closed: list[dict[str, Any]] = field(default_factory=list)
    """Rows of suppressions: each bans a user from a dialer queue that was closed for the user."""
    agents: sessions.Moves = field(default_factory=sessions.Moves.none)
    events: list[dict[str, Any]] = field(default_factory=list)
    senders: dict[int, str] = field(default_factory=dict)
    """The names of API tokens with which callers other than the agents sent commands.

    The key is the id of the user whose assignment the command changes. A command that was sent with
    the agent's own token, or with none, has no item.
    """

    def carry_out(self, move: Move) -> Finished | Refused:
        """Check one move (an agent's command about an assignment), and return its answer.

        If the move is allowed, its changes are collected in this object. The method `write` stores
        them.
        """
        if isinstance(move, Complete) and (wrong := _misused(move, self.outcomes)):
            return wrong
        hold = self._owned(move)
        if not isinstance(hold, Held):
            return hold
        ended: Held | Refused
        match move:
            case Complete():
                return self._complete(move, hold)
            case Skip() | Defer():
                ended = self._put_off(move, hold)
            case Close():
                ended = self._close(move, hold)
            case Release():
                ended = self._end(move, hold)
                self._settle(hold, EntryState.READY)
            case Accept() if hold.accepted_at is not None:
                return Finished(outcome=move.word, assignment=hold, replayed=True)
            case Accept() | Renew():
                ended = self._renew(move, hold)
        if isinstance(ended, Refused):
            return ended
        return Finished(outcome=move.word, assignment=ended)

    def write(self) -> None:
        """Store the changes that `carry_out` collected for all moves (commands of agents).

        One statement writes assignments, entries, scores, suppressions, sessions, events, and the
        callbacks that these moves promise. Further statements are executed only if they are needed.
        They change callbacks that were promised before these moves, change missed calls, and remove
        and record users who have converted (reached the goal of a dialer queue).
        """
        if self.callbacks:
            self.events += callbacks.settle(self.transaction, self.callbacks)
        if self.followed_up or self.called_back:
            self.events += missed_calls.follow_up(
                self.transaction, self.followed_up, self.called_back
            )
        if self.skipped_calls:
            missed_calls.wait(self.transaction, self.skipped_calls)
        if self.unwilling:
            self.events += callbacks.call_off(self.transaction, self.unwilling, "opted_out")
        if self.closed:
            users = [row["user_id"] for row in self.closed]
            self.events += callbacks.call_off(self.transaction, users, "closed")
        if self.promises:
            users = [row["user_id"] for row in self.promises]
            self.events += callbacks.call_off(self.transaction, users, "superseded")
        written = {
            "changed": list(self.changed.values()),
            "settled": self.places,
            # In the order in which every job locks score rows, because both could deadlock
            # otherwise.
            "scores": sorted(self.scores, key=lambda row: row["user_id"]),
            "callbacks": self.promises,
            "suppressions": self.closed,
            "agents": self.agents.rows(),
            "events": self.transaction.dated([self._attributed(each) for each in self.events]),
        }
        entries.need_places(self.transaction, [row["user_id"] for row in self.places])
        if any(written.values()):
            self.transaction.run(
                Statement(
                    _write(self.transaction.dialer), written | {"moved_at": self.transaction.now}
                )
            )
        policies = self.transaction.dialer.policies
        for queue, users in self.perhaps_converted.items():
            convert.remove_converted(self.transaction, policies[queue], users, policies=policies)

    def _attributed(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event, with the detail `sent_by` if another caller sent the agent's command.

        A caller other than the agent, such as a frontend, may send an agent's command. The detail
        `sent_by` is the name of that caller's API token. The detail is added to each event about
        the user whose assignment the command changes.

        An event is returned unchanged in two cases. In the first case, no caller other than the
        agent has sent a command about the event's user. In the second case, the event records that
        a command was refused. `_refuse` has already added the detail to that event if another
        caller sent the refused command.
        """
        sender = self.senders.get(event.get("user_id", 0))
        if sender is None or event["kind"] == EventKind.RACE:  # a refused command has its own
            return event
        return event | {"details": {**event["details"], **sent_by(sender)}}

    def _owned(self, move: Move) -> Held | Finished | Refused:
        """Return the move's assignment if the move's agent holds it and the version is right.

        A move is an agent's command about an assignment. The version is right if the move names the
        assignment's present version, or none. Returns the earlier answer if the same move was
        carried out before. Otherwise returns a refusal.
        """
        owner = move.owner
        found = self.found.get(owner.assignment_id)
        if found is None:
            return Refused(
                code=Code.UNKNOWN_ASSIGNMENT,
                reason=f"no assignment {owner.assignment_id}: the id is wrong, or the database has"
                " moved back and lost it; ask for the next user",
            )
        hold = found.hold
        if hold.agent_id != owner.agent_id:
            return self._refuse(owner, hold, Code.NOT_OWNER, "is another agent's")
        if hold.state == AssignmentState.ACTIVE:
            if owner.version in (None, hold.version):
                if owner.sent_by is not None:
                    self.senders[hold.user_number] = owner.sent_by
                return hold
            return self._refuse(
                owner,
                hold,
                Code.STALE_VERSION,
                f"has version {hold.version}, not {owner.version}",
            )
        again = (
            (hold.state, found.how) == (move.becomes, move.how)
            and found.outcome == (move.outcome if isinstance(move, Complete) else None)
            and owner.version in (None, hold.version - 1)
        )
        if again:
            return Finished(outcome=move.word, assignment=hold, replayed=True)
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
                **sent_by(owner.sent_by),
            )
        )
        return Refused(code=code, reason=f"assignment {hold.id} {how}")

    def _complete(self, move: Complete, hold: Held) -> Finished | Refused:
        if move.callback_at is not None and move.callback_at <= self.transaction.now:
            return Refused(
                code=Code.MALFORMED, reason=f"callback_at {move.callback_at.isoformat()} has passed"
            )
        ended = self._end(move, hold)
        self.agents.called(hold.agent_id)
        self._settle(hold, EntryState.OUT, reason="completed")
        outcome = self.outcomes[move.outcome]
        self.scores.append(after_call.score_row(self.transaction, hold, outcome, move.callback_at))
        self._was_called_back(hold, outcome, self.transaction.now + move.retry)
        if outcome.converts and hold.queue in self.transaction.dialer.policies:
            self.perhaps_converted.setdefault(hold.queue, []).append(hold.user_number)
        if outcome.terminal:
            self.unwilling.append(hold.user_number)
        if move.callback_at is not None:
            row = after_call.callback_row(self.transaction, hold, outcome, move.callback_at)
            self.promises.append(row)
            details = {"callback_id": row["id"], "scheduled_for": move.callback_at}
            self._record(EventKind.CALLBACK_PROMISED, hold, details)
        return Finished(outcome="completed", assignment=ended)

    def _put_off(self, move: Skip | Defer, hold: Held) -> Held | Refused:
        """End the assignment `hold` without a call, and make its user wait.

        After a skip, the user waits for the duration `everyone` of the move, which comes from the
        settings. After a deferral, the user waits until the time that the agent named (`until`), or
        for the duration that the agent named (`rest`). During the wait, the user is offered to no
        agent at all, also not for a callback or a missed call. Refused: a deferral with an invalid
        time.
        """
        if isinstance(move, Skip):
            until, why = self.transaction.now + move.everyone, None
        else:
            if (move.until is None) == (move.rest is None):
                wrong = "until, a time with a zone, or seconds: one of the two"
                return Refused(code=Code.MALFORMED, reason=wrong)
            until, why = move.until or self.transaction.now + (move.rest or timedelta()), move.why
            if not self.transaction.now < until <= self.transaction.now + move.most:
                wrong = f"until {until.isoformat()}: later than now, by {move.most} at the most"
                return Refused(code=Code.MALFORMED, reason=wrong)
        ended = self._end(move, hold, until=until, why=why)
        self._settle(hold, EntryState.WAITING, until=until)
        self._was_called_back(hold, None, until)
        return ended

    def _close(self, move: Close, hold: Held) -> Held:
        ended = self._end(move, hold, why=move.why)
        self._settle(hold, EntryState.OUT, reason="closed")
        self.closed.append(closing(self.transaction, hold, move.why))
        source = self.found[hold.id].source_id
        if hold.source == Source.MISSED_CALL and source is not None:
            self.called_back.append(source)
        return ended

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
            self.followed_up.append(hold.user_number)

    def _end(
        self,
        move: Complete | Skip | Defer | Close | Release,
        hold: Held,
        *,
        until: datetime | None = None,
        why: str | None = None,
    ) -> Held:
        outcome, notes = (move.outcome, move.notes) if isinstance(move, Complete) else (None, None)
        ended = hold.model_copy(update={"state": move.becomes.value, "version": hold.version + 1})
        self._change(
            ended,
            outcome=outcome,
            notes=notes,
            ended_at=self.transaction.now,
            ended_how=move.how,
            put_off_until=until,
        )
        if not isinstance(move, Complete):
            self.agents.let_go(hold.agent_id)
        details: dict[str, Any] = {"outcome": outcome, "until": until, "why": why}
        if isinstance(move, Complete):
            details["actions"] = self._actions(move, hold)
        if isinstance(move, Release) and move.by is not None:
            details |= {"by": move.by, "why": move.why or ""}
        known = {name: value for name, value in details.items() if value is not None}
        self._record(EventKind(move.word), ended, known)
        return ended

    def _actions(self, move: Complete, hold: Held) -> list[str]:
        """Return the names of the actions, such as `review`, that follow a call with this outcome.

        The event of the completed call stores the names. Other systems read that event and carry
        out the actions.
        """
        return self.outcomes[move.outcome].asks_for(
            earlier=self.found[hold.id].earlier.count(move.outcome),
            promised=move.callback_at is not None,
        )

    def _renew(self, move: Accept | Renew, hold: Held) -> Held:
        until = max(hold.lease_expires_at, self.transaction.now + move.lease)
        accepted_at = hold.accepted_at or self.transaction.now
        renewed = hold.model_copy(update={"lease_expires_at": until, "accepted_at": accepted_at})
        self._change(renewed)
        kind = EventKind.RENEWED if hold.accepted_at else EventKind.ACCEPTED
        self._record(kind, renewed, {"lease_expires_at": until})
        self.agents.took_up(hold.agent_id)
        return renewed

    def _change(
        self,
        becomes: Held,
        *,
        outcome: str | None = None,
        notes: str | None = None,
        ended_at: datetime | None = None,
        ended_how: EndedHow | None = None,
        put_off_until: datetime | None = None,
    ) -> None:
        found = self.found[becomes.id]
        self.found[becomes.id] = replace(found, hold=becomes, outcome=outcome, how=ended_how)
        self.changed[becomes.id] = {
            "id": becomes.id,
            "state": becomes.state,
            "version": becomes.version,
            "lease_expires_at": becomes.lease_expires_at,
            "ended_at": ended_at,
            "outcome": outcome,
            "notes": notes,
            "accepted_at": becomes.accepted_at,
            "ended_how": ended_how,
            "put_off_until": put_off_until,
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

    def _record(self, kind: EventKind, hold: Held, details: Mapping[str, Any]) -> None:
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


def _limited(move: Move, found: _Found | None, given: Settings) -> Move:
    """Return the move with the limits that are in force for the assignment's dialer queue.

    A move is an agent's command about an assignment; limits are times such as the lease. The limits
    in force replace the limits in the move. `given`: the settings in force. `found`: the
    assignment; None: the limits for all dialer queues apply.
    """
    settings = given if found is None else given.of(found.hold.queue)
    match move:
        case Complete():
            return replace(move, retry=settings.callback_retry)
        case Skip():
            return replace(move, everyone=settings.skip_everyone)
        case Defer():
            return replace(move, most=settings.defer_maximum)
        case Accept() | Renew():
            return replace(move, lease=settings.lease)
        case _:
            return move


@expression_cache
def _write(dialer: Dialer) -> Insert:
    return RECORD.add_cte(
        CHANGE.cte("changed"),
        entries.SETTLE.cte("settled"),
        after_call.score(dialer.outcomes).cte("scored"),
        after_call.PROMISE.cte("promised"),
        CLOSE.cte("closed"),
        sessions.MOVED.cte("moved"),
        nest_here=True,
    )


def _misused(move: Complete, outcomes: Mapping[str, Outcome]) -> Refused | None:
    """Return the refusal if the outcome is unknown or the other values do not fit it; else None.

    The other values are the time of a callback and the notes. They do not fit if the outcome needs
    a value that is missing. They also do not fit if the outcome allows no callback but a time is
    given.
    """
    rule = outcomes.get(move.outcome)
    if rule is None:
        return Refused(
            code=Code.UNKNOWN_OUTCOME,
            reason=f"no outcome {move.outcome!r}; there are {', '.join(outcomes)}",
        )
    if rule.needs_callback and move.callback_at is None:
        wrong = f"outcome {rule.name} needs callback_at, a time with a zone"
    elif move.callback_at is not None and not rule.callback:
        takers = ", ".join(name for name, other in outcomes.items() if other.callback)
        wrong = f"outcome {rule.name} takes no callback_at; these do: {takers}"
    elif rule.needs_notes and not (move.notes and move.notes.strip()):
        wrong = f"outcome {rule.name} needs notes"
    else:
        return None
    return Refused(code=Code.MALFORMED, reason=wrong)
