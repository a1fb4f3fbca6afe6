"""Records of operators' actions: stored before an action is carried out, completed afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from fastapi import Response
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from assignment_workers.assignment.claims.idempotency import next_position
from assignment_workers.assignment.operator_actions import ASKED, RequestedAction, begin, end
from assignment_workers.gateway.command_dispatcher import CLIENT_CLOSED_REQUEST
from assignment_workers.gateway.problems import Problem, unavailable

T = TypeVar("T")


async def recorded(
    engine: Engine,
    action: RequestedAction,
    do: Callable[[int], Awaitable[T]],
    told: Callable[[T], str],
) -> tuple[int, T]:
    """Record an operator's action, carry it out, and record its outcome.

    `do` carries out the action. Its argument is a number to send with the action's commands. The
    database assigns this number, and a later action gets a higher number. The sequencer compares
    the numbers of commands that set the same thing, such as the pause of one dialer queue. It
    refuses a command if such a command with a higher number was carried out before. `told` converts
    the result of `do` to the outcome to record.

    Returns the id of the record, and the result of `do`. A `Problem` that `do` raises is recorded
    as a refusal and raised again. Raises `Problem` 503 if the database does not answer. If the
    database failed before the action, nothing was done. If the database failed later, the action
    may have been carried out, and its outcome is not recorded.
    """

    def ask() -> tuple[int, int]:
        with engine.begin() as connection:
            return begin(connection, action), next_position(connection)

    def close(number: int, outcome: str) -> None:
        with engine.begin() as connection:
            end(connection, number, outcome)

    try:
        number, position = await asyncio.to_thread(ask)
        try:
            given = await do(position)
        except Problem as problem:
            await asyncio.to_thread(close, number, f"refused: {problem.detail}")
            raise
        await asyncio.to_thread(close, number, told(given))
    except (DBAPIError, PoolTimeout) as error:
        raise unavailable("the database cannot answer: look whether it was done") from error
    return number, given


def outcome_of(response: Response) -> str:
    """Return the outcome of an operator's action as text, derived from the action's response.

    - The response is 202, which only confirms that a message was sent to the workers: the outcome
      begins with `asked`.
    - Any other response below 400: the outcome is `done`.
    - The response is 499, because the caller disconnected before the response: the outcome begins
      with `unavailable`.
    - Any other response: the outcome and the detail that its body has, such as `unavailable: no
      answer within 10 s`.
    """
    if response.status_code == HTTPStatus.ACCEPTED:
        return ASKED
    if response.status_code < HTTPStatus.BAD_REQUEST:
        return "done"
    if response.status_code == CLIENT_CLOSED_REQUEST:
        return "unavailable: the caller hung up before it was answered"
    said = json.loads(bytes(response.body))
    return f"{said['outcome']}: {said['detail']}"
