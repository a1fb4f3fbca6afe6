"""Tasks by which agents request their next user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from assignment_workers.assignment.answers import (
    Code,
    Refused,
    RequestAnswer,
    Unavailable,
)
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.claims.claim import claim
from assignment_workers.assignment.claims.request import ClaimRequest
from assignment_workers.assignment.settings_versions import of_transaction
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.errors import DatabaseUnavailable
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.settings import Settings
from assignment_workers.tasks.arguments import (
    MANY,
    AgentId,
    RequestId,
    Word,
)
from assignment_workers.tasks.task_handler import RETRY_SECONDS, TaskRun, one_line

log = structlog.get_logger()


class AskBody(BaseModel):
    """One agent's request in a batch message."""

    model_config = ConfigDict(extra="forbid")

    agent_id: AgentId
    request_id: RequestId
    queue: Word | None = None
    deadline: AwareDatetime | None = None
    sent_at: AwareDatetime | None = None

    def asked(self, sent_by: str | None) -> ClaimRequest:
        """Return this request as a `ClaimRequest`.

        `sent_by`: the name of the API token with which a caller other than the agent sent the
        request, if any.
        """
        return ClaimRequest(
            agent_id=self.agent_id,
            request_id=self.request_id,
            queue=self.queue,
            deadline=self.deadline,
            sent_at=self.sent_at,
            sent_by=sent_by,
        )


def request(
    run: TaskRun,
    agent_id: AgentId,
    queue: Word | None = None,
    request_id: RequestId | None = None,
    deadline: AwareDatetime | None = None,
    sent_at: AwareDatetime | None = None,
) -> RequestAnswer:
    """Assign the best eligible user to the agent and return the answer.

    Without `request_id`, the task's id is the request id.
    """
    name = request_id or str(run.request.id)
    asked = ClaimRequest(agent_id, name, queue, deadline, sent_at, run.sender())
    return answer(run.runner, [asked], run.of.settings)[0]


def request_many(run: TaskRun, requests: Annotated[list[Any], Field(max_length=MANY)]) -> list[Any]:
    """Answer many agents' requests in order, in as few transactions as possible.

    A malformed request gets the answer `refused`; the others are carried out.
    """
    read: list[ClaimRequest | Refused] = []
    for place, each in enumerate(requests):
        try:
            read.append(_ASK.validate_python(each).asked(run.sender(place)))
        except ValidationError as error:
            read.append(Refused(code=Code.MALFORMED, reason=one_line(error)))
    asked = [each for each in read if isinstance(each, ClaimRequest)]
    answers = iter(answer(run.runner, asked, run.of.settings))
    return [next(answers) if isinstance(each, ClaimRequest) else each for each in read]


_ASK = TypeAdapter(AskBody)


def answer(
    runner: TransactionRunner, requests: Sequence[ClaimRequest], settings: Settings
) -> list[RequestAnswer]:
    """Return the answer of each request, in order, using as few transactions as possible.

    Several transactions are needed if many users at the head of a dialer queue must not be called,
    because one transaction that passes over all of them would take too long. The answers of an
    earlier transaction are committed and final. If the database becomes unavailable, the remaining
    answers are `Unavailable`.
    """
    answers: list[RequestAnswer | None] = [None] * len(requests)
    while unanswered := [place for place, given in enumerate(answers) if given is None]:
        asked = [requests[place] for place in unanswered]
        deadlines = [each.deadline for each in asked]
        until = max((each for each in deadlines if each), default=None) if all(deadlines) else None

        def transaction(
            transaction: FencedTransaction, asked: list[ClaimRequest] = asked
        ) -> list[RequestAnswer | None]:
            in_force = of_transaction(transaction, settings)
            return claim(
                transaction,
                asked,
                policies=policies_of(transaction.dialer, in_force),
                settings=in_force,
            )

        try:
            given = runner.run(transaction, until=until)
        except DatabaseUnavailable as error:
            log.warning("unavailable", reason=str(error))
            down = Unavailable(retry_after=RETRY_SECONDS, reason=error.general)
            return [each or down for each in answers]
        for place, each in zip(unanswered, given, strict=True):
            answers[place] = each
    return [each for each in answers if each is not None]
