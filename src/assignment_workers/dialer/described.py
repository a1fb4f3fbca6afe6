"""The description of a dialer: as plain values, and as TypeScript or Python types.

The HTTP interface and the command line return the plain values as JSON. The command line also
prints them as tables, and prints the types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from assignment_workers.policy.dialer import Dialer
from assignment_workers.policy.queues import Policy

Language = Literal["typescript", "python"]


class RuleDescription(BaseModel):
    """A rule of a dialer queue. `name` is the reason that is reported if the rule does not hold."""

    name: str
    kind: Literal["converted", "blocked", "resting"] = Field(
        description="The effect on a user who breaks the rule: done, not callable, or callable "
        "later."
    )
    means: str


class QueueDescription(BaseModel):
    """A dialer queue and its rules in order."""

    name: str
    title: str
    conversion: str = Field(
        description="The type under which its conversions (users who reach the goal) are recorded."
    )
    rules: list[RuleDescription]


class OutcomeDescription(BaseModel):
    """An outcome of a call, as an agent chooses it."""

    name: str
    title: str
    meaning: str
    takes_callback: bool = Field(description="True if `callback_at` may be given.")
    needs_callback: bool = Field(description="True if `callback_at` has to be given.")
    needs_notes: bool = Field(description="True if `notes` have to be given.")
    terminal: bool = Field(description="True if the user is never offered again.")


class ActionDescription(BaseModel):
    """A task for another system after a call, such as to send a text message.

    The event of the completed call names the task.
    """

    name: str
    means: str


class DialerDescription(BaseModel):
    """The dialer queues, outcomes and actions that the dialer's file defines.

    The dialer queues and the outcomes are in the order of the file. The actions are in the order in
    which the outcomes name them; `review` comes last unless an outcome names it.
    """

    queues: list[QueueDescription]
    outcomes: list[OutcomeDescription]
    actions: list[ActionDescription]


def describe(dialer: Dialer, policies: Mapping[str, Policy]) -> DialerDescription:
    """Return the dialer as plain values, for HTTP and the command line.

    `policies`: the policy (all rules) of each dialer queue, by name.
    """
    return DialerDescription(
        queues=[
            QueueDescription(
                name=queue.name,
                title=queue.title,
                conversion=queue.conversion,
                rules=[
                    RuleDescription(name=rule.name, kind=rule.kind.value, means=rule.means)
                    for rule in policies[queue.name].rules
                ],
            )
            for queue in dialer.queues
        ],
        outcomes=[
            OutcomeDescription(
                name=each.name,
                title=each.title,
                meaning=each.meaning,
                takes_callback=each.callback,
                needs_callback=each.needs_callback,
                needs_notes=each.needs_notes,
                terminal=each.terminal,
            )
            for each in dialer.outcomes
        ],
        actions=[
            ActionDescription(name=each.name, means=each.means) for each in dialer.actions.values()
        ],
    )


def types(dialer: Dialer, language: Language) -> str:
    """Return source code in `language` for types that accept only the names in this dialer.

    The types are `Queue`, `Outcome` and `Action`.
    """
    named = {
        "Queue": [queue.name for queue in dialer.queues],
        "Outcome": [outcome.name for outcome in dialer.outcomes],
        "Action": [*dialer.actions],
    }
    if language == "typescript":
        lines = [f"export type {kind} = {_union(names)};" for kind, names in named.items()]
        return "// Made by `assignment-workers dialer types`.\n" + "\n".join(lines) + "\n"
    lines = [
        f"{kind} = Literal[{', '.join(map(json.dumps, names))}]" for kind, names in named.items()
    ]
    begin = '"""Made by `assignment-workers dialer types`."""\n\nfrom typing import Literal\n\n'
    return begin + "\n".join(lines) + "\n"


def _union(names: Sequence[str]) -> str:
    return " | ".join(map(json.dumps, names))
