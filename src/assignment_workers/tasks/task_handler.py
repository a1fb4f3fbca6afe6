"""The common handling of every task: validate arguments, map errors, count answers.

A malformed message gets a `refused` answer and is stored as a dead letter. A message that fails for
a reason that no retry can change is stored as a dead letter, too. The assignment queue continues in
either case.
"""

from __future__ import annotations

import hmac
import inspect
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from time import monotonic
from traceback import extract_tb
from typing import Any, Concatenate, TypeVar, cast

import structlog
from celery import Celery, Task
from celery.backends.redis import RedisBackend
from celery.exceptions import WorkerTerminate
from pydantic import ValidationError, validate_call
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Code, Refused, Unavailable
from assignment_workers.assignment.claims.idempotency import LONGEST_ID, CommandIdentity
from assignment_workers.assignment.crm.external_crm import Crm
from assignment_workers.assignment.lanes import Lanes
from assignment_workers.assignment.settings_versions import of_transaction
from assignment_workers.assignment.transaction import FencedTransaction
from assignment_workers.client.commands import BY
from assignment_workers.client.wire.message import (
    COMMAND_ID,
    COMMAND_POSITION,
    DEAD_LETTER,
    SENDERS,
    SIGNATURE,
    signature,
)
from assignment_workers.errors import (
    CrmUnavailable,
    DatabaseUnavailable,
    NotStored,
    StaleTerm,
    TaskFailed,
    UsageError,
    plain,
)
from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.outcomes import Outcome
from assignment_workers.schema.retry import is_passing, patiently, reason
from assignment_workers.sequencer.refusals import Refusals
from assignment_workers.sequencer.sequencer import Sequencer
from assignment_workers.sequencer.suspects import ENDS_AT_MOST, Suspects, ended
from assignment_workers.sequencer.transaction_runner import TransactionRunner
from assignment_workers.sequencer.transport import Consumption
from assignment_workers.settings import Settings
from assignment_workers.tasks import answer_slot
from assignment_workers.tasks.arguments import MANY, WORD_AT_MOST
from assignment_workers.tasks.censored import Censored
from assignment_workers.telemetry import ANSWERS, TASK_SECONDS, TOGETHER
from assignment_workers.traces import SHARED, Tracing

log = structlog.get_logger()

T = TypeVar("T")

RETRY_SECONDS = 2.0
REQUESTS_NAMED = 20
"""The greatest number of request ids in a log line, which also has the number of all requests."""
UNAUTHENTICATED = "unauthenticated: "
"""The prefix of a sender's name that is not verified: any program with the broker's password could
have sent it.
"""
MANY_IN = "requests"
"""The name of the parameter of a batch task that has the list of requests."""
_TYPED = frozenset({"notes", "why", "reason", "phone"})
"""The names of arguments whose text a person has typed."""
MANY_USERS = "user_ids"
_USERS = frozenset({"user_id", MANY_USERS})
"""The names of the arguments whose values are the CRM's ids of users."""
PATIENCE_SECONDS = 5.0
"""Seconds for which a conversion of users' ids is retried after a transient database failure.

In a message, our integer ids of users replace the CRM's ids. In an answer, the CRM's ids replace
our integer ids.
"""
_SENDER = re.compile(r"token [0-9a-z]{1,32}")
_BOUND = ("task", "task_id", "request_id", "requests", "term")


class App(Celery):
    """The Celery application, with the connections and settings that this process's tasks use."""

    settings: Settings
    dialer: Dialer
    crm: Crm | None
    """The external CRM, set by the processes that read it; None: the CRM is in our own database."""
    lanes: Lanes
    outcomes: Mapping[str, Outcome]
    engine: Engine
    assignment_tasks: frozenset[str]
    """The names of the tasks of the assignment queue."""
    maintenance_tasks: frozenset[str]
    heartbeat_tasks: frozenset[str]
    """The names of the tasks that store agents' heartbeats. Each is also in `maintenance_tasks`.

    Maintenance workers run all of `maintenance_tasks`, so a heartbeat can wait there behind a long
    job. Heartbeat workers, which can be run in addition, run only the tasks named here.
    """
    consumed: Sequence[str]
    """The names of all Celery queues that this process consumes."""
    served: frozenset[str]
    """The names of the tasks that this process carries out."""
    refusals: Refusals
    suspects: Suspects
    consumption: Consumption
    tracing: Tracing
    sequencer: Sequencer
    """The state of this process as a sequencer. The attribute exists only in a sequencer's process.
    """

    def _load_config(self) -> Any:
        """Load Celery's settings as `censored.Censored`, which prints no passwords."""
        loaded = super()._load_config()  # type: ignore[misc]
        object.__setattr__(loaded, "__class__", Censored)
        return loaded

    @property
    def serves(self) -> str:
        """The name of the Celery queue that this process consumes, or of the first of several."""
        return self.consumed[0]

    @property
    def results(self) -> Redis:
        """The client of the Redis that stores the results of tasks."""
        return cast(Redis, cast(RedisBackend, self.backend).client)


