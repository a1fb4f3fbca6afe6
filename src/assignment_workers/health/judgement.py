"""Derive the state of each component of the system from what was read from the servers.

The rules here do no input or output. In the result, causes come before consequences. A component
that cannot be judged because a server is down is `unknown`, not `down`. For example, if the broker
does not answer, the sequencers are `unknown`. If they were `down`, an operator might start another
sequencer, although only the broker needs attention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from assignment_workers.assignment.crm.mirror import READING
from assignment_workers.assignment.lanes import ONE_LANE, Lanes
from assignment_workers.assignment.reports.status import Leader, SequencerStatus
from assignment_workers.health.model import (
    CeleryQueueHealth,
    CertificateHealth,
    Component,
    ComponentKind,
    Health,
    HealthState,
    JobHealth,
    JobState,
    ProcessHealth,
)
from assignment_workers.health.readings import (
    NOT_NAMED,
    BrokerFacts,
    CertificateFacts,
    DatabaseFacts,
    InputReading,
    JobFacts,
    Planned,
    QueuedMessages,
    Readings,
    ResultsFacts,
)
from assignment_workers.health.signs import SeenSign
from assignment_workers.schema.tables import DEFAULT_LANE, JobStatus

SILENT = timedelta(seconds=3.5)
"""A process whose last sign of life is older than this counts as silent. A process stores a sign
each second.
"""
STARTED = timedelta(seconds=0.5)
"""The tolerance in the comparison of two times, to find the replacement of a silent process.

A process that replaces a silent process starts after the last sign of life of the silent process.
The time of the start and the time of the last sign are both inexact. Therefore, a process also
counts as the replacement if it seems to have started before the last sign, but by less than this
tolerance.
"""
REMEMBERED = timedelta(hours=1)
"""The greatest time for which a silent process is reported as missing.

The time counts from the process's last sign of life. The limit applies only while another process
of the same role, such as `sequencer`, is alive on any host and in any lane. Otherwise, the silent
process is reported until its last sign of life is deleted, after 7 days at the earliest
(`signs.KEPT_SECONDS`).
"""
WAITED = timedelta(seconds=10)
"""A lane is degraded if the oldest message in its assignment queue is older than this."""
JOBS_WAITED = timedelta(minutes=2)
"""Maintenance is degraded if the oldest message in its Celery queue is older than this.

The limit is longer than `WAITED`, because a message may wait there behind a long job without any
trouble.
"""
UNSENT = timedelta(seconds=20)
"""A job counts as overdue if beat has not sent the job this long after its due time."""
ASKED = timedelta(minutes=1)
"""A job counts as late if it has not begun this long after beat sent it.

The job is not late while the same job runs for another dialer queue. A job that beat has not sent
counts as late this long after its due time. The component `beat` is degraded earlier, after the
time in `UNSENT`: the job is then overdue, but not late yet.
"""
RUNS_AT_MOST = timedelta(hours=1)
"""The time after which a job that is still running counts as late."""
REBUILT = timedelta(minutes=90)
"""A dialer queue is degraded if its last build is older than this."""

CHAINED = timedelta(minutes=5)
"""The audit is late if an event older than this is not in any of the audit's hash chains yet.

