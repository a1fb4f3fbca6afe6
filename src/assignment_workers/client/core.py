"""The methods of every client, without I/O: the messages to send, and the meaning of answers.

Each method is a generator, so that clients with and without asyncio share it. The generator yields
exchanges: steps of I/O, such as to send a command and to get the answer. The client carries out
each exchange and sends the result into the generator. The generator's return value is the method's
answer. `Client` and `HttpClient` wait for the I/O; `AsyncClient` and `AsyncHttpClient` await it.
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
"""Seconds between two checks whether a build has finished. A build takes seconds."""


@dataclass(slots=True)
class Ask:
    """A step of I/O that a client carries out: send a command and wait for the answer.

    The result of the step is the answer; `Unavailable` if no answer arrives within `timeout`.
    """

    command: CommandCall
    timeout: timedelta


@dataclass(slots=True)
class Send:
    """A step of I/O that a client carries out: send a message without waiting for an answer.

    The result of the step is the task id. The client raises `BrokerUnavailable` if the broker
    does not accept the message.
    """

    task: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    celery_queue: str


@dataclass(slots=True)
class LookUp:
    """A step of I/O that a client carries out: read the stored `Result` of a Celery task.

    The result of the step is that `Result`; None if no `Result` is stored yet. The client raises
    `BrokerUnavailable` if Redis does not answer.
    """

    task_id: str


@dataclass(slots=True)
class Count:
    """A step that a client carries out without I/O: count the answer to a request.

    A client counts the answers to all its requests. The service levels are computed from these
    counts.
    """

    answer: RequestAnswer


@dataclass(slots=True)
class Pause:
    """A step that a client carries out without I/O: wait for `seconds`."""

    seconds: float


CeleryExchange: TypeAlias = Ask | Send | LookUp | Count | Pause
Steps: TypeAlias = Generator[Any, Any, T]
"""The type of a client method that is written as a generator.

The generator yields the steps of I/O that the client is to carry out, such as to send a command. It
returns the method's answer, of type `T`.
"""


class RunsNow(Protocol):
    """A client whose methods wait and return the answers."""

    def run(self, steps: Steps[R], /) -> R:
        """Carry out each step that the generator `steps` yields; return the generator's answer.

        A step is a piece of I/O, such as to send a command and to wait for the answer.
        """


class RunsLater(Protocol):
    """A client for asyncio, whose methods return coroutines."""

    def run(self, steps: Steps[R], /) -> Coroutine[Any, Any, R]:
        """Return a coroutine that carries out each step that the generator `steps` yields.

        A step is a piece of I/O, such as to send a command and to await the answer. The coroutine
        returns the generator's answer.
        """


class Operation(Generic[P, T]):
    """A descriptor that makes a client method from `declared`, a generator method of a `Core`.

    On a client that waits, the method returns the answer; on a client for asyncio, a coroutine for
    the answer. mypy and editors see the signature of `declared`.
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
    """The methods of an agent's client, as generators that yield the I/O to carry out.

    So clients with and without asyncio share the methods. A subclass is for Celery or for HTTP.
    """

    @abstractmethod
    def act(self, call: VerbCall) -> Steps[FinishAnswer]:
        """Send a command about an assignment, such as `complete`."""

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

        `timeout` is the longest wait and the deadline of the request: no user is assigned after it.
        A lost message is sent again within that time. `Unavailable` means that no answer arrived; a
        user may have been assigned just before the deadline. To find out, repeat the call with the
        same `request_id`.
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

        On break or offline, an offer that is not accepted is released; an accepted assignment stays
        active. `by` and `why`: the operator who sets the state, and the reason. Over HTTP `by` is
        not sent, because the token identifies the caller.
        """

    @abstractmethod
    def heartbeat(
        self,
        agent_id: int,
        *,
        assignment_id: UUID | str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Steps[HeartbeatAnswer]:
        """Record that the agent is present, which extends the lease of an accepted assignment.

        The first heartbeat that names an offer in `assignment_id` accepts the offer. The acceptance
        changes the agent's state from `available` or `wrap_up` to `on_call`. A heartbeat that
        accepts no offer does not change the agent's state.
        """


class CeleryCore(Core):
    """The methods of the clients over Celery, for agents' and operators' requests and commands.

    Each method is a generator that yields the I/O to carry out, such as a command to send. So
    `Client`, which waits, and `AsyncClient`, which awaits, share the methods.
    """

    def __init__(self, clock: Clock, randomness: Random) -> None:
        self._clock = clock
        self._randomness = randomness
        self._accepted = Accepted()

    def act(self, call: VerbCall) -> Steps[FinishAnswer]:
        """Send a command about an assignment, such as `complete`."""
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
        """Send an operator's command and return its answer."""
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
        """Mark as held, in the dialer queues, exactly those users whom an agent holds."""
        return self.command(commands.repair(), timeout=timeout)

    def regenerate(self, queue: str | None = None) -> Steps[str | Unavailable]:
        """Request a build of one dialer queue (None: of all); return the id of the build task."""
        command = commands.regenerate(queue)
        try:
            task_id: str = yield Send(command.task, (), command.arguments, command.celery_queue)
        except BrokerUnavailable as error:
            return down(error)
        return task_id

    def built(self, task_id: str, *, timeout: timedelta) -> Steps[Built | Unavailable]:
        """Wait for the build with the task id that `regenerate` returned; return its result.

        The result is `Unavailable` if the build fails or is not finished within `timeout`, or if
        Redis does not answer.
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
    """The methods that every client of an agent has. Repeating a command has no second effect.

    Each method waits at most `timeout`. Over HTTP it may wait two seconds longer for the response.
    """

    request_next = Operation(Core.request_next)
    state = Operation(Core.state)
    heartbeat = Operation(Core.heartbeat)


class OperatorMethods:
    """The methods for operators' programs, which only the clients over Celery have."""

    command = Operation(CeleryCore.command)
    pause = Operation(CeleryCore.pause)
    resume = Operation(CeleryCore.resume)
    repair = Operation(CeleryCore.repair)
    regenerate = Operation(CeleryCore.regenerate)
    built = Operation(CeleryCore.built)
