"""The Python client: one message a call, one typed answer, whatever gets lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from celery import Celery, exceptions
from celery.exceptions import CeleryError
from celery.result import AsyncResult
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis.exceptions import RedisError

from assignment_workers.assignment.answers import (
    CommandAnswer,
    FinishAnswer,
    RequestAnswer,
    Unavailable,
    from_json,
)
from assignment_workers.clock import Clock, system_clock
from assignment_workers.identity import new_id

ASSIGNMENT = "assignment"
MAINTENANCE = "maintenance"

TIMEOUT = timedelta(seconds=10)
ASK_AGAIN = timedelta(seconds=3)
"""When a message is taken for lost and sent again."""


Built = dict[str, dict[str, int | str]]
"""By dialer queue: the `generation` built and its `size`, or why it was `skipped`."""


class Client:
    """Asks over Celery and waits for the answers. Safe to share between threads."""

    def __init__(
        self, app: Celery, *, clock: Clock = system_clock, randomness: Random | None = None
    ) -> None:
        self._app = app
        self._clock = clock
        self._randomness = randomness or Random()

    @classmethod
    def connect(cls, redis_url: str, *, broker_url: str | None = None) -> Client:
        """A client of the stack on this Redis; nothing is contacted yet."""
        app = Celery("assignment_workers_client", set_as_current=False)
        app.conf.update(
            broker_url=broker_url or redis_url,
            result_backend=redis_url,
            task_serializer="json",
            result_serializer="json",
            accept_content=["json"],
            task_send_sent_event=True,
            broker_connection_retry=False,
            broker_transport_options={
                "priority_steps": [0],
                "socket_timeout": 5,
                "socket_connect_timeout": 5,
                "socket_keepalive": True,
            },
            redis_socket_timeout=5,
            redis_socket_connect_timeout=5,
            task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1},
        )
        return cls(app)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the connections."""
        self._app.close()

    def request_next(
        self,
        agent_id: int,
        *,
        queue: str | None = None,
        request_id: str | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> RequestAnswer:
        """The next user for this agent.

        Waits `timeout` at the most; that is the request's deadline too, so nobody is assigned after
        it. A lost message is asked again meanwhile. `Unavailable` when no answer came: the request
        may have been met in the last instant, and asking again with the same `request_id` tells.
        """
        now = self._clock()
        name = request_id or str(new_id(now, self._randomness))
        said = {
            "agent_id": agent_id,
            "queue": queue,
            "request_id": name,
            "deadline": (now + timeout).isoformat(),
            "sent_at": now.isoformat(),
        }
        return cast(RequestAnswer, self._ask("assignment.request", said, timeout, task_id=name))

    def complete(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        outcome: str,
        *,
        version: int | None = None,
        notes: str | None = None,
        callback_at: datetime | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """The call was made and `outcome` came of it. Saying it twice gets the same answer."""
        said = _owner(assignment_id, agent_id, version) | {
            "outcome": outcome,
            "notes": notes,
            "callback_at": callback_at.isoformat() if callback_at else None,
        }
        return cast(FinishAnswer, self._ask("assignment.complete", said, timeout))

    def skip(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Not this user now."""
        said = _owner(assignment_id, agent_id, version)
        return cast(FinishAnswer, self._ask("assignment.skip", said, timeout))

    def release(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Give the user back untouched."""
        said = _owner(assignment_id, agent_id, version)
        return cast(FinishAnswer, self._ask("assignment.release", said, timeout))

    def renew(
        self,
        assignment_id: UUID | str,
        agent_id: int,
        *,
        version: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> FinishAnswer:
        """Still at it: the lease runs anew."""
        said = _owner(assignment_id, agent_id, version)
        return cast(FinishAnswer, self._ask("assignment.renew", said, timeout))

    def pause(
        self, queue: str, *, by: str | None = None, timeout: timedelta = TIMEOUT
    ) -> CommandAnswer:
        """Hand out nobody from this dialer queue."""
        return cast(CommandAnswer, self._ask("queue.pause", {"queue": queue, "by": by}, timeout))

    def resume(
        self, queue: str, *, by: str | None = None, timeout: timedelta = TIMEOUT
    ) -> CommandAnswer:
        """Hand out from this dialer queue again."""
        return cast(CommandAnswer, self._ask("queue.resume", {"queue": queue, "by": by}, timeout))

    def repair(self, *, timeout: timedelta = TIMEOUT) -> CommandAnswer:
        """Bring the entries of the published generations in line with the holds."""
        return cast(CommandAnswer, self._ask("queue.repair", {}, timeout))

    def regenerate(self, queue: str | None = None) -> str | Unavailable:
        """Ask for a new generation of a dialer queue, or of each; the id of the building task."""
        said = {"queue": queue, "trigger": "hand"}
        try:
            return str(self._send("queue.regenerate", said, MAINTENANCE, None, None).id)
        except (OperationalError, RedisError) as error:
            return _down(error)

    def built(self, task_id: str, *, timeout: timedelta) -> Built | Unavailable:
        """Wait for what `regenerate` asked for; `Unavailable` when it takes longer, or fails."""
        try:
            value = self._app.AsyncResult(task_id).get(timeout=timeout.total_seconds())
        except exceptions.TimeoutError:
            return Unavailable(retry_after=1.0, reason=f"not built within {timeout}")
        except RedisError as error:
            return _down(error)
        except Exception as error:  # noqa: BLE001 - a task's failure is raised as it was there
            return Unavailable(retry_after=1.0, reason=f"the build failed: {error}")
        return cast(Built, value)

    def send_again(self, task: str, args: Sequence[Any], kwargs: dict[str, Any], queue: str) -> str:
        """Send a message as it was, under a new id, which is returned."""
        result = self._app.send_task(task, args, kwargs, queue=queue)
        return str(result.id)

    def _ask(
        self,
        task: str,
        said: dict[str, Any],
        timeout: timedelta,
        *,
        celery_queue: str = ASSIGNMENT,
        task_id: str | None = None,
    ) -> object:
        """Send and wait; on the assignment queue a message that seems lost is sent again.

        Every command there may come twice: it is answered once, by its request id or its
        assignment.
        """
        ends = self._clock() + timeout
        name = task_id or str(new_id(self._clock(), self._randomness))
        again = celery_queue == ASSIGNMENT
        try:
            while True:
                left = ends - self._clock()
                result = self._send(task, said, celery_queue, name, max(left, timedelta()))
                wait = min(left, ASK_AGAIN) if again else left
                try:
                    value = result.get(timeout=max(wait.total_seconds(), 0.01))
                except exceptions.TimeoutError:
                    if not again or self._clock() >= ends:
                        return Unavailable(
                            retry_after=1.0,
                            reason=f"no answer within {timeout.total_seconds():g} s",
                        )
                    continue
                result.forget()
                return _answer(value)
        except (OperationalError, RedisError) as error:
            return _down(error)
        except CeleryError as error:
            return Unavailable(retry_after=1.0, reason=str(error))

    def _send(
        self,
        task: str,
        said: dict[str, Any],
        celery_queue: str,
        task_id: str | None,
        expires: timedelta | None,
    ) -> AsyncResult[Any]:
        return self._app.send_task(
            task,
            kwargs=said,
            queue=celery_queue,
            task_id=task_id,
            expires=self._clock() + expires if expires is not None else None,
        )


def _owner(assignment_id: UUID | str, agent_id: int, version: int | None) -> dict[str, Any]:
    return {"assignment_id": str(assignment_id), "agent_id": agent_id, "version": version}


def _answer(value: object) -> object:
    try:
        return from_json(value)
    except ValidationError:
        return value


def _down(error: Exception) -> Unavailable:
    text = str(error).strip().splitlines()
    return Unavailable(
        retry_after=2.0, reason=f"Redis cannot be reached: {text[0] if text else error}"
    )
