"""The plan of a simulation: its agents, its length, its speed, and its faults."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

LEASE = timedelta(minutes=5)
SHORTEST_LEASE = 15.0
"""The shortest lease in real seconds, however fast the day goes.

A fault takes its real time, so a hold has to outlive the usual fault.
"""

FLOWER_TASKS = "1000"
"""The number of tasks that Flower remembers in a soak: a minute of fifty agents.

Its memory therefore stops growing early in a run.
"""


@dataclass(frozen=True)
class Plan:
    """The plan of one run. Simulated time runs `speed` times as fast as real time."""

    agents: int
    users: int
    """The number of users in each pool."""
    seconds: float
    speed: float
    seed: int
    chaos: bool
    between: tuple[float, float] = (6.0, 14.0)
    """The least and the most seconds from the end of a fault to the next one."""
    retention: timedelta | None = None
    """The retention of the entries of a retired generation; None: the setting of the stack.

    It is set for a soak alone, whose Flower also remembers `FLOWER_TASKS`.
    """
    lanes: str = ""
    """The lanes of a new stack, as in ASSIGNMENT_WORKERS_LANES; empty: the default lane alone."""
    own_stack: bool = False
    """True if the stack is the run's own: a fault may then change its database for good."""

    def wall(self, span: timedelta) -> float:
        """Return the real seconds that a span of simulated time takes."""
        return span.total_seconds() / self.speed

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a stack for this run, with times divided by `speed`."""
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
