"""Verbs: the actions of an agent on an assignment, such as `complete`, each declared once.

`moves.py` declares the verbs. The Celery tasks, the routes of the gateway, the commands of the CLI
and the methods of the Python clients are made from these declarations. This module and `moves.py`
import neither SQLAlchemy nor Celery, because the clients and the CLI's help import them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from inspect import Parameter, Signature
from types import MethodType, NoneType
from typing import (
    Annotated,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

P = ParamSpec("P")
M_co = TypeVar("M_co", covariant=True)
T_co = TypeVar("T_co", covariant=True)

_PLAIN = frozenset({str, int, NoneType})
"""Types of values that a message carries unchanged."""
TIMEOUT = timedelta(seconds=10)
"""Default time that a client waits for an answer."""

AgentId = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True, examples=[26])]
Version = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]

ASSIGNMENT = "assignment_id"
AGENT = "agent_id"
OWNER = (ASSIGNMENT, AGENT, "version")
"""Names of the parameters of every verb (an agent's action): assignment, agent, known version."""
LIMITS, WAIT = "limits", "timeout"
"""Names of two parameters of a verb's function whose values are not sent in a message.

A verb is an action of an agent, such as `complete`. The values are the settings that the worker
applies, and the time that the client waits for the answer.
"""


class Limits(Protocol):
    """The settings that apply to an agent's action (a verb), such as the duration of a lease."""

    @property
    def lease(self) -> timedelta:
        """The time that an accepted assignment lasts without a heartbeat or a renewal."""

    @property
    def skip_everyone(self) -> timedelta:
        """The time for which a skipped user is offered to no agent."""

    @property
    def defer_maximum(self) -> timedelta:
        """The longest time for which an agent may defer a user."""

    @property
    def callback_retry(self) -> timedelta:
        """The time until a callback that nobody answered is tried again."""


@dataclass(slots=True)
class VerbCall:
    """One action of an agent that a client sends, such as completing an assignment.

    `verb`: the name of the action. `arguments`: its arguments as JSON values. `timeout`: the
    maximum time that the client waits for the answer.
    """

    verb: str
    arguments: dict[str, Any]
    timeout: timedelta

    @property
    def own(self) -> dict[str, Any]:
        """The arguments that the body of the HTTP request carries.

        The argument `assignment_id` is left out, because it is a part of the request's path.
        """
        return {name: each for name, each in self.arguments.items() if name != ASSIGNMENT}


@dataclass(frozen=True)
class Argument:
    """An argument that a verb has in addition to assignment, agent and version.

    A verb is an action of an agent. For example, the verb `complete` has the argument `outcome`.
    """

    name: str
    annotation: Any
    """The type with pydantic's constraints, as annotated in the function that declares the verb."""
    kind: type[int | str | datetime]
    required: bool
    default: Any
    description: str | None


class Performs(Protocol[T_co]):
    """A client that sends an agent's command; it returns the answer, or a coroutine for it."""

    def perform(self, call: VerbCall, /) -> T_co:
        """Send an agent's action, such as completing an assignment; return the answer.

        An asynchronous client returns a coroutine for the answer.
        """


class Verb(Generic[P, M_co]):
    """An action of an agent on an assignment, such as `complete`, as declared by one function.

    Every interface to the action is made from this declaration: the Celery task, the HTTP route,
    the CLI command and the method of the clients. The function's first parameter, `limits`, has the
    settings. The function's parameter `timeout` is used by clients only. The other parameters are
    the arguments in all interfaces, with the validation and the descriptions of their annotations.
    The first paragraph of the function's docstring describes the verb in all interfaces. The
    function returns a move: the object with the values that `finish` needs to carry out the verb.

    A verb that is an attribute of a client's class works as a method of that client. For mypy and
    editors, the method has the function's parameters without `limits`, and returns the answer of
    that client (`FinishAnswer`, or a coroutine for it).
    """

    def __init__(
        self, declared: Callable[Concatenate[Limits, P], M_co], about: str | None = None
    ) -> None:
        self._declared: Callable[..., M_co] = declared
        self.name = declared.__name__
        self.about = about
        """A text that describes the arguments that only this verb has; None if there are none.

        A verb is an action of an agent. For example, the verb `complete` has an argument `outcome`,
        and its text is `The outcome of the call.`
        """
        self.description = (inspect.getdoc(declared) or "").partition("\n\n")[0]
        read = inspect.signature(declared)
        said = [each for name, each in read.parameters.items() if name != LIMITS]
        self.signature = read.replace(parameters=said)
        """The signature of the client's method for this verb (agent's action), without `self`."""
        self._positional = tuple(each.name for each in said if each.kind != Parameter.KEYWORD_ONLY)
        self._unsaid: dict[str, Any] = {
            each.name: None if each.default is Parameter.empty else each.default for each in said
        }
        self._required = {each.name for each in said if each.default is Parameter.empty}
        self.names = tuple(name for name in self._unsaid if name != WAIT)
        """The names of the arguments that a message of this verb carries, in the declared order.

        A verb is an action of an agent, such as `complete`.
        """
        self.method = _method(self)

    @overload
    def __get__(self, client: None, owner: type[Any]) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: Performs[T_co], owner: type[Any]) -> Callable[P, T_co]: ...
    def __get__(self, client: Performs[Any] | None, owner: type[Any]) -> Any:
        return self.method if client is None else MethodType(self.method, client)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> VerbCall:
        """Return the action with these arguments of the client's method, in the form to be sent.

        The arguments are converted to JSON values. Raises TypeError for arguments that do not fit
        the method's signature. The values are not validated here, because the worker and the
        gateway validate them.
        """
        said: dict[str, Any] = dict(zip(self._positional, args, strict=False))
        given: dict[str, Any] = self._unsaid | said | kwargs
        if (
            len(given) != len(self._unsaid)
            or len(args) > len(self._positional)
            or not said.keys().isdisjoint(kwargs)
            or not self._required <= said.keys() | kwargs.keys()
        ):
            self.signature.bind(*args, **kwargs)
        timeout: timedelta = given.pop(WAIT)
        for name, value in given.items():
            if value.__class__ in _PLAIN:
                continue
            if isinstance(value, datetime):
                given[name] = value.isoformat()
            elif isinstance(value, UUID):
                given[name] = str(value)
        return VerbCall(self.name, given, timeout)

    def move(self, limits: Limits, arguments: Mapping[str, Any]) -> M_co:
        """Return the move for these validated arguments: the object that `finish` carries out.

        `limits`: the settings that apply, such as the duration of a lease.
        """
        return self._declared(limits, **arguments)

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """The type of each argument that a message of this verb (agent's action) carries, by name.

        The types include pydantic's validation and the descriptions.
        """
        found = get_type_hints(self._declared, include_extras=True)
        return {name: found[name] for name in self.names} | {ASSIGNMENT: UUID}

    @cached_property
    def own(self) -> Sequence[Argument]:
        """The arguments that only this verb (an agent's action) has, in the declared order.

        Every verb has the arguments assignment, agent and version; these are left out.
        """
        return [
            Argument(
                name,
                kind := self.annotations[name],
                _plain(kind),
                required=name in self._required,
                default=self._unsaid[name],
                description=FieldInfo.from_annotation(kind).description,
            )
            for name in self.names
            if name not in OWNER
        ]

    @cached_property
    def model(self) -> type[BaseModel]:
        """A pydantic model that validates the arguments in a message of this verb (agent's action).

        The model rejects unknown arguments.
        """
        fields: dict[str, Any] = {
            name: (kind, ... if name in self._required else self._unsaid[name])
            for name, kind in self.annotations.items()
        }
        return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)

    def operation_signature(self, first: Parameter) -> Signature:
        """Return the signature of the function that the Celery task of this verb runs.

        A verb is an action of an agent, such as `complete`. `first`: the function's first
        parameter, by which the function gets the context of the task's run. The other parameters
        are the arguments that a message of this verb carries.
        """
        return Signature(
            [
                first,
                *(
                    Parameter(
                        name,
                        Parameter.POSITIONAL_OR_KEYWORD,
                        default=self.signature.parameters[name].default,
                        annotation=kind,
                    )
                    for name, kind in self.annotations.items()
                ),
            ]
        )


