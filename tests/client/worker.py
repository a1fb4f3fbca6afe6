"""Takes messages off the Celery queue and answers them as a test says, as a Celery worker does."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import redis

HELD: dict[str, Any] = {
    "id": "01932c07-1f00-7000-8000-000000000000",
    "user_id": 2064,
    "agent_id": 1,
    "queue": "unsigned_users",
    "source": "queue",
    "reason": "fresh",
    "rank": 1,
    "claimed_at": "2026-11-23T15:00:00Z",
    "lease_expires_at": "2026-11-23T15:05:00Z",
    "version": 1,
    "state": "active",
}


def assigned(agent: int) -> dict[str, Any]:
    return {"outcome": "assigned", "assignment": HELD | {"agent_id": agent}, "replayed": False}


@dataclass(frozen=True)
class Taken:
    """A message that was taken off the queue."""

    id: str
    task: str
    kwargs: dict[str, Any]

    @property
    def agents(self) -> list[int]:
        return [each["agent_id"] for each in self.kwargs["requests"]]

    @property
    def request_ids(self) -> list[str]:
        return [each["request_id"] for each in self.kwargs["requests"]]


class Worker:
    def __init__(self, redis_url: str) -> None:
        self.url = redis_url
        self.redis = redis.Redis.from_url(redis_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.redis.close()

    def take(self, *, seconds: float = 10.0) -> Taken:
        """The next message; fails if none comes."""
        found = self.redis.brpop(["assignment"], timeout=seconds)
        assert found is not None, f"no message came within {seconds} s"
        envelope = json.loads(found[1])
        args, kwargs, _ = json.loads(base64.b64decode(envelope["body"]))
        assert args == []
        headers = envelope["headers"]
        return Taken(headers["id"], headers["task"], kwargs)

    def is_empty(self) -> bool:
        return self.redis.llen("assignment") == 0

    def finish(self, taken: Taken, value: Any) -> None:
        self._result(taken, "SUCCESS", value)

    def assign(self, taken: Taken) -> None:
        """Give every request of the message a user."""
        self.finish(taken, [assigned(agent) for agent in taken.agents])

    def fail(self, taken: Taken) -> None:
        self._result(taken, "FAILURE", {"exc_type": "ValueError", "exc_message": ["no", "good"]})

    def _result(self, taken: Taken, status: str, value: Any) -> None:
        key = f"celery-task-meta-{taken.id}"
        said = json.dumps({"status": status, "result": value, "task_id": taken.id})
        with self.redis.pipeline() as pipe:
            pipe.set(key, said, ex=60)
            pipe.publish(key, said)
            pipe.execute()