The hash chains are digests of the events, which reveal a later change of an event. A job adds new
events to the chains. If the audit is late, the component `audit` is degraded.
"""
CERTIFICATE_RENEWED = timedelta(days=14)
"""A certificate should be renewed this long before its expiry. If a quarter of the certificate's
period of validity is shorter, the quarter counts instead.
"""

GOOD, DEGRADED, DOWN, UNKNOWN = (
    HealthState.GOOD,
    HealthState.DEGRADED,
    HealthState.DOWN,
    HealthState.UNKNOWN,
)


@dataclass(frozen=True)
class Installation:
    """The facts about a system that do not change while it runs.

    `queues`: the dialer queues. `broker`: the broker's name for people, `Redis` or `RabbitMQ`.
    `external_crm`: True if the CRM is in another database. The mirror is our copy of that CRM's
    facts. While the CRM cannot be read, users are assigned by the facts of the mirror, but only if
    the mirror is younger than `crm_grace`. `crm_grace` None: users are never assigned by the
    mirror.
    """

    lanes: Lanes = ONE_LANE
    queues: Collection[str] = ()
    broker: str = "Redis"
    external_crm: bool = False
    crm_grace: timedelta | None = None


def judge(readings: Readings, installation: Installation) -> Health:
    """Return the health of the system, derived from one reading of each server."""
    return _Judge(readings, installation).health()


def live(signs: Iterable[SeenSign]) -> list[SeenSign]:
    """Return the signs of life of the processes that are alive: neither ended nor silent."""
    return [each for each in signs if not each.ended and not _is_silent(each)]


@dataclass(frozen=True)
class TroubleTexts:
    """The texts for people about a component that is not good, and the name of its runbook."""

    finding: str
    meaning: str
    first_step: str
    runbook: str


class _Judge:
    """Derives the health of all components from one set of readings.

    A component that cannot be judged because a server is down is `unknown`, so that only the server
    is reported as down.
    """

    def __init__(self, readings: Readings, installation: Installation) -> None:
        self.at = readings.at
        self.readings = readings
        self.installation = installation
        self.database: DatabaseFacts | None = readings.database.value
        self.broker: BrokerFacts | None = readings.broker.value
        self.results: ResultsFacts | None = readings.results.value
        self.signs: list[SeenSign] = self.results.signs if self.results else []
        self.messages = {each.name: each for each in self.broker.queues} if self.broker else {}

    @property
    def broker_works(self) -> bool:
        """True if the broker answers and accepts messages."""
        return self.broker is not None and self.broker.refuses is None

    def health(self) -> Health:
        """Return the health. Components that are causes come before those that depend on them."""
        jobs = [] if self.database is None else self._jobs(self.database)
        components = [
            self._postgresql(),
            self._broker(),
            self._results(),
            self._crm(),
            *(self._leader(lane) for lane in self.installation.lanes.names),
            *self._gateways(),
            self._answers(),
            self._standbys(),
            self._role("maintenance", needed=True),
            self._role("beat", needed=True),
            *self._optional("heartbeats"),
            *self._optional("flower"),
            self._certificates(),
            self._tokens(),
            self._audit(),
            *self._queues(),
            *(_job_component(each) for each in jobs),
        ]
        return Health(
            at=self.at,
            components=[each for each in components if each is not None],
            processes=[self._process(each) for each in self._present()],
            celery_queues=[self._celery_queue(each) for each in self.messages.values()],
            jobs=jobs,
            certificates=[
                CertificateHealth(title=each.title, expires_at=each.expires_at)
                for each in self.readings.certificates.value or ()
                if each.expires_at is not None
            ],
            token_expires_at=self.database.token_expires_at if self.database else None,
        )

    # Servers.

    def _postgresql(self) -> Component:
        title, meaning = "PostgreSQL", "Nobody is handed out, and no call can be finished."
        if self.database is None:
            trouble = self.readings.database.trouble or ""
            told = TroubleTexts(
                trouble,
                meaning,
                "Look at the PostgreSQL server: does it run, and is it reachable from here?",
                "postgresql",
            )
            return _server("postgresql", title, DOWN, told)
        if self.database.read_only:
            told = TroubleTexts(
                "is read-only: it is a standby, or its disk is full",
                meaning,
                "Check whether this server is a standby, and whether its disk is full.",
                "postgresql",
            )
            return _server("postgresql", title, DOWN, told)
        return _good_server("postgresql", title, "answers")

    def _broker(self) -> Component:
        name = self.installation.broker
        trouble = self.readings.broker.trouble if self.broker is None else self.broker.refuses
        title = f"{name} (broker)"
        if trouble is None:
            return _good_server("broker", title, "answers")
        told = TroubleTexts(
            trouble,
            "Nobody is handed out, and no call can be finished: requests do not arrive.",
            f"Look at the {name} server: does it run, is it reachable, has it memory and disk?",
            name.lower(),
        )
        return _server("broker", title, _of(trouble), told)

    def _results(self) -> Component:
        trouble = self.readings.results.trouble if self.results is None else self.results.refuses
        if trouble is None:
            return _good_server("results", "Redis (results)", "answers")
        told = TroubleTexts(
            trouble,
            "Nobody is handed out, and no call can be finished: answers do not come back.",
            "Look at the Redis server: does it run, is it reachable, has it memory and disk?",
            "redis",
        )
        return _server("results", "Redis (results)", _of(trouble), told)

    def _crm(self) -> Component:
        if self.installation.external_crm:
            reading = self.readings.crm or InputReading(trouble="was not read")
            trouble = reading.trouble or reading.value
        elif self.database is None:
            told = TroubleTexts(
                "cannot be judged: it is in PostgreSQL, which is down",
                "",
                "Mend PostgreSQL first.",
                "postgresql",
            )
            return _server("crm", "CRM", UNKNOWN, told)
        else:
            trouble = self.database.crm_trouble
        if trouble is None:
            return _good_server("crm", "CRM", "answers")
        age = self.database.mirror_age if self.database else None
        grace = self.installation.crm_grace
        if age is not None and grace is not None and age < grace:
            told = TroubleTexts(
                f"cannot be read ({trouble}); its mirror is {_seconds(age)} old, and is used",
                f"Agents are served by the mirror's facts until these are {_seconds(grace)} old.",
                "Look at the CRM's database, and at the rights of our role there.",
                "crm",
            )
            return _server("crm", "CRM", DEGRADED, told)
        told = TroubleTexts(
            f"cannot be read ({trouble})",
            "Nobody is handed out; requests are answered `unavailable`. Calls can be finished.",
            "Look at the CRM's database: does it answer, are its tables there, may our role read"
            " them?",
            "crm",
        )
        return _server("crm", "CRM", DOWN, told)

    # Sequencers.

    def _leader(self, lane: str) -> Component:
        is_default = lane == DEFAULT_LANE
        name = "leader" if is_default else f"leader:{lane}"
        title = "Sequencer" if is_default else f"Sequencer of lane {lane}"
        if (unjudged := self._without_servers()) is not None:
            return _lane(name, title, UNKNOWN, unjudged)
        lanes = self.database.lanes if self.database else ()
        status = next((each for each in lanes if each.lane == lane), None)
        here = self.installation
        queues = ", ".join(here.lanes.queues(lane, here.queues)) or "no dialer queue"
        meaning = f"Nobody is handed out from {queues}, and no call can be finished."
        leader = None if status is None else status.leader or status.silent_leader
        if status is None or leader is None:
            runs = len(self._alive("sequencer", lane))
            finding = f"{runs} run, and none leads" if runs else "none runs"
            step = (
                "Read the sequencers' logs: `cannot_lead` tells the reason."
                if runs
                else "Start a sequencer: `assignment-workers process sequencer`."
            )
            return _lane(name, title, DOWN, TroubleTexts(finding, meaning, step, "sequencer"))
        silent = self._silence(status, leader)
        if silent is not None:
            told = TroubleTexts(
                "the leader gives no sign of life",
                meaning,
                "A standby takes over within 10 s. Without one, restart the sequencer.",
                "sequencer",
            )
            return _lane(name, title, DOWN, told, since=self.at - silent)
        head = self.messages.get(self.installation.lanes.celery_queue(lane))
        waited = self._age(head)
        if waited is not None and waited > WAITED:
            told = TroubleTexts(
                f"leads, but the next message has waited for {_seconds(waited)}",
                "Agents wait for their next user, or are answered `unavailable`.",
                "Look for a slow statement in pg_stat_activity, and at the probe's time.",
                "sequencer",
            )
            return _lane(name, title, DEGRADED, told, since=self.at - waited)
        return _good(name, title, ComponentKind.LANE, "leads", serving=True)

    def _without_servers(self) -> TroubleTexts | None:
        """Return the texts for sequencers whose state is unknown because a server does not work.

        Return None if both PostgreSQL and the broker work. A sequencer needs both.
        """
        if self.database is None:
            return TroubleTexts(
                "cannot be judged: PostgreSQL tells who leads, and is down",
                "",
                "Mend PostgreSQL first.",
                "postgresql",
            )
        if self.broker_works and not self.database.read_only:
            return None
        server = self.installation.broker if not self.broker_works else "PostgreSQL"
        return TroubleTexts(
            f"cannot be judged: without {server} a sequencer has nothing to do",
            "",
            f"Mend {server} first; a sequencer goes on by itself.",
            server.lower(),
        )

    def _silence(self, status: SequencerStatus, leader: Leader) -> timedelta | None:
        """Return how long a lane's leader has given no sign of life; None if it is not silent."""
        turned = timedelta(seconds=status.silent_seconds or 0.0)
        if status.silent_leader is not None:
            return turned
        for sign in self.signs:
            if (
                (sign.role, sign.host, sign.pid) == ("sequencer", leader.host, leader.pid)
                and not sign.ended
                and _is_silent(sign)
                and turned > SILENT / 2
            ):
                return timedelta(seconds=sign.silent_seconds)
        return None

    def _is_leader(self, sign: SeenSign) -> bool:
        """Return True if the process that stored this sign of life leads a lane.

        A leader that has fallen silent counts too.
        """
        return self.database is not None and any(
            leader is not None and (sign.host, sign.pid) == (leader.host, leader.pid)
            for each in self.database.lanes
            for leader in (each.leader, each.silent_leader)
        )

    def _standbys(self) -> Component:
        if self.results is None:
            return self._unjudged("standbys", "Standby sequencers")
        if (unjudged := self._without_servers()) is not None:
            return _process("standbys", "Standby sequencers", UNKNOWN, unjudged)
        missing = [each for each in self._missing("sequencer") if not self._is_leader(each)]
        count = len([each for each in self._alive("sequencer") if not each.leads])
        if missing:
            told = TroubleTexts(
                f"{_count(len(missing), 'sequencer')} fell silent; {count} stand by",
                "If a leader fails, agents may wait until a sequencer is started.",
                "Start the missing sequencer again; its host's log tells why it ended.",
                "standby",
            )
            since = min(each.seen_at for each in missing)
            return _process("standbys", "Standby sequencers", DEGRADED, told, since=since)
        kind = ComponentKind.PROCESS
        return _good("standbys", "Standby sequencers", kind, f"{count} stand by")

    # Processes.

    def _role(self, role: str, *, needed: bool) -> Component:
        title, meaning, step = _ROLES[role]
        if self.results is None:
            return self._unjudged(role, title)
        alive, missing = self._alive(role), self._missing(role)
        if not alive and (needed or missing):
            since = max((each.seen_at for each in self.signs if each.role == role), default=None)
            finding = "no sign of life" if since else "none runs"
            return _process(
                role, title, DOWN, TroubleTexts(finding, meaning, step, role), since=since
            )
        if missing:
            finding = f"{len(missing)} of {len(alive) + len(missing)} silent"
            told = TroubleTexts(
                finding, "Agents notice nothing, as long as the others do the work.", step, role
            )
            since = min(each.seen_at for each in missing)
            return _process(role, title, DEGRADED, told, since=since)
        if role == "maintenance" and (behind := self._behind(alive)):
            return behind
        if role == "beat" and (overdue := self._overdue()):
            told = TroubleTexts(f"{overdue} is overdue, and was not sent", meaning, step, role)
            return _process(role, title, DEGRADED, told)
        return _good(role, title, ComponentKind.PROCESS, f"{len(alive)} alive")

    def _behind(self, workers: Sequence[SeenSign]) -> Component | None:
        """Return the degraded component `maintenance` if jobs wait for too long; otherwise None."""
        waited = self._age(self.messages.get("maintenance"))
        if waited is None or waited <= JOBS_WAITED:
            return None
        busy = next((each.task for each in workers if each.task), None)
        told = TroubleTexts(
            f"the next job has waited for {_seconds(waited)}"
            + (f", behind {busy}" if busy else ""),
            "Agents notice nothing yet. Dialer queues age, and cleanups wait.",
            "Start a second maintenance worker, or wait for the running job.",
            "maintenance",
        )
        return _process("maintenance", "Maintenance", DEGRADED, told, since=self.at - waited)

    def _optional(self, role: str) -> Iterable[Component]:
        if any(each.role == role and not each.ended for each in self.signs):
            yield self._role(role, needed=False)

    def _overdue(self) -> str | None:
        """Return the name of a task that beat has not sent although it is overdue; or None.

        A task is overdue if two times are both more than 20 seconds (`UNSENT`) ago: its due time,
        and the start of beat. So a beat that has just started has time to send the due tasks. If no
        beat is alive, no task counts as overdue.
        """
        if self.results is None:
            return None
        # A job that fell due while nothing ran is late from the start of beat on.
        started = min((each.since for each in self._alive("beat")), default=self.results.now)
        late = self.results.now - UNSENT
        return next(
            (each.task for each in self.results.schedule if max(each.due_at, started) < late), None
        )

    def _gateways(self) -> Iterable[Component]:
        if not any(each.role == "gateway" for each in self.signs):
            return  # this stack is used by Celery programs alone, or none has stored a sign yet
        alive, missing = self._alive("gateway"), self._missing("gateway")
        title, kind = "Gateways", ComponentKind.PROCESS
        if not alive:
            since = max(each.seen_at for each in self.signs if each.role == "gateway")
            told = TroubleTexts(
                "no sign of life",
                "Agents cannot ask for a user, or finish a call, over HTTP.",
                "Start a gateway: `assignment-workers process gateway`.",
                "gateway",
            )
            yield _process("gateways", title, DOWN, told, since=since, serving=True)
        elif missing:
            told = TroubleTexts(
                f"{len(missing)} of {len(alive) + len(missing)} silent",
                "Callers of that gateway get no answer until the proxy leaves it out.",
                "Restart the silent gateway; its host's log tells why it ended.",
                "gateway",
            )
            since = min(each.seen_at for each in missing)
            yield _process("gateways", title, DEGRADED, told, since=since, serving=True)
        else:
            yield _good("gateways", title, kind, f"{len(alive)} alive", serving=True)

    def _answers(self) -> Component | None:
        told = [each.answers for each in self._alive("gateway") if each.answers]
        if not told:
            return None
        title, kind = "Answers", ComponentKind.ANSWERS
        asked, useless = sum(each.asked for each in told), sum(each.unavailable for each in told)
        recent = sum(each.recent_asked for each in told)
        if not useless:
            finding = f"{asked} in the last minute, all useful"
            return _good("answers", title, kind, finding, serving=True)
        all_useless = recent > 0 and sum(each.recent_unavailable for each in told) == recent
        return Component(
            name="answers",
            title=title,
            kind=kind,
            state=DOWN if all_useless else DEGRADED,
            finding=f"{useless} of {asked} calls of the last minute were answered `unavailable`",
            meaning="Agents ask, and get no user and no reason that they could act on.",
            first_step="Look for the component that is down; else read a gateway's log.",
            runbook="unavailable-answers",
            serving=True,
        )

    def _unjudged(self, name: str, title: str) -> Component:
        told = TroubleTexts(
            "cannot be judged: signs of life are in Redis, which does not answer here",
            "",
            "Mend Redis first.",
            "redis",
        )
        return _process(name, title, UNKNOWN, told)

    # What expires, and the audit.

    def _certificates(self) -> Component | None:
        found = self.readings.certificates.value
        if not found:
            return None  # without TLS, or not read yet
        title, kind = "TLS certificates", ComponentKind.CREDENTIALS
        wrong = [said for each in found if (said := self._of_certificate(each))]
        if not wrong:
            return _good(
                "certificates", title, kind, f"{_count(len(found), 'certificate')} in time"
            )
        told = TroubleTexts(
            "; ".join(wrong),
            "Agents notice nothing until it expires; then connections with it are refused.",
            "Renew the certificate, put it in its place, and restart or reload its server.",
            "certificate-expires",
        )
        return _wrong(kind, "certificates", title, DEGRADED, told)

    def _of_certificate(self, facts: CertificateFacts) -> str | None:
        """Return what is wrong with a certificate, as text; None if nothing is wrong."""
        if facts.begins_at is None or facts.expires_at is None:
            return f"{facts.title} {facts.trouble}"
        if facts.expires_at <= self.at:
            return f"{facts.title} expired {_seconds(self.at - facts.expires_at)} ago"
        if facts.begins_at > self.at:
            return f"{facts.title} is not valid before {facts.begins_at:%Y-%m-%d %H:%MZ}"
        left = facts.expires_at - self.at
        if left < min(CERTIFICATE_RENEWED, (facts.expires_at - facts.begins_at) / 4):
            return f"{facts.title} expires in {_seconds(left)}"
        return None

    def _tokens(self) -> Component | None:
        if self.database is None:
            return None
        title, kind = "API tokens", ComponentKind.CREDENTIALS
        at = self.database.token_expires_soon_at
        if at is None:
            return _good("tokens", title, kind, "none expires soon")
        left = at - self.database.now
        is_over = left <= timedelta()
        told = TroubleTexts(
            f"a token expired {_seconds(-left)} ago"
            if is_over
            else f"a token expires in {_seconds(left)}",
            "Calls with the token are refused once it has expired.",
            "`assignment-workers token list` shows which: create another, and revoke the old one.",
            "token-expires",
        )
        return _wrong(kind, "tokens", title, DEGRADED, told)

    def _audit(self) -> Component | None:
        lag = None if self.database is None else self.database.audit_lag
        if lag is None:
            return None
        title, kind = "Audit", ComponentKind.JOB
        if lag <= CHAINED:
            return _good("audit", title, kind, "events are chained")
        told = TroubleTexts(
            f"an event has been in no hash chain for {_seconds(lag)}",
            "Agents notice nothing. A change of newer events would not be noticed.",
            "Look at the job audit.extend, and for transactions that stay open.",
            "audit-is-late",
        )
        return _wrong(kind, "audit", title, DEGRADED, told, since=self.at - (lag - CHAINED))

    # Dialer queues and jobs.

    def _queues(self) -> Iterable[Component]:
        if self.database is None:
            return
        for each in self.database.queues:
            name, title = f"queue:{each.queue}", f"Dialer queue {each.queue}"
            age = self.database.now - each.published_at if each.published_at else None
            kind = ComponentKind.QUEUE
            if each.paused_at is not None:
                yield _good(name, title, kind, "paused by an operator").model_copy(
                    update={"since": each.paused_at}
                )
            elif age is None:
                yield _wrong(
                    kind,
                    name,
                    title,
                    DEGRADED,
                    TroubleTexts(
                        "was never built",
                        "Agents get nobody from it.",
                        f"Build it: `assignment-workers regenerate {each.queue}`.",
                        "rebuilds",
                    ),
                )
            elif age > REBUILT:
                yield _wrong(
                    kind,
                    name,
                    title,
                    DEGRADED,
                    TroubleTexts(
                        f"was last rebuilt {_seconds(age)} ago; it is due every hour",
                        "New users are not offered, and the queue runs dry.",
                        "Look at the job queue.regenerate, and at maintenance and beat.",
                        "rebuilds",
                    ),
                    since=self.at - (age - REBUILT),
                )
            else:
                yield _good(name, title, kind, f"rebuilt {_seconds(age)} ago")

    def _jobs(self, database: DatabaseFacts) -> list[JobHealth]:
        planned: dict[str, Planned] = {}
        for each in self.results.schedule if self.results else ():
            if each.task not in planned or _later(each.asked_at, planned[each.task].asked_at):
                planned[each.task] = each
        running = {each.job for each in database.jobs if each.status == JobStatus.RUNNING}
        return [
            _job(
                each,
                planned.get(each.job),
                database.now,
                others_run=each.job in running,
                has_worker=self.results is None or bool(self._alive("maintenance")),
            )
            for each in database.jobs
            if each.job != READING or self.installation.external_crm
        ]

    # Signs of life.

    def _alive(self, role: str, lane: str | None = None) -> list[SeenSign]:
        return [
            each
            for each in live(self.signs)
            if each.role == role and (lane is None or (each.lane or DEFAULT_LANE) == lane)
        ]

    def _missing(self, role: str) -> list[SeenSign]:
        """Return the silent processes of a role that no later process has replaced.

        A process replaces a silent one of the same role, lane and host if it started after the last
        sign of the silent one. Each process replaces at most one. While a process of the role is
        alive, processes that have been silent for an hour (`REMEMBERED`) are left out.
        """
        free = sorted((each for each in self.signs if each.role == role), key=lambda one: one.since)
        missing: list[SeenSign] = []
        for each in [one for one in free if _is_missing(one)]:
            replacing = next((one for one in free if _replaces(one, each)), None)
            if replacing is None:
                missing.append(each)
            else:
                free.remove(replacing)
        remembered = [
            each for each in missing if timedelta(seconds=each.silent_seconds) < REMEMBERED
        ]
        return remembered if self._alive(role) else missing

    def _present(self) -> list[SeenSign]:
        """Return the last signs of life of the processes that are alive or missing.

        A process is missing if it fell silent and was not replaced. The signs are sorted by role,
        host and pid.
        """
        roles = dict.fromkeys(each.role for each in self.signs)
        found = [each for role in roles for each in (*self._alive(role), *self._missing(role))]
        return sorted(found, key=lambda each: (each.role, each.host, each.pid))

    def _process(self, sign: SeenSign) -> ProcessHealth:
        known = sign.model_dump(include=ProcessHealth.model_fields.keys() - {"state", "leads"})
        is_silent = _is_silent(sign)
        state = DOWN if is_silent else GOOD
        return ProcessHealth(**known, leads=sign.leads and not is_silent, state=state)

    # Celery queues.

    def _celery_queue(self, queue: QueuedMessages) -> CeleryQueueHealth:
        age = self._age(queue)
        return CeleryQueueHealth(
            name=queue.name,
            depth=queue.depth,
            head_task=queue.head_task,
            head_age_seconds=None if age is None else age.total_seconds(),
        )

    def _age(self, queue: QueuedMessages | None) -> timedelta | None:
        if queue is None or queue.head_sent_at is None:
            return None
        return max(timedelta(), self.at - queue.head_sent_at)