AnyVerb: TypeAlias = Verb[..., Any]


def verb(
    about: str | None = None,
) -> Callable[[Callable[Concatenate[Limits, P], M_co]], Verb[P, M_co]]:
    """Return a decorator that turns a function into a verb, an action of agents such as `complete`.

    The function's name, parameters and docstring define the action. Its first parameter, `limits`,
    has the settings that apply, such as the duration of a lease. The function returns a move: the
    object with the values that `finish` needs to carry out the action. `about`: a text that
    describes the arguments that only this verb has; None if there are none.
    """
    return lambda declared: Verb(declared, about)


def verbs_of(client: type[Any]) -> Sequence[AnyVerb]:
    """Return the verbs (actions of agents) that a client's class defines, in the defined order."""
    return [each for each in vars(client).values() if isinstance(each, Verb)]


def _plain(kind: Any) -> type[int | str | datetime]:  # noqa: ANN401 - a type as it is annotated
    """Return the type of an argument without the validation in its annotation and without None.

    For example, the annotation `Annotated[int, Field(ge=1)] | None` gives `int`.
    """
    if kind is AwareDatetime:
        return datetime
    if isinstance(kind, type) and issubclass(kind, int | str | datetime):
        return kind
    first = next(each for each in get_args(kind) if each is not NoneType)
    return _plain(first)


def _method(made: AnyVerb) -> Callable[..., Any]:
    """Return the method with which a client sends this verb (an agent's action).

    Its signature and docstring are those of the function that declares the verb.
    """

    def method(client: Performs[Any], /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return client.perform(made.call(*args, **kwargs))

    declared = made._declared  # noqa: SLF001 - a part of the class
    types = get_type_hints(declared)
    plain = [
        each.replace(annotation=_without_zone(types[name]))
        for name, each in made.signature.parameters.items()
    ]
    itself = Parameter("self", Parameter.POSITIONAL_ONLY)
    method.__name__ = method.__qualname__ = made.name
    method.__doc__ = declared.__doc__
    method.__module__ = declared.__module__
    method.__signature__ = Signature(  # type: ignore[attr-defined]
        [itself, *plain], return_annotation="FinishAnswer"
    )
    return method


def _without_zone(kind: Any) -> Any:  # noqa: ANN401 - a type as it is annotated
    return datetime | None if AwareDatetime in get_args(kind) else kind
