"""The actions of operators on the dashboard: each with a reason, and recorded with its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import unquote
from uuid import UUID

from sqlalchemy import Engine

from assignment_workers.assignment import user_ids
from assignment_workers.assignment.answers import Code
from assignment_workers.assignment.dead_letters import (
    Letter,
    arguments,
    dismiss,
    letter,
    mark_replayed,
)
from assignment_workers.assignment.operational_settings import SettingChange, misfit
from assignment_workers.assignment.operator_actions import ASKED, WHY_AT_MOST, RequestedAction
from assignment_workers.client import AsyncClient, Unavailable, commands
from assignment_workers.client.commands import CommandCall
from assignment_workers.errors import NotReplayable, UsageError, no_queue
from assignment_workers.gateway.operator_actions import recorded
from assignment_workers.gateway.problems import Problem, refused
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import SuppressionKind

TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True)
class Asked:
    """A requested action with the operator, the reason and the fields of its form."""

    subject: str
    """The id of the user, agent, dialer queue or other object that the action changes.

    For an action on a phone number it is the text `a phone number`; for an action on no single
    object it is `all`.
    """
    who: str
    why: str
    said: Mapping[str, str]
    position: int = 0
    """The number to send with the action's commands; 0 until the action is recorded.

    The database assigns the number when the action is recorded. An action that is recorded later
    has a higher number. The sequencer refuses a command if a command with a higher number was
    carried out before and set the same thing, such as the pause of the same dialer queue.
    """


A_PHONE_NUMBER, ALL = "a phone number", "all"
"""The texts recorded in place of an object's id: `A_PHONE_NUMBER` for an action on a phone number,
and `ALL` for an action that concerns no single object, such as to resume all dialer queues.
"""


@dataclass(frozen=True)
class Field:
    """A field of the form of an action. Every form also has a field for the reason."""

    name: str
    label: str
    required: bool = True
    digits: bool = True
    text: bool = False
    """True if the field is for a longer text. Such a field must also have `digits` False."""
    of_lists: bool = False
    """True if the field is only for pages that list users or phone numbers.

    The operator enters in it the user or the phone number to act on. A page about one user does
    not show the field, because the page itself sends that user's id.
    """
    of_user: bool = False
    """True if the field is for the CRM's id of a user."""

    @property
    def takes_digits(self) -> bool:
        """True if the field accepts only digits."""
        return self.digits and not (self.of_user and loaded().numbered)

    @property
    def takes_text(self) -> bool:
        """True if the field accepts a longer text."""
        return self.text or (self.of_user and not self.takes_digits)


@dataclass(frozen=True)
class Act:
    """An action that an operator can take on the dashboard."""

    title: str
    told: str
    """A sentence about the effect of the action. The operator sees it before acting."""
    do: Callable[[AsyncClient, Engine, Asked], Awaitable[str]]
    """A function that carries out the action and returns its outcome as text: `done`, `refused:
    ...` or `unavailable: ...`.
    """
    where: Callable[[str], str]
    """A function that returns the path of the page that the operator sees after the action.

    Its argument is the id of the object that the action changes (`Asked.subject`). If the object
    has a page, the path is that of the object's page. If the object has no page, for example
    because it is a phone number, the path is that of the page on which the action is offered.
    """
    fields: Sequence[Field] = ()


async def carry_out(client: AsyncClient, engine: Engine, name: str, asked: Asked) -> int:
    """Carry out the action `name`, recorded before and after; return the number of its record.

    Raises `Problem` 422 for an unknown action, for a missing or too long reason, for a too long id,
    and for a null character in the reason or the id. Nothing is done or recorded then. Any other
    invalid value of the form is recorded as the outcome `refused: ...`. Raises `Problem` 503 if the
    database does not answer; if the action had begun, its record has no outcome.
    """
    act = ACTS.get(name)
    if act is None:
        raise _malformed(f"no action {name!r}; there are {', '.join(ACTS)}")
    if not 1 <= len(asked.why) <= WHY_AT_MOST:
        raise _malformed(f"say why, in 1 to {WHY_AT_MOST} letters: it is kept with what you did")
    if "\x00" in asked.why + asked.subject or len(asked.subject) > WHY_AT_MOST:
        raise _malformed("a null character, or too long a subject")

    async def do(position: int) -> str:
        try:
            return await act.do(client, engine, replace(asked, position=position))
        except Problem as problem:
            return f"refused: {problem.detail}"

    action = RequestedAction(name, asked.subject, asked.who, asked.why)
    return (await recorded(engine, action, do, str))[0]