_ROLES = {
    "maintenance": (
        "Maintenance",
        "Agents notice nothing yet. Dialer queues are not rebuilt, and run dry within hours.",
        "Start a maintenance worker: `assignment-workers process maintenance`.",
    ),
    "beat": (
        "Beat",
        "Agents notice nothing yet. Nothing asks for rebuilds; lapsed holds end only by requests.",
        "Start beat: `assignment-workers process beat`.",
    ),
    "heartbeats": (
        "Heartbeat workers",
        "Agents' signs of life may be recorded late, behind jobs.",
        "Start a heartbeat worker: `assignment-workers process heartbeats`.",
    ),
    "flower": (
        "Flower",
        "Agents notice nothing. Operators do not see tasks.",
        "Start Flower: `assignment-workers process flower`.",
    ),
}


def _job(
    facts: JobFacts,
    planned: Planned | None,
    now: datetime,
    *,
    others_run: bool,
    has_worker: bool,
) -> JobHealth:
    """Return the state of a job, from its last runs (`facts`) and beat's schedule (`planned`).

    A running job counts as late if no maintenance worker is alive (`has_worker` False). A job that
    has not begun in time does not count as late while the same job runs for another dialer queue
    (`others_run` True).
    """
    asked = planned.asked_at if planned else None
    waits = asked is not None and facts.begun_at < asked - timedelta(seconds=5)
    if facts.status == JobStatus.RUNNING and facts.ran_at is not None:
        is_late = now - facts.ran_at > RUNS_AT_MOST or not has_worker
        state = JobState.LATE if is_late else JobState.RUNNING
    elif waits and asked is not None:
        state = JobState.LATE if now - asked > ASKED and not others_run else JobState.ASKED
    elif planned is not None and now - planned.due_at > ASKED:
        state = JobState.LATE
    elif facts.status == JobStatus.FAILED:
        state = JobState.FAILED
    else:
        state = JobState.SUCCEEDED
    return JobHealth(
        job=facts.job,
        queue=facts.queue,
        state=state,
        asked_at=asked,
        started_at=facts.ran_at,
        succeeded_at=facts.succeeded_at,
        due_at=planned.due_at if planned else None,
        error=facts.error if state is JobState.FAILED else None,
    )