class HandledTask(Task[..., Any]):
    """A task that validates its message, calls an operation and handles the operation's errors.

    `task_handler` registers such tasks.
    """

    abstract = True
    typing = False
    Request = "assignment_workers.tasks.redaction:RedactedRequest"
    acks_on_failure = True
    resultrepr_maxsize = 0
    """Zero, so that Celery shows no part of an answer; `RedactedRequest` shows a redacted form."""
    operation: Callable[..., Any]
    routine: bool = False
    """True if Flower lists only the runs that did something."""
    parameters: Sequence[str] = ()
    """The names of the parameters of `operation`, in order.

    The first parameter is the `TaskRun`, the object for one run of the task. The others are the
    arguments of the message.
    """

    @property
    def of(self) -> App:
        """The Celery application of this task, typed as our `App`."""
        return cast(App, self.app)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        bound = self._bound(kwargs)
        structlog.contextvars.bind_contextvars(task=self.name, task_id=self.request.id, **bound)
        self.of.tracing.link_callers(getattr(self.request, SHARED, None), bound)
        began = monotonic()
        is_signed = self._is_signed(args, kwargs)
        run = TaskRun(self, self._read_senders(is_signed=is_signed))
        if not is_signed:
            args, kwargs = self._unattributed(args, kwargs)
        try:
            answer = self._with_own_ids(self._answer(run, *self._with_numbers(args, kwargs)))
            outcomes = _count(self.name, answer)
            log.debug("answered", ms=round((monotonic() - began) * 1000, 2), **outcomes)
        except (ValidationError, UsageError) as error:
            reason = (
                one_line(error, self.parameters)
                if isinstance(error, ValidationError)
                else f"user_id: {error}"
            )
            self.store_dead_letter(args, kwargs, f"refused: {reason}", replayable=False)
            answer = Refused(code=Code.MALFORMED, reason=reason)
        except DatabaseUnavailable as error:
            log.warning("unavailable", reason=str(error))
            after = error.retry_after if isinstance(error, CrmUnavailable) else RETRY_SECONDS
            answer = Unavailable(retry_after=after, reason=error.general)
        except StaleTerm as error:
            # Nothing was committed and nothing is acknowledged. The leader's next sweep puts the
            # message back at the head.
            self.of.sequencer.overtaken(error)
            raise WorkerTerminate(os.EX_TEMPFAIL) from error
        except Exception as error:  # noqa: BLE001 - raised again, without its words
            answer = self._failed(error, args, kwargs)
        finally:
            TASK_SECONDS.labels(self.name).observe(monotonic() - began)
            structlog.contextvars.unbind_contextvars(*_BOUND)
        answer_slot.fill(self.request, answer)
        return answer

    def _failed(
        self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Unavailable:
        """Return the answer if the database failed; keep the message of any other failed task.

        A transient error of the database is only answered: the sender may send the message again.
        Where the database is not as this version needs it, the message becomes a dead letter
        as well. Any other error raises `TaskFailed`, once the message is a dead letter.
        """
        general = DatabaseUnavailable.general
        if is_passing(error):
            log.warning("unavailable", reason=reason(error))
        elif isinstance(error, ProgrammingError):  # the CRM's tables are missing, say
            self.store_dead_letter(args, kwargs, f"{general}: {str(error.orig).splitlines()[0]}")
        else:
            self.store_dead_letter(args, kwargs, f"{type(error).__name__}: {error}")
            # Celery logs, stores and announces an exception; a database error repeats the row.
            where = [f"{each.filename}:{each.lineno}" for each in extract_tb(error.__traceback__)]
            log.error("task_failed", error=type(error).__name__, where=where[-3:])
            raise TaskFailed(type(error).__name__) from None
        return Unavailable(retry_after=RETRY_SECONDS, reason=general)

    def parts(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """Return the list of requests in a batch message; None for a message of any other kind."""
        if MANY_IN not in self.parameters:
            return None
        place = self.parameters.index(MANY_IN) - 1  # the first is the run
        found = args[place] if len(args) > place else kwargs.get(MANY_IN)
        return found if isinstance(found, list) and len(found) <= MANY else None

    def _answer(self, run: TaskRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out the message and return its answer.

        The requests of a batch message are normally carried out together. If a process has ended
        while it carried out this message, the next process carries them out one by one, each in
        transactions of its own. If that process ends too, its end is counted against the one
        request that it was carrying out. The process after it stores this request as a dead letter,
        answers it with a refusal, and carries out the other requests.
        """
        suspicion = self.of.suspects.suspicion
        parts = self.parts(args, kwargs) if suspicion is not None else None
        if suspicion is None or suspicion.ends == 0 or parts is None:
            return self.operation(run, *args, **kwargs)
        if isinstance(self._answered(run), list):
            return self.operation(run, *args, **kwargs)  # `once` repeats the stored answers
        refused = Refused(code=Code.MALFORMED, reason=ended(ENDS_AT_MOST))
        for part in suspicion.parts[suspicion.buried :]:
            self.store_dead_letter(([parts[part]],), {}, refused.reason)
        in_hand = self.of.refusals.in_hand
        if in_hand is not None and not in_hand.unstored:
            self.of.suspects.mark_parts_stored()
        answers: list[Any] = []
        for part, said in enumerate(parts):
            if part in suspicion.parts:
                answers.append(refused)
                continue
            self.of.suspects.try_part(part)
            answers += self.operation(replace(run, part=part), [said])
        self.of.suspects.try_part(None)
        return answers

    def _with_numbers(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with our integer id of each user in place of the CRM's id.

        A user whose CRM id is unknown gets a new integer id. Raises `UsageError` for a value that
        is no id.
        """
        named = [each for each in self.parameters if each in _USERS]
        if not named or self.of.dialer.numbered is None:
            return args, kwargs
        said = dict(zip(self.parameters[1:], args, strict=False)) | kwargs
        given = {name: said[name] for name in named if said.get(name) is not None}
        users = {
            name: [
                user_ids.read(self.of.dialer, each)
                for each in (value if name == MANY_USERS else [value])
            ]
            for name, value in given.items()
            if name != MANY_USERS or isinstance(value, list)
        }

        def numbers() -> dict[user_ids.UserId, int]:
            with self.of.engine.begin() as connection:
                return user_ids.numbered(
                    self.of.dialer, connection, [one for each in users.values() for one in each]
                )

        found = patiently(numbers, seconds=PATIENCE_SECONDS) if users else {}
        for name, each in users.items():
            read = [found[one] for one in each]
            said[name] = read if name == MANY_USERS else read[0]
        named_args = [
            said.get(name, one) for name, one in zip(self.parameters[1:], args, strict=False)
        ]
        return (*named_args, *args[len(named_args) :]), {name: said[name] for name in kwargs}

    def _with_own_ids(self, answer: Any) -> Any:
        """Return the answer with the CRM's id of each user in place of our integer id."""
        if self.of.dialer.numbered is None:
            return answer
        return patiently(
            lambda: user_ids.shown(self.of.dialer, self.of.engine, answer), seconds=PATIENCE_SECONDS
        )

    def _answered(self, run: TaskRun) -> object:
        """Return the answer that the message got at an earlier delivery; None if it got none."""

        def unanswered(_: FencedTransaction) -> object:
            raise _UnansweredError

        if self.name not in self.of.assignment_tasks:
            return None
        try:
            return run.once(unanswered)
        except _UnansweredError:
            return None

    def _is_signed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return True if the message has a valid signature.

        Only this project's programs have the key.
        """
        said, key = self.request, self.of.settings.signing_key
        given = getattr(said, SIGNATURE, None)
        if key is None or not isinstance(given, str):
            return False
        name, senders = str(getattr(said, COMMAND_ID, None) or said.id), getattr(said, SENDERS, ())
        listed = senders if isinstance(senders, list) else ()
        expected = signature(key, self.name, name, args, kwargs, senders=listed)
        return hmac.compare_digest(given.encode(), expected.encode())

    def _read_senders(self, *, is_signed: bool) -> list[str | None]:
        """Return the names of API tokens in the message's header `SENDERS`.

        The header is a list with one element for each request or command of the message. If a
        caller other than the agent sent the request, the element is the name of that caller's API
        token; otherwise it is None. Any program with the broker's password can write any name
        there, so each name in an unsigned message gets the prefix `UNAUTHENTICATED`. The names are
        stored in the events of the database, which cannot be changed afterwards. So an element that
        does not have the form of a token's name is not stored: it becomes None. The result is empty
        if the header is missing or not a list, or if the list has more than `MANY` elements.
        """
        said = getattr(self.request, SENDERS, None)
        if not isinstance(said, list) or len(said) > MANY:
            return []
        mark = "" if is_signed else UNAUTHENTICATED
        return [
            f"{mark}{each}" if isinstance(each, str) and _SENDER.fullmatch(each) else None
            for each in said
        ]

    def _unattributed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of an unsigned message, with the operator's name in `by` marked.

        The mark is the prefix `UNAUTHENTICATED`: any program with the broker's password can write
        any name into `by`.
        """
        if BY not in self.parameters:
            return args, kwargs
        place = self.parameters.index(BY) - 1  # the first is the run
        marked = [_unauthenticated(one) if n == place else one for n, one in enumerate(args)]
        if BY in kwargs:
            kwargs = kwargs | {BY: _unauthenticated(kwargs[BY])}
        return tuple(marked), kwargs

    def _bound(self, said: dict[str, Any]) -> dict[str, object]:
        """Return the fields for every log line about a message with the arguments `said`.

        The fields are the message's request ids, their number, and the sequencer's term.
        """
        bound: dict[str, object] = {}
        many = said.get("requests")
        each = many if isinstance(many, list) else [said]
        named = [one["request_id"] for one in each if isinstance(one, dict) and "request_id" in one]
        if named:
            bound["request_id"] = ",".join(map(str, named[:REQUESTS_NAMED]))
        if isinstance(many, list):
            bound["requests"] = len(many)
            TOGETHER.observe(len(many))
        sequencer = getattr(self.app, "sequencer", None)
        if sequencer is not None:
            bound["term"] = sequencer.term
        return bound

    def store_dead_letter(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        error: str,
        *,
        replayable: bool = True,
    ) -> None:
        """Store this task's message, which failed with `error`, as a dead letter.

        `replayable`: True if an operator may send the message again. If the dead letter cannot be
        stored now, the message stays unacknowledged until the dead letter is stored.
        """
        of, said = self.of, self.request
        store = partial(
            of.refusals.store,
            (said.delivery_info or {}).get("routing_key"),
            json.dumps({"args": args, "kwargs": kwargs}, default=str),
            error,
            task=self.name,
            task_id=said.id,
            replayable=replayable,
            again=getattr(said, DEAD_LETTER, None),
        )
        try:
            store()
        except NotStored:
            message = of.refusals.in_hand
            if message is None:
                raise
            message.unstored.append(store)


@dataclass(frozen=True)
class TaskRun:
    """One run of a task, for a whole message or for one request of a batch message.

    It is the first argument of every operation.
    """

    task: HandledTask
    senders: Sequence[str | None] = ()
    """The names of the API tokens with which callers other than the agents sent the requests.

    The names are in the order of the requests or commands of the message. None: the request was
    sent with the agent's own token or with none, or the name is invalid.
    """
    part: int | None = None
    """The index of the one request of a batch message that this run carries out; None for the whole
    message.
    """

    @property
    def of(self) -> App:
        """The Celery application, which has the connections and settings of this process."""
        return self.task.of

    @property
    def request(self) -> Any:
        """Celery's context of the message: its task id and headers."""
        return self.task.request

    @property
    def runner(self) -> TransactionRunner:
        """The runner of transactions that commit only while this process leads its lane.

        Raises `StaleTerm` unless this process leads.
        """
        return self.of.sequencer.runner

    def settings_in(self, transaction: FencedTransaction) -> Settings:
        """Return all settings that are in force in `transaction`, as one object.

        Operational settings, such as calling hours, can be changed by an operator while processes
        run. Their values are those of the version that was in force when `transaction` proved its
        term. All other settings are those of this process's environment.
        """
        return of_transaction(transaction, self.of.settings)

    def once(
        self,
        operation: Callable[[FencedTransaction], T],
        *,
        subject: str | None = None,
        part: int | None = None,
    ) -> T:
        """Carry out `operation` in a fenced transaction, once per message.

        A fenced transaction commits only while this process leads its lane. A repeated message gets
        the first answer. A message is recognised by its id. If the message has the header
        `command_id`, the value of that header is the id; it stays the same when the message is sent
        again. If the message has no such header, its task id is the id.

        `subject` names the state that the operation sets, such as the status of an agent. An
        operator's command has a number in the header `command_position`, in the order in which the
        commands were given. A command with a smaller number than the last one for the same subject
        is refused.

        `part`: the index of one request or command of a batch message, if each of them is carried
        out in a transaction of its own. The index is added to the message's id, so that each of
        them has its own stored answer. If this run is for one request of a batch message, the index
        of that request (`self.part`) is used and `part` is ignored.
        """
        said = self.request
        place = part if self.part is None else self.part
        name = _fit(getattr(said, COMMAND_ID, None) or said.id, place)
        position = getattr(said, COMMAND_POSITION, None)
        if not isinstance(position, int) or isinstance(position, bool):
            position = None
        command = CommandIdentity(name, self.task.name, subject, position)
        return self.runner.run(operation, command=command)

    def sender(self, part: int = 0) -> str | None:
        """Return the name of the API token with which a caller other than the agent sent a request.

        `part`: the index of the request among the requests or commands of this run. The result is
        None if the request was sent with the agent's own token or with none, or if the name is
        invalid. The name begins with `UNAUTHENTICATED` if the message has no valid signature.
        """
        place = part + (self.part or 0)
        return self.senders[place] if place < len(self.senders) else None


class _UnansweredError(Exception):
    """The error by which `_answered` finds out that a message has no stored answer yet.

    `TaskRun.once` returns the stored answer of a message, or else calls an operation. `_answered`
    passes it an operation that only raises this error. So the error means that there is no stored
    answer. The error also ends the transaction, which then commits nothing.
    """


def _unauthenticated(by: object) -> object:
    if not isinstance(by, str) or len(by) > WORD_AT_MOST or by.startswith(UNAUTHENTICATED):
        return by  # a name that is too long is refused elsewhere, with that reason
    return f"{UNAUTHENTICATED}{by}"[:WORD_AT_MOST]


def task_handler(
    app: App,
    name: str,
    operation: Callable[Concatenate[TaskRun, ...], Any],
    *,
    in_flower: bool = True,
    routine: bool = False,
) -> None:
    """Register `operation` as the Celery task `name`.

    Its first parameter is the `TaskRun`. The others, with their types, are the arguments of a
    message. `in_flower`: True if the worker sends Celery's events of the task, which Flower lists.
    `routine`: True if Flower is to list only the runs that changed something or failed.
    """
    validated = validate_call(config={"arbitrary_types_allowed": True})(operation)
    run = app.task(
        name=name,
        base=HandledTask,
        bind=True,
        shared=False,
        send_events=in_flower and not routine,
        routine=routine,
        operation=staticmethod(validated),
        parameters=list(inspect.signature(operation).parameters),
    )
    run(_named(operation))


def _fit(name: object, part: int | None) -> str:
    """Return the id under which a message, or one part of it, is stored.

    `name`: the id of the message. `part`: the number of the part, such as a request of a batch
    message; it is added to the id after a `#`. None: the whole message. An id that is empty, longer
    than `LONGEST_ID` characters or not printable is replaced by its digest.
    """
    said = str(name) if part is None else f"{name}#{part}"
    if 0 < len(said) <= LONGEST_ID and "\0" not in said and said.isprintable():
        return said
    return blake2b(said.encode(errors="surrogatepass"), digest_size=32).hexdigest()


def _named(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the name and docstring of `operation`, for Celery to register.

    The function is never called, because `HandledTask.__call__` runs instead.
    """

    def run(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    run.__doc__ = inspect.getdoc(operation)
    run.__name__ = operation.__name__
    return run


def one_line(error: ValidationError, parameters: Sequence[str] = ()) -> str:
    """Return the name of the first invalid argument and what is wrong with it, in one line.

    `parameters` has the names of the positional arguments. The line also shows the beginning of the
    invalid value. A value that a person has typed, such as a note, is not shown, because it may be
    about a user and could then remain stored. The reason: the line becomes part of the task's
    result in Redis. The command `person forget`, which erases a user's data, finds a result only if
    the result contains an id or a phone number of the user.
    """
    first = error.errors()[0]
    head, *rest = first["loc"]
    named = parameters[head] if isinstance(head, int) and head < len(parameters) else head
    where = ".".join(str(part) for part in (named, *rest))
    is_hidden = first["type"] == "missing_argument" or named in _TYPED
    shown = "" if is_hidden else f" (given: {first['input']!r:.80})"
    named_at = where if where.isprintable() else repr(where)
    return f"{named_at:.80}: {plain(first['msg'])}{shown}"


def _count(task: str, answer: object) -> dict[str, int]:
    """Count the answers in `answer` in the task's metrics; return the number of each outcome."""
    each = answer if isinstance(answer, list) else [answer]
    outcomes = Counter(str(getattr(one, "outcome", "done")) for one in each)
    for outcome, count in outcomes.items():
        ANSWERS.labels(task, outcome).inc(count)
    return dict(outcomes)