async def _ask(client: AsyncClient, asked: Asked, command: CommandCall) -> str:
    answer = await client.ask(command.at(asked.position), TIMEOUT)
    said = answer.model_dump(mode="json") if isinstance(answer, Unavailable) else answer
    if not isinstance(said, dict):
        return "unavailable: the workers answered what this version cannot read"
    match said:
        case {"outcome": "refused" | "unavailable" as how, "reason": reason}:
            return f"{how}: {reason}"
        case {"replayed": True}:
            return "done: it was so already"
        case {"counts": dict(counts)} if counts:
            return "done: " + ", ".join(f"{name} {count}" for name, count in counts.items())
        case _:
            return "done"


def _queue(asked: Asked) -> str:
    if asked.subject not in loaded().policies:
        raise _malformed(no_queue(asked.subject, loaded().policies))
    return asked.subject


def _assignment(asked: Asked) -> UUID:
    try:
        return UUID(asked.subject)
    except ValueError:
        raise _malformed(f"{asked.subject!r:.50} is no assignment's id") from None


async def _pause(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _ask(client, asked, commands.pause(_queue(asked), asked.who, asked.why))


async def _resume(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _ask(client, asked, commands.resume(_queue(asked), asked.who, asked.why))


async def _drain(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _all(
        client, asked, [commands.pause(each, asked.who, asked.why) for each in loaded().policies]
    )


async def _resume_all(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _all(
        client, asked, [commands.resume(each, asked.who, asked.why) for each in loaded().policies]
    )


async def _all(client: AsyncClient, asked: Asked, each: list[CommandCall]) -> str:
    outcomes = [await _ask(client, asked, command) for command in each]
    wrong = [outcome for outcome in outcomes if not outcome.startswith("done")]
    return wrong[0] if wrong else "done"


async def _rebuild(client: AsyncClient, _: Engine, asked: Asked) -> str:
    task = await client.regenerate(_queue(asked))
    return f"unavailable: {task.reason}" if isinstance(task, Unavailable) else ASKED


async def _take_back(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _ask(client, asked, commands.take_back(_assignment(asked), asked.who, asked.why))


async def _reassign(client: AsyncClient, _: Engine, asked: Asked) -> str:
    agent = _number(asked.said.get("agent", ""), 2**31 - 1)
    if agent is None:
        raise _malformed("agent: the number of the agent who shall have the user")
    return await _ask(
        client, asked, commands.reassign(_assignment(asked), agent, asked.who, asked.why)
    )


async def _suppress(client: AsyncClient, _: Engine, asked: Asked) -> str:
    user, phone = _whom(asked)
    return await _ask(client, asked, commands.do_not_contact(user, phone, asked.why, asked.who))


async def _lift(client: AsyncClient, _: Engine, asked: Asked) -> str:
    user, phone = _whom(asked)
    kind = SuppressionKind.DO_NOT_CONTACT.value
    return await _ask(client, asked, commands.lift(kind, user, phone, asked.why, asked.who))


async def _release(client: AsyncClient, _: Engine, asked: Asked) -> str:
    user, _phone = _whom(asked)
    kind = SuppressionKind.QUARANTINE.value
    return await _ask(client, asked, commands.lift(kind, user, None, asked.why, asked.who))


async def _lift_closed(client: AsyncClient, _: Engine, asked: Asked) -> str:
    user, _phone = _whom(asked)
    queue = asked.said.get("queue", "")
    if queue not in loaded().policies:
        raise _malformed(no_queue(queue[:50], loaded().policies))
    kind = SuppressionKind.CLOSED.value
    return await _ask(
        client, asked, commands.lift(kind, user, None, asked.why, asked.who, queue=queue)
    )


def subject_of(said: Mapping[str, str]) -> str:
    """Return the text to record as the object of an action, from the fields of its form.

    The text is the object's id. For an action on a phone number it is only `a phone number`, so
    that the number itself is not recorded; for an action on no single object it is `all`.
    """
    named = said.get("subject") or said.get("user") or said.get("name")
    return named or (A_PHONE_NUMBER if said.get("phone") else ALL)


def _whom(asked: Asked) -> tuple[UserId | None, str | None]:
    """Return the user id and the phone number that an action concerns, each None if missing.

    The user id is in the form's field `subject` (on a page about one user) or `user`. The phone
    number is in the field `phone`. If the form has a user id and a phone number, both are returned;
    the sequencer refuses a command that has both. Raises `Problem` 422 if the user id is invalid.
    """
    phone = asked.said.get("phone") or None
    named = asked.said.get("subject") or asked.said.get("user")
    if not named:
        return None, phone
    try:
        return user_ids.read(loaded(), named), phone
    except UsageError as error:
        raise _malformed(f"user: {error}") from None


async def _change_setting(client: AsyncClient, _: Engine, asked: Asked) -> str:
    said = {name: asked.said.get(name, "").strip() or None for name in ("queue", "team", "value")}
    change = SettingChange(name=asked.said.get("name", "").strip(), **said)
    if wrong := misfit(change, loaded().policies):
        raise _malformed(wrong)
    return await _ask(
        client, asked, commands.change_settings([change.model_dump()], asked.who, asked.why)
    )


async def _repair(client: AsyncClient, _: Engine, asked: Asked) -> str:
    return await _ask(client, asked, commands.repair())


async def _replay(client: AsyncClient, engine: Engine, asked: Asked) -> str:
    number = _letter(asked)
    sent = await send_again(client, engine, number)
    return _sent(sent)


async def send_again(client: AsyncClient, engine: Engine, number: int) -> str | Unavailable:
    """Send the message of dead letter `number` again; return the new id of the message.

    Returns `Unavailable` if the broker is unavailable. Raises `Problem` if there is no such dead
    letter, or if its message cannot be sent again.
    """

    def find() -> Letter | None:
        with engine.connect() as connection:
            return letter(connection, number)

    found = await asyncio.to_thread(find)
    if found is None:
        raise _malformed(f"no dead letter {number}")
    try:
        task, args, kwargs = arguments(found)
    except NotReplayable as error:
        raise _malformed(str(error)) from None
    queue = found.celery_queue or "maintenance"
    sent = await client.send_again(task, args, kwargs, queue, dead_letter=number)
    if isinstance(sent, str):
        name = sent

        def mark() -> None:
            with engine.begin() as connection:
                mark_replayed(connection, found, name)

        await asyncio.to_thread(mark)
    return sent


async def _dismiss(_: AsyncClient, engine: Engine, asked: Asked) -> str:
    return _dismissed(await dismissed(engine, [_letter(asked)], asked.who, asked.why))


async def _dismiss_all(_: AsyncClient, engine: Engine, asked: Asked) -> str:
    return _dismissed(await dismissed(engine, None, asked.who, asked.why))


async def dismissed(
    engine: Engine, numbers: Sequence[int] | None, who: str, why: str | None
) -> list[int]:
    """Dismiss dead letters; return the numbers of those that this call dismissed.

    `numbers`: the numbers of the dead letters to dismiss. None: all dead letters that were neither
    sent again nor dismissed yet. In both cases one call dismisses at most 10,000 dead letters
    (`dead_letters.DISMISSED_AT_ONCE`), the oldest first.
    """

    def do() -> list[int]:
        with engine.begin() as connection:
            return dismiss(connection, numbers, by=who, why=why)

    return await asyncio.to_thread(do)


def _dismissed(numbers: Sequence[int]) -> str:
    return f"done: dismissed {len(numbers)}"


def _letter(asked: Asked) -> int:
    number = _number(asked.subject, 2**63 - 1)
    if number is None:
        raise _malformed(f"{asked.subject!r:.50} is no dead letter's number")
    return number


def _sent(task: str | Unavailable) -> str:
    if isinstance(task, Unavailable):
        return f"unavailable: {task.reason}"
    return f"done: sent as task {task}"


def _number(said: str, most: int) -> int | None:
    """Parse the text `said` as a number; return None if it is not a number from 1 to `most`."""
    is_one = said.isascii() and said.isdigit() and len(said) <= len(str(most))
    return int(said) if is_one and 1 <= int(said) <= most else None


def _malformed(detail: str) -> Problem:
    return refused(HTTPStatus.UNPROCESSABLE_ENTITY, Code.MALFORMED, detail)


def _of_queue(name: str) -> str:
    return f"/queues/{name}"


def _of_all(_: str) -> str:
    return "/engine"


def _of_assignment(name: str) -> str:
    return f"/assignments/{name}"


def _of_whom(name: str) -> str:
    return "/do-not-contact" if unquote(name) in {A_PHONE_NUMBER, ALL} else f"/users/{name}"


_USER = Field("user", "User", of_lists=True, of_user=True)
_WHOM = (
    Field("user", "User", required=False, of_lists=True, of_user=True),
    Field("phone", "or phone", required=False, digits=False, of_lists=True),
)


ACTS: dict[str, Act] = {
    "pause": Act(
        "Pause", "Nobody is handed out from it until it is resumed; holds go on.", _pause, _of_queue
    ),
    "resume": Act("Resume", "Users are handed out from it again.", _resume, _of_queue),
    "rebuild": Act(
        "Rebuild now",
        "A new generation is built beside this one and published.",
        _rebuild,
        _of_queue,
    ),
    "drain": Act(
        "Drain for maintenance",
        "Every dialer queue is paused. It is drained once no hold is left.",
        _drain,
        _of_all,
    ),
    "resume_all": Act(
        "Resume all", "Every dialer queue hands out users again.", _resume_all, _of_all
    ),
    "repair": Act(
        "Repair",
        "Entries are brought in line with holds, where findings are repairable. No hold changes.",
        _repair,
        _of_all,
    ),
    "take_back": Act(
        "Release",
        "The hold ends; the user is claimable at once. The agent's answer will be refused.",
        _take_back,
        _of_assignment,
    ),
    "reassign": Act(
        "Give to another agent",
        "The hold ends and another agent gets the user, if the user may still be called.",
        _reassign,
        _of_assignment,
        (Field("agent", "To agent"),),
    ),
    "release_from_quarantine": Act(
        "Release from quarantine",
        "Builds consider the user again; failures until now do not count any more.",
        _release,
        _of_whom,
        (_USER,),
    ),
    "lift_closed": Act(
        "Open the dialer queue again",
        "Builds of this dialer queue consider the user again.",
        _lift_closed,
        _of_whom,
        (_USER, Field("queue", "Dialer queue", digits=False)),
    ),
    "do_not_contact": Act(
        "Do not contact",
        "The user, or each user with this phone number, is offered to nobody; a hold goes on.",
        _suppress,
        _of_whom,
        _WHOM,
    ),
    "lift": Act(
        "Take off the do-not-contact list",
        "Builds consider the user, or each user with this phone number, again.",
        _lift,
        _of_whom,
        _WHOM,
    ),
    "change_setting": Act(
        "Change a setting",
        "The next claim judges by it, in every process. Without a value, that for all counts, or"
        " else the default.",
        _change_setting,
        lambda _: "/settings",
        (
            Field("name", "Setting", digits=False, text=True),
            Field("value", "Value", required=False, digits=False, text=True),
            Field("queue", "Dialer queue", required=False, digits=False),
            Field("team", "or team", required=False, digits=False),
        ),
    ),
    "replay": Act(
        "Send again",
        "The message is sent again, as it was, under a new id.",
        _replay,
        lambda name: f"/dead-letters/{name}",
    ),
    "dismiss": Act(
        "Dismiss",
        "The message is not to be seen to any more; it stays here until its retention ends.",
        _dismiss,
        lambda name: f"/dead-letters/{name}",
    ),
    "dismiss_all": Act(
        "Dismiss all",
        "Dismisses the messages that were neither sent again nor dismissed, at most 10,000.",
        _dismiss_all,
        lambda _: "/dead-letters",
    ),
}
