"""The plan of a simulation: its agents, its length, its speed, and its faults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

LEASE = timedelta(minutes=5)
SHORTEST_LEASE = 15.0
"""The shortest lease in real seconds, however fast the simulated time runs.

Faults last in real time, so a lease must be longer than a usual fault.
"""

FLOWER_TASKS = "1000"
"""The number of tasks that Flower, the monitor of Celery, remembers in a soak.

Fifty agents cause about this number of tasks in a minute. Because of the limit, Flower's memory
stops growing early in the run and is not mistaken for a leak.
"""


@dataclass(frozen=True)
class Plan:
    """The parameters of one simulated run, such as its agents, its length and its faults.

    Simulated time runs `speed` times as fast as real time.
    """

    agents: int
    users: int
    """The number of users in each dialer queue."""
    seconds: float
    speed: float
    seed: int
    chaos: bool
    between: tuple[float, float] = (6.0, 14.0)
    """The least and the most real seconds between the end of a fault and the next fault."""
    retention: timedelta | None = None
    """The time for which a generation's rows are stored after another generation has replaced it.

    None: the setting of the stack applies. Only a soak (a long run to find leaks) sets a time.
    """
    lanes: str = ""
    """The lanes of a new stack, in the form of the setting `ASSIGNMENT_WORKERS_LANES`.

    A lane is a group of dialer queues with a sequencer of its own. Empty: only the default lane.
    """
    own_stack: bool = False
    """True if the stack was started for this run, so that a fault may change its database for good.
    """

    def wall(self, span: timedelta) -> float:
        """Return the real seconds that a span of simulated time takes."""
        return span.total_seconds() / self.speed

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a stack for this run.

        Four variables are simulated times. They are the lease, the two waits after a skip, and the
        shortest time between a build of a dialer queue and a rebuild that is made because the queue
        has too few claimable users. These times are divided by `speed`, but the lease is never
        shorter than `SHORTEST_LEASE`. If `retention` is set, a fifth time is included: `retention`
        is real time and is not divided.
        """
        kept = {}
        if self.retention is not None:
            seconds = _seconds(self.retention.total_seconds())
            kept["ASSIGNMENT_WORKERS_GENERATION_RETENTION_SECONDS"] = seconds
            kept["FLOWER_MAX_TASKS"] = FLOWER_TASKS
        if self.lanes:
            kept["ASSIGNMENT_WORKERS_LANES"] = self.lanes
        return kept | {
            "ASSIGNMENT_WORKERS_DEMO_USERS": str(self.users),
            "ASSIGNMENT_WORKERS_DEMO_SEED": str(self.seed),
            "ASSIGNMENT_WORKERS_LEASE_SECONDS": _seconds(max(self.wall(LEASE), SHORTEST_LEASE)),
            "ASSIGNMENT_WORKERS_SKIP_AGENT_SECONDS": _seconds(self.wall(timedelta(hours=1))),
            "ASSIGNMENT_WORKERS_SKIP_EVERYONE_SECONDS": _seconds(self.wall(timedelta(minutes=15))),
            "ASSIGNMENT_WORKERS_LEVEL_INTERVAL_SECONDS": _seconds(self.wall(timedelta(minutes=15))),
        }


def _seconds(value: float) -> str:
    return f"{value:.3f}"
