"""The methods of every client without input and output: what to send, and what an answer means.

A method is a generator of exchanges. It yields each exchange that is to take place, gets its
result, and returns the answer. `Client` and `HttpClient` carry exchanges out and wait;
`AsyncClient` and `AsyncHttpClient` await them.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from inspect import Parameter
from random import Random
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload
from uuid import UUID

from assignment_workers.assignment.answers import (
    CommandAnswer,
    FinishAnswer,
    Finished,
    HeartbeatAnswer,
    RequestAnswer,
    StateAnswer,
    Unavailable,
)
from assignment_workers.assignment.lifecycle.moves import AgentVerbs, accept
from assignment_workers.assignment.lifecycle.verb import TIMEOUT, VerbCall
from assignment_workers.client import commands
from assignment_workers.client.accepted import Accepted
from assignment_workers.client.commands import CommandCall
from assignment_workers.client.reading import (
    Built,
    as_command_answer,
    as_finish_answer,
    as_heartbeat_answer,
    as_request_answer,
    as_state_answer,
    down,
)
from assignment_workers.client.wire.message import Result
from assignment_workers.clock import Clock
from assignment_workers.errors import BrokerUnavailable
from assignment_workers.identity import new_id

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

LOOK_SECONDS = 0.05
"""Seconds between two checks of `built` for the result of a build, because a build takes seconds.
"""


@dataclass(slots=True)
class Ask:
    """Send a command and wait for its answer; the result is `Unavailable` after `timeout`."""

    command: CommandCall
    timeout: timedelta


@dataclass(slots=True)
class Send:
    """Send a message without waiting for an answer; the result is its task id.

    Raises `BrokerUnavailable`.
    """

    task: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    celery_queue: str


@dataclass(slots=True)
class LookUp:
    """Read the stored `Result` of a task; None if there is none yet. Raises `BrokerUnavailable`."""

    task_id: str


@dataclass(slots=True)
class Count:
    """Count the answer that the caller of a request gets, for the service levels."""

    answer: RequestAnswer


@dataclass(slots=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


CeleryExchange: TypeAlias = Ask | Send | LookUp | Count | Pause
Steps: TypeAlias = Generator[Any, Any, T]
"""A method of a client: it yields exchanges, of the kind of its core, and returns the answer."""


class RunsNow(Protocol):
    """A client that waits for the answers."""

    def run(self, steps: Steps[R], /) -> R:
        """Carry out the exchanges, and return the answer."""


class RunsLater(Protocol):
    """A client for asyncio."""

    def run(self, steps: Steps[R], /) -> Coroutine[Any, Any, R]:
        """Return a coroutine that carries out the exchanges and returns the answer."""


class Operation(Generic[P, T]):
    """A method of the clients, made from the method of a core that declares it.

    Of a client that waits it returns the answer, of a client for asyncio a coroutine for it; mypy
    and editors see the declared signature.
    """

    def __init__(self, declared: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        name = declared.__name__

        def method(client: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return client.run(getattr(client.core, name)(*args, **kwargs))

        _, *said = inspect.signature(declared).parameters.values()
        itself = Parameter("self", Parameter.POSITIONAL_ONLY)
        method.__name__ = method.__qualname__ = name
        method.__doc__ = declared.__doc__
        method.__module__ = declared.__module__
        method.__signature__ = inspect.Signature([itself, *said])  # type: ignore[attr-defined]
        self.method = method

    @overload
    def __get__(self, client: None, owner: type[Any]) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: RunsNow, owner: type[Any]) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, client: RunsLater, owner: type[Any]
    ) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: object, owner: type[Any]) -> Any:
        return self.method if client is None else MethodType(self.method, client)


class Core(ABC):
    """The methods of an agent's client. What is sent depends on the way: Celery or HTTP."""

    @abstractmethod
    def act(self, call: VerbCall) -> Steps[FinishAnswer]:
        """Send the call of a verb."""

    @abstractmethod
    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[RequestAnswer]:
        """Request the next user for this agent, from `queue` or any queue allowed to the agent.

        `timeout` is the longest wait and the deadline of the request: nobody is assigned after it.
        A message that is lost is sent again within that time. `Unavailable` means that no answer
        came. The request may have been answered in the last instant: repeat it with the same
        `request_id` to find out.
        """

    @abstractmethod
    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[StateAnswer]:
        """Set the agent's state to `becomes`: available, on_call, wrap_up, break or offline.

        On break or offline, an offer that is not accepted is released. Accepted work is kept. `by`
        and `why`: the operator who sets the state, and the reason. Over HTTP `by` is not sent,
        because the token identifies the caller.
        """

    @abstractmethod
    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[HeartbeatAnswer]:
        """Record that the agent is present, which keeps accepted work alive. No state changes.

        The first heartbeat that names an offer in `assignment_id` accepts the offer.
        """


