"""The health of the system and of its components, as pages, commands and metrics report it.

The names and texts of components contain no host and no address, because not only operators see
them. `/readyz` shows the names to callers without a token. Pages show the texts to supervisors too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, computed_field

RUNBOOKS = "/runbooks"
"""The path of the gateway's page with all runbooks."""


class HealthState(StrEnum):
    """The state of a component or of the whole system.

    `unknown`: the state cannot be read, for example because the server that stores the necessary
    facts is down.
    """

    GOOD = "good"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"

    @property
    def badness(self) -> int:
        """A number that is larger for a worse state; `unknown` is between good and degraded."""
        return _BADNESS[self]


_BADNESS = {
    HealthState.GOOD: 0,
    HealthState.UNKNOWN: 1,
    HealthState.DEGRADED: 2,
    HealthState.DOWN: 3,
}


class ComponentKind(StrEnum):
    """The kinds of components whose health is reported."""

    SERVER = "server"
    PROCESS = "process"
    LANE = "lane"
    QUEUE = "queue"
    """A dialer queue."""
    JOB = "job"
    CREDENTIALS = "credentials"
    """TLS certificates, or API tokens."""
    ANSWERS = "answers"
    """The answers that the gateways sent to callers within the last minute."""


class Component(BaseModel):
    """One part of the system: its state, and the consequence for agents.

    `name` is for programs: `postgresql`, `broker`, `results`, `crm`, `leader` (of the default lane)
    or `leader:LANE`, `standbys`, `maintenance`, `beat`, `heartbeats`, `flower`, `gateways`,
    `answers`, `certificates`, `tokens`, `audit`, `queue:QUEUE`, `job:JOB` or `job:JOB:QUEUE`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    """The component's name for people, such as `PostgreSQL` or `Redis (broker)`."""
    kind: ComponentKind
    state: HealthState
    since: datetime | None = None
    """The time at which the state began; None if it is not known."""
    finding: str = ""
    """One line: the observation behind the state."""
    meaning: str = ""
    """The consequence for agents; empty for a good component."""
    first_step: str = ""
    """The first thing to do; empty for a good component."""
    runbook: str = ""
    """The name of the component's runbook: `assignment-workers runbook NAME` prints it."""
    serving: bool = False
    """True if agents depend on the component: while it is down, they are not served."""

    @computed_field  # type: ignore[prop-decorator] # pydantic's
    @property
    def runbook_path(self) -> str:
        """The runbook's path at each gateway, for example `/runbooks#redis`."""
        return f"{RUNBOOKS}#{self.runbook}" if self.runbook else RUNBOOKS


class Banner(BaseModel):
    """The message on top of every page while a component is in trouble; it names the worst one."""

    model_config = ConfigDict(frozen=True)

    state: HealthState
    component: str
    """The name, for programs, of the component in the worst trouble."""
    headline: str
    """One line: what is wrong."""
    meaning: str
    """The consequence for agents."""
    since: datetime | None
    first_step: str
    runbook: str
    """The name of the runbook: `assignment-workers runbook NAME` prints it."""
    runbook_path: str
    """The runbook's path at each gateway, for example `/runbooks#redis`."""
    others: list[str]
    """The titles of all components that are not good, except the one that `component` names.

    Components that are down and without which agents are not served come first. The others follow,
    the worst first.
    """


class ProcessHealth(BaseModel):
    """The health of one process, known from the sign of life that it stores each second."""

    model_config = ConfigDict(frozen=True)

    role: str
    """`sequencer`, `maintenance`, `heartbeats`, `beat`, `gateway` or `flower`."""
    lane: str | None
    """The lane of a sequencer; None for another process."""
    host: str
    pid: int
    version: str
    state: HealthState
    since: datetime
    """The start of the process."""
    seen_at: datetime
    """The time of the last sign of life."""
    silent_seconds: float
    memory_bytes: int | None
    leads: bool = False
    """True if the process is a sequencer that leads its lane, and gives signs of life."""
    task: str | None = None
    """The task that the process carries out now."""
    task_since: datetime | None = None
    disk_free_bytes: int | None = None
    """Free bytes of the file system of the folder ASSIGNMENT_WORKERS_HOME.

    If the folder does not exist, the file system of the process's working directory is measured.
    """
    disk_bytes: int | None = None
    """The size, in bytes, of the file system that `disk_free_bytes` is about."""


