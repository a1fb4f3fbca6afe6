"""Which assignment queue a command goes to: that of the lane which it concerns.

Any lane answers any command rightly, a wrong one with a second try and both lanes held. So what is
not said may be guessed: an agent's next move concerns the lane that last gave them somebody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from assignment_workers.assignment.lanes import ASSIGNMENT, ONE_LANE, Lanes
from assignment_workers.client.commands import OFF_THE_LINE, CommandCall

REMEMBERED_AT_MOST = 100_000
"""Agents; the one heard of longest ago is forgotten."""


@dataclass
class LaneRouter:
    """What one client knows of the lanes. With one lane it does nothing."""

    lanes: Lanes = ONE_LANE
    _last: dict[int, str] = field(default_factory=dict)
    """By agent: the dialer queue of the last user they were given."""

    def way(self, command: CommandCall) -> CommandCall:
        """The command with the assignment queue that it goes to."""
        if self.lanes.is_one or command.celery_queue in OFF_THE_LINE:
            return command
        arguments = command.arguments
        queue = arguments.get("queue") or self._last.get(arguments.get("agent_id", 0))
        to = self.lanes.way_to(queue)
        return command if to == ASSIGNMENT else replace(command, celery_queue=to)

    def heard(self, answer: object) -> None:
        """Remember whom an answer gives to whom."""
        match answer:
            case {
                "outcome": "assigned",
                "assignment": {"agent_id": int(agent), "queue": str(queue)},
            }:
                if not self.lanes.is_one:
                    self._last.pop(agent, None)
                    self._last[agent] = queue
                    if len(self._last) > REMEMBERED_AT_MOST:
                        del self._last[next(iter(self._last))]
            case _:
                pass
