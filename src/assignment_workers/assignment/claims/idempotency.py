"""The inbox: one answer for each request and each command, however often it arrives (guarantee 5).

Every message of the assignment queue has requests, or is a command, or is a probe. A probe only
shows that the sequencer is alive, and the answer to a probe is not stored. The answer to a request
is a row of the table `requests`. The answer to a command is a row of the table `commands`. The
transaction that carries out a command stores this row. Before a command is carried out, the
sequencer looks for the row. This look-up needs no round trip of its own: it is sent together with
the check of the term, the sequencer's fencing token. docs/how-it-works.md has the list of
guarantees.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Connection,
    FromClause,
    Integer,
    Row,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from assignment_workers.assignment.active_assignments import ACTIVE, HELD_COLUMNS, held_by
from assignment_workers.assignment.agents.sessions import Session, untyped_reason
from assignment_workers.assignment.answers import (
    Assigned,
    Code,
    Held,
    Refused,
    RequestAnswer,
    from_json,
)
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.schema import tables
from assignment_workers.schema.base import Instant, sql_text
from assignment_workers.schema.bulk import insert_rows
from assignment_workers.schema.dialer import Agent
from assignment_workers.schema.pipeline import Rows, Statement
from assignment_workers.schema.tables import (
    COMMAND_POSITIONS,
    AgentSession,
    Assignment,
    AssignmentState,
)
from assignment_workers.settings import Settings

T = TypeVar("T")
LONGEST_ID = 200
"""Maximum length of a command's id, in characters."""


@dataclass(frozen=True)
class CommandIdentity:
    """The identity of a command, by which the command is carried out only once.

    A command is a message on an assignment queue, or a part of a message with several commands. An
    agent's request for a user is not a command.

    `id`: the command's id, which stays the same however often the message is delivered or sent
    again. `task`: the name of the Celery task.

    `subject`: a text that names the state that the command sets, such as the state of one agent.
    The command is refused if a command with the same subject and a higher `position` was carried
    out already. So an older command, carried out late, cannot overwrite a newer state. If `subject`
    is None, there is no such check.

    `position`: the number of the command in the order of sending, as `next_position` returned it.
    If `position` is None, the command has no number yet. The command gets the next number when it
    is carried out, and is not checked against other commands with the same subject.
    """

    id: str
    task: str
    subject: str | None = None
    position: int | None = None


def next_position(connection: Connection) -> int:
    """Take and return the next number of the sequence that orders commands.

    Call this before a command is sent. The command keeps this position, however late it is carried
    out.
    """
    return int(connection.execute(select(COMMAND_POSITIONS.next_value())).scalar_one())


def looking_for(command: CommandIdentity) -> Statement:
    """Return the query that finds the stored answer of a command that was carried out already.

    The query also selects the highest `position` of the commands with the same `subject` that were
    carried out already. Commands with the same subject set the same state. If the position of
    `command` is lower than that highest position, `command` would overwrite a newer state, and the
    function `once` refuses it. `once` needs the rows of the query as its parameter `found`.
    """
    return Statement(_FIND_COMMAND, {"command": command.id, "of_subject": command.subject})


def once(
    transaction: FencedTransaction,
    command: CommandIdentity,
    found: Rows,
    operation: Callable[[FencedTransaction], T],
) -> T:
    """Return the stored answer of the command; without one, run the operation and store its answer.

    `found`: the rows of the query `looking_for(command)`, read in this transaction. `operation`:
    the function that carries out the command.

    Commands with the same `subject` set the same state. The `position` of a command is its number
    in the order of sending. A command is refused as superseded if a command with the same subject
    and a later position was carried out already. The refusal is recorded as a race (a conflict of
    two writers). A command is also refused if a command of another task has used its id. Cost: one
    row, written with the commit.
    """
    ((task, stored, latest),) = found
    if task is not None:
        if task != command.task:
            return cast("T", _taken(command, task))
        return cast("T", _read_answer(stored))
    superseded = None not in (command.position, latest) and command.position < latest
    answer = cast("T", _superseded(transaction, command)) if superseded else operation(transaction)
    transaction.defer_write(
        _STORE_COMMAND,
        {
            "command": command.id,
            "task": command.task,
            # A refused command set nothing, so it supersedes nothing.
            "subject": None if isinstance(answer, Refused) else command.subject,
            "position": command.position,
            "answer": answer,
            "term": transaction.term,
            "answered_at": transaction.now,
        },
    )
    return answer


def _read_answer(stored: object) -> object:
    return [from_json(each) for each in stored] if isinstance(stored, list) else from_json(stored)


def _taken(command: CommandIdentity, task: str) -> Refused:
    return Refused(
        code=Code.REQUEST_ID_TAKEN,
        reason=f"message id {command.id} was used by {task}; use a new one",
    )


def _superseded(transaction: FencedTransaction, command: CommandIdentity) -> Refused:
    transaction.race(
        "superseded",
        done="refused",
        task=command.task,
        subject=command.subject,
        position=command.position,
    )
    return Refused(
        code=Code.SUPERSEDED,
        reason=f"a later command has set the {command.subject} since; this one changed nothing",
    )