class CeleryQueueHealth(BaseModel):
    """The messages that wait in one Celery queue.

    A value that cannot be read is None. With RabbitMQ, `head_task` and `head_age_seconds` are
    always None, because RabbitMQ does not show its messages.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    depth: int | None
    head_task: str | None
    """The name of the Celery task of the message at the head of the queue."""
    head_age_seconds: float | None


class JobState(StrEnum):
    """The state of a job. Only `succeeded` means that the job is done."""

    ASKED = "asked"
    """A message asks for the job, and no worker has begun the job."""
    RUNNING = "running"
    LATE = "late"
    """The job was due or asked for and has not begun in time, or the job runs for too long."""
    FAILED = "failed"
    SUCCEEDED = "succeeded"


class JobHealth(BaseModel):
    """The state of a scheduled job. A time that is not known is None."""

    model_config = ConfigDict(frozen=True)

    job: str
    queue: str | None
    """The dialer queue; None for a job that has none."""
    state: JobState
    asked_at: datetime | None
    """The last time at which beat sent the job."""
    started_at: datetime | None
    """The beginning of the last run."""
    succeeded_at: datetime | None
    """The beginning of the last run that succeeded."""
    due_at: datetime | None
    """The next time at which beat is to send the job."""
    error: str | None


class CertificateHealth(BaseModel):
    """A TLS certificate that a process uses, or that a server shows."""

    model_config = ConfigDict(frozen=True)

    title: str
    """A text that names the certificate for people, such as `the certificate of PostgreSQL`.

    The text contains no host and no path of a file.
    """
    expires_at: datetime


class Health(BaseModel):
    """The health of the whole system at `at`.

    `state` is `down` while agents are not served, `unknown` while it is unknown whether agents are
    served, and `degraded` while agents are served but a component is not good.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    components: list[Component]
    processes: list[ProcessHealth] = []
    celery_queues: list[CeleryQueueHealth] = []
    jobs: list[JobHealth] = []
    certificates: list[CertificateHealth] = []
    token_expires_at: datetime | None = None
    """The expiry of the API token that expires next; None if there is none or it cannot be read."""

    @computed_field  # type: ignore[prop-decorator] # pydantic's
    @property
    def state(self) -> HealthState:
        """The state of the whole system."""
        if any(each.serving and each.state is HealthState.DOWN for each in self.components):
            return HealthState.DOWN
        if any(each.serving and each.state is HealthState.UNKNOWN for each in self.components):
            return HealthState.UNKNOWN
        states = {each.state for each in self.components}
        return HealthState.GOOD if states <= {HealthState.GOOD} else HealthState.DEGRADED

    @computed_field  # type: ignore[prop-decorator] # pydantic's
    @property
    def verdict(self) -> str:
        """One line for people: whether agents are served, and the worst trouble, if there is any.

        The command `assignment-workers status` prints it as the first line.
        """
        banner = self.banner
        reason = f": {banner.headline}" if banner else ""
        match self.state:
            case HealthState.GOOD:
                return "Agents are served. Everything is good."
            case HealthState.DEGRADED:
                return f"Agents are served, but not everything is good{reason}"
            case HealthState.DOWN:
                return f"Agents are not served{reason}"
            case HealthState.UNKNOWN:
                return f"Nothing tells whether agents are served{reason}"

    @computed_field  # type: ignore[prop-decorator] # pydantic's
    @property
    def banner(self) -> Banner | None:
        """The message for the top of every page; None while everything is good."""
        wrong = self.wrong
        if not wrong:
            return None
        worst = wrong[0]
        return Banner(
            state=worst.state,
            component=worst.name,
            headline=f"{worst.title}: {worst.finding}",
            meaning=worst.meaning,
            since=worst.since,
            first_step=worst.first_step,
            runbook=worst.runbook,
            runbook_path=worst.runbook_path,
            others=[each.title for each in wrong[1:]],
        )

    @property
    def agents_are_served(self) -> bool:
        """True if agents are served; False if they are not served or if this is unknown."""
        return self.state in {HealthState.GOOD, HealthState.DEGRADED}

    @property
    def wrong(self) -> Sequence[Component]:
        """The components that are not good.

        First come those that are down and on which agents depend (`serving`), then the others. Each
        of these two groups is sorted by badness, the worst first. Components of equal badness stay
        in their order, in which causes come before consequences.
        """
        found = [each for each in self.components if each.state is not HealthState.GOOD]
        return sorted(
            found,
            key=lambda each: (
                not (each.serving and each.state is HealthState.DOWN),
                -each.state.badness,
            ),
        )

    def of(self, name: str) -> Component | None:
        """Return the component with this name; None if there is none."""
        return next((each for each in self.components if each.name == name), None)
