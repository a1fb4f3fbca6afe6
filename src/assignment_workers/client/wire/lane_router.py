"""The choice of the assignment queue to which a request or a command is sent.

The right lane for a command is the lane of the dialer queue that the command concerns. But any lane
answers any command correctly. A sequencer's transaction writes only the data of lanes that it has
locked, at first only the sequencer's own lane. If a command comes to a wrong lane, the sequencer of
the wrong lane starts the transaction again and also locks the right lane. The only cost is this
second attempt. The lane may therefore be guessed if the command names no dialer queue. An agent's
next command probably concerns the dialer queue from which the agent got the last user.
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

        If the command names a dialer queue, its lane is the lane of this dialer queue. If the
        command names none, its lane is the lane of the dialer queue from which the agent got the
        last user. If this client remembers no user of the agent, the command goes to the default
        lane. A command for a Celery queue that is no assignment queue, such as a heartbeat, is
        returned unchanged.
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