_FIND_COMMAND = select(
    select(tables.Command.task)
    .where(tables.Command.id == bindparam("command", type_=Text))
    .scalar_subquery()
    .label("task"),
    select(tables.Command.answer)
    .where(tables.Command.id == bindparam("command", type_=Text))
    .scalar_subquery()
    .label("answer"),
    select(func.max(tables.Command.position))
    .where(tables.Command.subject == bindparam("of_subject", type_=Text))
    .scalar_subquery()
    .label("latest"),
)
_STORE_COMMAND = insert(tables.Command).values(
    id=bindparam("command", type_=Text),
    task=bindparam("task", type_=Text),
    subject=bindparam("subject", type_=Text),
    position=func.coalesce(bindparam("position", type_=BigInteger), COMMAND_POSITIONS.next_value()),
    answer=bindparam("answer", type_=JSONB),
    term=bindparam("term", type_=BigInteger),
    answered_at=bindparam("answered_at", type_=Instant),
)


@dataclass(frozen=True)
class Requester:
    """The agent of a request, as read in this transaction.

    `known`: True if the agent exists. `hold`: the agent's active assignment, if any.
    """

    known: bool
    is_active: bool
    allowed: object
    """The value of the column `allowed_queues` in the agent's row of the dialer's table `agents`.

    A valid value is a list of names of dialer queues. If the value is no list, the request is
    refused.
    """
    hold: Held | None
    skipped: frozenset[int]
    """Ids of users whom the agent skipped so recently that they are not assigned to this agent now.

    The setting `skip_agent` is the time for which this lasts, counted from the skip.
    """
    session: Session | None = None
    """The agent's session; None: the agent's state was never set."""
    team: str | None = None


def look_up(
    transaction: FencedTransaction, requests: Sequence[ClaimRequest], settings: Settings
) -> dict[str, RequestAnswer | Requester]:
    """Return, by request id, the stored answer or, for a request without one, its agent.

    If the answer is an assignment, its `state` is the present one; the assignment may have ended
    since it was made. A request id that another agent used is refused. The request id of an
    assignment is known for as long as the assignment is stored, even after the answer was pruned.

    If the answer is an assignment that is still active, the column `asked_again_at` of the request
    is set to the time of this transaction. The column shows that the request was received again,
    and that the agent gets the assignment in this second answer, even if the first one was lost.
    Therefore, `release_unclaimed` does not release such an assignment.

    Cost: one statement with some index lookups for each request; a second if some requests have
    assignments, and a third if some of these assignments are active.
    """
    (found,) = transaction.run(asking(transaction, requests, settings))
    return understood(transaction, requests, found)


def asking(
    transaction: FencedTransaction, requests: Sequence[ClaimRequest], settings: Settings
) -> Statement:
    """Return the query for each request's stored answer, and for the agent who makes the request.

    The query can be sent in one round trip with other statements. The function `understood`
    converts its rows.
    """
    since = {"since": transaction.now - settings.skip_agent}
    if len(requests) == 1:
        (request,) = requests
        one = {"id": request.request_id, "agent": request.agent_id}
        return Statement(_LOOK_UP_ONE, since | one)
    many = {
        "ids": [request.request_id for request in requests],
        "agents": [request.agent_id for request in requests],
    }
    return Statement(_LOOK_UP, since | many)


def understood(
    transaction: FencedTransaction, requests: Sequence[ClaimRequest], found: Rows
) -> dict[str, RequestAnswer | Requester]:
    """Return, by request id, the stored answer or, for a request without one, its agent.

    `found`: the rows of the query that `asking` returned. For each active assignment among the
    answers, `asked_again_at` is set to the transaction's time.
    """
    shown = _shown(transaction, {row.given for row in found} | {row.hold for row in found})
    read = {
        request.request_id: _read(row, request, shown)
        for request, row in zip(requests, found, strict=True)
    }
    again = [name for name, each in read.items() if _is_active(each)]
    if again:
        transaction.connection.execute(_ASKED_AGAIN, {"ids": again, "instant": transaction.now})
    return read


def _shown(transaction: FencedTransaction, named: Collection[UUID | None]) -> dict[UUID, Held]:
    ids = [each for each in named if each is not None]
    if not ids:
        return {}
    (rows,) = transaction.run(Statement(_SHOWN, {"ids": ids}))
    return {row.id: held_by(row) for row in rows}


def _is_active(answer: RequestAnswer | Requester) -> bool:
    return isinstance(answer, Assigned) and answer.assignment.state == AssignmentState.ACTIVE