def _job_component(job: JobHealth) -> Component:
    of = f" of {job.queue}" if job.queue else ""
    name = f"job:{job.job}" + (f":{job.queue}" if job.queue else "")
    title, kind = f"Job {job.job}{of}", ComponentKind.JOB
    match job.state:
        case JobState.FAILED:
            # The error itself may have a text from outside; it is a field of its own.
            finding, since = "failed when it last ran", job.started_at
            step = "Read the error on the job's page; the job is tried again when it is due."
        case JobState.LATE:
            since = job.asked_at or job.started_at
            finding = "is late: it was asked for or due, and has not ended in time"
            step = "Look at maintenance workers and beat."
        case _:
            return _good(name, title, kind, str(job.state))
    told = TroubleTexts(finding, "Agents notice nothing yet.", step, "jobs")
    return _wrong(kind, name, title, DEGRADED, told, since=since)


def _of(trouble: str) -> HealthState:
    """Return the state of a server that cannot be used: `unknown` or `down`.

    `trouble`: the reason for which the server cannot be used, as text. If `trouble` is `NOT_NAMED`,
    no URL of the server is configured for this process, and the state is `unknown`. For any other
    reason, the state is `down`.
    """
    return UNKNOWN if trouble == NOT_NAMED else DOWN


def _is_silent(sign: SeenSign) -> bool:
    return timedelta(seconds=sign.silent_seconds) > SILENT