class CeleryCore(Core):
    """The methods of a client over Celery: those of agents, and operators' commands."""

    def __init__(self, clock: Clock, randomness: Random) -> None:
        self._clock = clock
        self._randomness = randomness
        self._accepted = Accepted()

    def act(self, call: VerbCall) -> Steps[FinishAnswer]:
        """Send the call of a verb."""
        return as_finish_answer((yield Ask(commands.act(call), call.timeout)))

    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[RequestAnswer]:
        """Request the next user; see `Core.request_next`."""
        name = request_id or str(new_id(self._clock(), self._randomness))
        command = commands.request(agent_id, queue, name, timeout=timeout)
        answer = as_request_answer((yield Ask(command, timeout)))
        yield Count(answer)
        return answer

    def state(
        self,
        agent_id: int,
        becomes: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[StateAnswer]:
        """Set the agent's state; see `Core.state`."""
        command = commands.state(agent_id, becomes, by=by, why=why)
        return as_state_answer((yield Ask(command, timeout)))

    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[HeartbeatAnswer]:
        """Record that the agent is present; see `Core.heartbeat`."""
        if assignment_id is not None and not self._accepted.knows(agent_id, assignment_id):
            taken = yield from self.act(accept.call(assignment_id, agent_id, timeout=timeout))
            if not isinstance(taken, Finished):
                return taken
            self._accepted.add(agent_id, assignment_id)
        command = commands.heartbeat(agent_id, timeout=timeout)
        return as_heartbeat_answer((yield Ask(command, timeout)))

    def command(
        self, command: CommandCall, *, timeout: timedelta = TIMEOUT
    ) -> Steps[CommandAnswer]:
        """Send the command of an operator and return its answer."""
        return as_command_answer((yield Ask(command, timeout)))

    def pause(
        self,
        queue: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[CommandAnswer]:
        """Pause this dialer queue: hand out nobody from it."""
        return self.command(commands.pause(queue, by, why), timeout=timeout)

    def resume(
        self,
        queue: str,
        *,
        by: str | None = None,
        why: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[CommandAnswer]:
        """Resume this dialer queue: hand out its users again."""
        return self.command(commands.resume(queue, by, why), timeout=timeout)

    def repair(self, *, timeout: timedelta = TIMEOUT) -> Steps[CommandAnswer]:
        """Correct the published entries that contradict the active assignments."""
        return self.command(commands.repair(), timeout=timeout)

    def regenerate(self, queue: str | None = None) -> Steps[str | Unavailable]:
        """Request a build of one dialer queue, or of all; return the id of the build task."""
        command = commands.regenerate(queue)
        try:
            task_id: str = yield Send(command.task, (), command.arguments, command.celery_queue)
        except BrokerUnavailable as error:
            return down(error)
        return task_id

    def built(self, task_id: str, *, timeout: timedelta) -> Steps[Built | Unavailable]:
        """Wait for the build with this task id, which `regenerate` returned.

        `Unavailable` if the build is not finished in time, or failed.
        """
        ends = time.monotonic() + timeout.total_seconds()
        while True:
            try:
                found: Result | None = yield LookUp(task_id)
            except BrokerUnavailable as error:
                return down(error)
            match found:
                case Result(failure=str(reason)):
                    return Unavailable(retry_after=1.0, reason=f"the build failed: {reason}")
                case Result(value=dict(built)) if all(isinstance(v, dict) for v in built.values()):
                    return built
                case Result(value=other):
                    return Unavailable(retry_after=1.0, reason=f"the build failed: {other}")
                case None:
                    pass
            if time.monotonic() >= ends:
                return Unavailable(retry_after=1.0, reason=f"not built within {timeout}")
            yield Pause(LOOK_SECONDS)


class AgentMethods(AgentVerbs):
    """The methods of every client of an agent. Repeating one has no second effect.

    Each waits at most `timeout`; over HTTP two seconds longer for the response.
    """

    request_next = Operation(Core.request_next)
    state = Operation(Core.state)
    heartbeat = Operation(Core.heartbeat)


class OperatorMethods:
    """The methods of the clients over Celery that are for operators' programs."""

    command = Operation(CeleryCore.command)
    pause = Operation(CeleryCore.pause)
    resume = Operation(CeleryCore.resume)
    repair = Operation(CeleryCore.repair)
    regenerate = Operation(CeleryCore.regenerate)
    built = Operation(CeleryCore.built)
