"""Celery's remote control of a worker: queries are answered, changes are refused.

The only change that is carried out is `revoke` of tasks that wait. A remote-control command arrives
as a broadcast, a message to all workers. Any program with access to the broker can send a
broadcast. So the form of a broadcast is validated like that of any other message. A malformed
broadcast changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired

import structlog
from celery.worker import control, pidbox, state
from celery.worker.consumer import control as step
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from assignment_workers.sequencer.envelope import Line
from assignment_workers.sequencer.transport import of_broker

log = structlog.get_logger()

Handler = Callable[..., Any]

OBSERVING = frozenset(
    {
        *("active", "active_queues", "clock", "conf", "enable_events", "heartbeat", "memdump"),
        *("memsample", "ping", "query_task", "registered", "report", "reserved", "revoked"),
        *("scheduled", "stats", "dump_active", "dump_conf", "dump_reserved", "dump_revoked"),
        *("dump_schedule", "dump_tasks"),
    }
)
"""Celery's remote-control commands that are allowed, because they only observe. `revoke` is
replaced by this module's `revoke`; every other command is refused.
"""

REFUSED = (
    "{command} is refused: a worker's queues, pool, limits and state are not changed by remote"
    " control. Change its configuration, or stop and start its process"
)
UNDER_WAY = (
    "revoke with terminate is refused for a task under way ({tasks}): its effect may be committed"
)

_STRICTLY = ConfigDict(strict=True, extra="ignore")


@with_config(_STRICTLY)
class _ReplyTo(TypedDict):
    exchange: Line
    routing_key: Line


@with_config(_STRICTLY)
class _Call(TypedDict):
    method: Line
    arguments: NotRequired[dict[str, Any] | None]
    destination: NotRequired[list[str] | None]
    # A pattern from outside could take any amount of time to match.
    pattern: NotRequired[None]
    ticket: NotRequired[Line | None]
    reply_to: NotRequired[_ReplyTo | None]


_CALL = TypeAdapter(_Call)
_IDS = TypeAdapter(Annotated[list[Line], Field(min_length=1, max_length=1_000)])


def handlers(registry: Mapping[str, Handler]) -> dict[str, Handler]:
    """Return the function that handles each remote-control command, by the command's name.

    `registry`: Celery's own functions, by command. The commands in `OBSERVING` keep their function,
    `revoke` gets this module's function, and every other command a function that refuses it.
    """
    known = {name: _refusing(name) for name in registry}
    known |= {name: registry[name] for name in OBSERVING & registry.keys()}
    known["revoke"] = revoke
    return known


def _refusing(command: str) -> Handler:
    def refuse(_: Any, **__: Any) -> dict[str, str]:
        log.warning("remote_control_refused", command=command)
        return {"error": REFUSED.format(command=command)}

    return refuse


def revoke(_: Any, task_id: Any = None, terminate: Any = None, **__: Any) -> dict[str, str]:
    """Flag waiting tasks as revoked, and return a confirmation or an error for the operator.

    The worker that later takes such a task answers the task's caller. Celery would answer at once,
    but another worker may already be carrying out the task. A running task continues, even with
    `terminate`.
    """
    try:
        ids = _IDS.validate_python([task_id] if isinstance(task_id, str) else task_id)
    except ValidationError:
        return {"error": "revoke: the id of a task, or a list of up to 1,000 of them"}
    under_way = {request.id for request in state.active_requests} & set(ids)
    if under_way and terminate:
        return {"error": UNDER_WAY.format(tasks=", ".join(sorted(under_way)))}
    log.warning("revoked", tasks=len(ids))
    state.revoked.update(ids)
    return {"ok": f"{len(ids)} tasks flagged as revoked"}


class Pidbox(pidbox.Pidbox):
    """A worker's mailbox for Celery's remote-control commands, such as `inspect`."""

    c: Any

    def __init__(self, consumer: Any) -> None:
        super().__init__(consumer)
        self.node.handlers = handlers(control.Panel.data)

    def start(self, c: Any) -> None:
        """Listen for Celery's remote-control commands, such as `inspect`.

        A message that cannot be decoded is logged and dropped.
        """
        super().start(c)
        self.consumer.on_decode_error = _unreadable

    def on_message(self, body: Any, message: Any) -> None:
        """Carry out the remote-control command in `body`; log and ignore an invalid one."""
        try:
            call = _CALL.validate_python(body)
        except ValidationError:
            log.warning("remote_control_malformed")
            return
        reply_to = call.get("reply_to")
        if reply_to and reply_to["exchange"] != self.node.mailbox.reply_exchange.name:
            log.warning("remote_control_malformed")
            return
        if call["method"] not in self.node.handlers:
            log.warning("remote_control_unknown")
            return
        try:
            self.node.handle_message(call)
        except of_broker((*self.c.connection_errors, *self.c.channel_errors)) as error:
            # The reply was not accepted. If the connection is lost, the consumer will see it, too.
            log.warning("remote_control_not_answered", error=type(error).__name__)
            if self.c.connection.transport.driver_type == "amqp":
                self.reset()


def _unreadable(_: Any, error: Exception) -> None:
    log.warning("remote_control_malformed", error=type(error).__name__)


class Control(step.Control):
    """Celery's boot step for remote control, with `Pidbox` of this module as the mailbox."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        box: Any = Pidbox(consumer)
        vars(self).update(box=box, start=box.start, stop=box.stop, shutdown=box.shutdown)