def _is_missing(sign: SeenSign) -> bool:
    return _is_silent(sign) and not sign.ended


def _replaces(one: SeenSign, silent: SeenSign) -> bool:
    return (
        one is not silent
        and (one.host, one.lane) == (silent.host, silent.lane)
        and one.since > silent.seen_at - STARTED
    )


def _later(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)


def _wrong(
    kind: ComponentKind,
    name: str,
    title: str,
    state: HealthState,
    told: TroubleTexts,
    *,
    since: datetime | None = None,
    serving: bool = False,
) -> Component:
    """Return a component that is not good, with the texts in `told`."""
    return Component(
        name=name, title=title, kind=kind, state=state, since=since, serving=serving, **vars(told)
    )


_server = partial(_wrong, ComponentKind.SERVER, serving=True)
_lane = partial(_wrong, ComponentKind.LANE, serving=True)
_process = partial(_wrong, ComponentKind.PROCESS)


def _good_server(name: str, title: str, finding: str) -> Component:
    return _good(name, title, ComponentKind.SERVER, finding, serving=True)


def _good(
    name: str, title: str, kind: ComponentKind, finding: str, *, serving: bool = False
) -> Component:
    return Component(
        name=name, title=title, kind=kind, state=GOOD, finding=finding, serving=serving
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _seconds(span: timedelta) -> str:
    if span < timedelta(minutes=2):
        return f"{span.total_seconds():.0f} s"
    if span < timedelta(hours=2):
        return f"{span // timedelta(minutes=1)} min"
    if span < timedelta(days=2):
        return f"{span // timedelta(hours=1)} h"
    return f"{span.days} days"