def _read(
    row: Row[*tuple[Any, ...]], request: ClaimRequest, shown: Mapping[UUID, Held]
) -> RequestAnswer | Requester:
    given = shown.get(row.given)
    if row.asked_by is None or (given is None and row.answer is None):  # pruned just now
        return Requester(
            known=row.agent is not None,
            is_active=bool(row.is_active),
            allowed=row.allowed_queues,
            hold=shown.get(row.hold),
            skipped=frozenset(row.skipped),
            team=row.team,
            session=None
            if row.stated is None
            else Session(
                request.agent_id,
                row.stated,
                row.why,
                row.calls_in_session,
                row.working_since,
                row.last_call_ended_at,
                row.team,
            ),
        )
    if row.asked_by != request.agent_id:
        return Refused(
            code=Code.REQUEST_ID_TAKEN,
            reason=f"request id {request.request_id} was used by another agent; use a new one",
        )
    if given is not None:
        return Assigned(assignment=given, replayed=True)
    stored: RequestAnswer = from_json(row.answer)  # type: ignore[assignment]
    return stored


def answered(
    transaction: FencedTransaction, answers: Mapping[ClaimRequest, RequestAnswer]
) -> list[dict[str, Any]]:
    """Convert the answers to rows of the table `requests`, one for each answer.

    The rows are the SQL parameter `answered` of the statement `STORE`.
    """
    return [
        {
            "request_id": request.request_id,
            "agent_id": request.agent_id,
            "queue": request.queue,
            "deadline": request.deadline,
            "received_at": request.sent_at,
            "outcome": answer.outcome,
            "answer": answer,
            "assignment_id": answer.assignment.id if isinstance(answer, Assigned) else None,
            "term": transaction.term,
            "answered_at": transaction.now,
        }
        for request, answer in answers.items()
    ]


COLUMNS = (
    tables.Request.request_id,
    tables.Request.agent_id,
    tables.Request.queue,
    tables.Request.deadline,
    tables.Request.received_at,
    tables.Request.outcome,
    tables.Request.answer,
    tables.Request.assignment_id,
    tables.Request.term,
    tables.Request.answered_at,
)
STORE = insert_rows(tables.Request, *COLUMNS, parameter="answered")
"""Insert a row for each answer to a request, in the transaction that decided the answer."""

_ASKED_AGAIN = (
    update(tables.Request)
    .where(tables.Request.request_id == any_(bindparam("ids", type_=ARRAY(Text))))
    .values(asked_again_at=bindparam("instant", type_=Instant))
)

_SHOWN = select(*HELD_COLUMNS).where(
    Assignment.id == any_(bindparam("ids", type_=ARRAY(Uuid))),
)


def _looking_up(asked: FromClause) -> Select[*tuple[Any, ...]]:
    """Select the stored answer, the agent and the assignment's id of each request in `asked`.

    Few requests have an assignment. Therefore, this query reads no other column of an assignment;
    a second query reads the other columns of these few assignments. Assignments are looked up by a
    subquery for each request, not by a join. With a join, the planner might choose to read the
    whole table while the table is small, and keep this plan in the cache.
    """
    own = (
        select(Assignment.id, Assignment.agent_id)
        .where(Assignment.request_id == asked.c.request_id)
        .limit(literal_column("1"))
        .lateral("own")
    )
    hold = (
        select(Assignment.id)
        .where(Assignment.agent_id == asked.c.agent_id, Assignment.state == ACTIVE)
        .correlate(asked)
        .scalar_subquery()
    )
    skips = (
        select(Assignment.user_id)
        .where(
            Assignment.state == sql_text(AssignmentState.SKIPPED),
            Assignment.ended_how.is_(None),
            Assignment.agent_id == asked.c.agent_id,
            Assignment.ended_at > bindparam("since", type_=Instant),
        )
        .correlate(asked)
    )
    return (
        select(
            func.coalesce(tables.Request.agent_id, own.c.agent_id).label("asked_by"),
            func.coalesce(tables.Request.assignment_id, own.c.id).label("given"),
            tables.Request.answer,
            Agent.id.label("agent"),
            Agent.is_active,
            Agent.allowed_queues,
            hold.label("hold"),
            func.array(skips.scalar_subquery(), type_=ARRAY(Integer)).label("skipped"),
            AgentSession.state.label("stated"),
            untyped_reason().label("why"),
            AgentSession.calls_in_session,
            AgentSession.working_since,
            AgentSession.last_call_ended_at,
            Agent.team,
        )
        .select_from(asked)
        .outerjoin(tables.Request, tables.Request.request_id == asked.c.request_id)
        .outerjoin(own, true())
        .outerjoin(Agent, Agent.id == asked.c.agent_id)
        .outerjoin(AgentSession, AgentSession.agent_id == asked.c.agent_id)
        .order_by(asked.c.position)
    )


_LOOK_UP = _looking_up(
    func.unnest(bindparam("ids", type_=ARRAY(Text)), bindparam("agents", type_=ARRAY(Integer)))
    .table_valued("request_id", "agent_id", with_ordinality="position")
    .render_derived(name="asked")
)
# PostgreSQL plans this statement again for each array, because arrays may be long: a quarter of a
# millisecond. A lone request has a statement that is planned once.
_LOOK_UP_ONE = _looking_up(
    select(
        bindparam("id", type_=Text).label("request_id"),
        bindparam("agent", type_=Integer).label("agent_id"),
        literal_column("1").label("position"),
    ).subquery("asked")
)
