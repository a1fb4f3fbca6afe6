"""Choice of the assignment queue for a command: that of the lane which the command concerns.

Any lane answers any command correctly. If a command comes to a wrong lane, the sequencer of that
lane starts its transaction again, with the right lane locked as well. The only cost is this second
attempt. The lane may therefore be guessed when the command names no dialer queue: an agent's next
command probably concerns the lane of the agent's last user.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from assignment_workers.assignment.lanes import ASSIGNMENT, ONE_LANE, Lanes
from assignment_workers.client.commands import OFF_THE_LINE, CommandCall

REMEMBERED_AT_MOST = 100_000
"""The greatest number of agents whose last dialer queue is remembered. The agent whose last
assignment is the oldest is forgotten first.
"""


@dataclass
class LaneRouter:
    """The choice of the assignment queue to which each request or command of one client is sent.

    Each lane, a group of dialer queues, has one assignment queue. If there is only one lane, there
    is nothing to choose.
    """

    lanes: Lanes = ONE_LANE
    _last: dict[int, str] = field(default_factory=dict)
    """By agent id: the dialer queue of the last user who was assigned to the agent."""

    def way(self, command: CommandCall) -> CommandCall:
        """Return the request or command, addressed to the assignment queue of its lane.

        The lane is that of the dialer queue that the command names. A command that names none goes
        to the lane of its agent's last user. A command for a Celery queue that is no assignment
        queue, such as a heartbeat, is returned unchanged.
        """
        if self.lanes.is_one or command.celery_queue in OFF_THE_LINE:
            return command
        arguments = command.arguments
        queue = arguments.get("queue") or self._last.get(arguments.get("agent_id", 0))
        to = self.lanes.way_to(queue)
        return command if to == ASSIGNMENT else replace(command, celery_queue=to)

    def heard(self, answer: object) -> None:
        """Remember the dialer queue of the assigned user, for the agent's later commands.

        `answer`: any answer to a call; one that assigns no user is ignored.
        """
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
