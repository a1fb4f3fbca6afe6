"""The pages of the dashboard: the parts of each page, and the function that reads its facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from sqlalchemy import Connection

from assignment_workers.assignment import settings_versions, suppressions, user_ids
from assignment_workers.assignment.calling import policies_of
from assignment_workers.assignment.dead_letters import Letter, letter, letters
from assignment_workers.assignment.lifecycle.agent_status import shown
from assignment_workers.assignment.reports import breakdown, details, report
from assignment_workers.assignment.reports import explain as explaining
from assignment_workers.assignment.reports.details import AgentList
from assignment_workers.assignment.reports.doctor import interleavings
from assignment_workers.assignment.reports.explain import explain, instant
from assignment_workers.assignment.reports.figures import Figures
from assignment_workers.assignment.settings_versions import current
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.read_cache import FRESH_SECONDS, ReadCache
from assignment_workers.identity import UserId
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.policy.queues import Policy
from assignment_workers.schema.tables import SuppressionKind
from assignment_workers.settings import Settings

T = TypeVar("T")

SLOW_SECONDS = 5.0
"""Seconds for which facts that are slow to read are cached, such as the chart of the last hour.

Charts of longer periods are cached for longer (`PERIODS`), and so are the facts of two slow pages
(`SERVICE_AT_MOST`).
"""
MINUTE = timedelta(minutes=1)
PERIODS = {
    "hour": (timedelta(hours=1), 60, SLOW_SECONDS),
    "day": (timedelta(days=1), 48, 60.0),
    "week": (timedelta(days=7), 56, 60.0),
}
"""The periods of charts: length, number of parts, and seconds for which the chart is cached."""
SERVICE_AT_MOST = 60.0
"""The greatest age, in seconds, of the cached facts that two slow pages show.

One is the report of service levels. The other is the page with the number of users whom each rule
of a dialer queue excludes.
"""
HOLDS = 50
LISTED = 50
SUPPRESSIONS_LISTED = 200

Facts = dict[str, Any]


@dataclass(frozen=True)
class PageSource:
    """The three sources from which pages read their facts.

    `read_cache` reads values from the database and caches them. `schedule` reads the schedule of
    beat. `settings` are the settings of this process.
    """

    read_cache: ReadCache
    schedule: Schedule
    settings: Settings

    def in_force(self, connection: Connection) -> Settings:
        """Return the settings of this process, with the values that operators have set."""
        return current(connection, loaded(), self.settings)

    def policies(self, connection: Connection) -> Mapping[str, Policy]:
        """Return the policy of each dialer queue by name.

        A policy has all rules of one dialer queue. Some of the rules are made from settings: the
        calling rules, which limit when and how often a user is called, such as the calling hours.
        They are made from the settings in force (`in_force`).
        """
        return policies_of(loaded(), self.in_force(connection))

    def now(self) -> Figures:
        """Return the present figures for monitoring, such as the claimable users of dialer queues.

        Most pages show some of these figures.
        """
        return self.read_cache.figures()

    def read(
        self, name: object, what: Callable[[Connection], T], *, seconds: float = FRESH_SECONDS
    ) -> T:
        """Call `what` with a connection and return the result, or the cached result if it is fresh.

        The result is cached under `name` for `seconds`.
        """
        return self.read_cache.read(name, what, seconds=seconds)


@dataclass(frozen=True)
class View:
    """A page of the dashboard.

    `regions`: the names of the page's parts; the template of each is `parts/NAME.html`. `read`
    returns the facts that the page shows; None if the object that the page is about does not exist.
    """

    title: str
    regions: Sequence[str]
    read: Callable[[PageSource], Facts | None]
    actions: Sequence[str] | Callable[[Facts], Sequence[str]] = ()
    """The names of the actions on the page, or a function that chooses them by the facts."""
    subject: str = ""
    place: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the templates, such as the chosen period. They are not from the database.
    """
    template: str = "page.html"
    key: object = None
    """A part of the key under which the rendered page is cached.

    Two views with the same title may show different facts, such as charts of different periods.
    Their `key`, such as the period, then differs.
    """


def overview(period: str) -> View:
    """Return the overview page: counts of users, agents and calls, charts, and dialer queues.

    `period`: the period of the charts, such as `hour`.
    """

    def read(source: PageSource) -> Facts:
        return {
            "now": source.now(),
            "due": source.schedule.due(),
            **_centre(source),
            **_charts(source, period, None),
        }

    return View(
        "Overview",
        ("tiles", "charts", "queues", "agents_by_state"),
        read,
        key=period,
        template="overview.html",
        place={"period": period, "periods": list(PERIODS), "here": "/"},
    )


def wall() -> View:
    """Return the page for a big screen in the call centre.

    It shows figures in large type, such as the claimable users and the calls of the last hour, and
    tables by dialer queue and by team.
    """

    def read(source: PageSource) -> Facts:
        return {
            "now": source.now(),
            "teams": source.read("teams", details.teams, seconds=SLOW_SECONDS),
            **_centre(source),
        }

    return View("Wall", ("tiles", "wall_queues", "teams"), read, template="wall.html")


def _centre(source: PageSource) -> Facts:
    return {
        "agents": source.read("agent counts", details.agent_counts),
        "centre": source.read("call centre", details.call_centre, seconds=SLOW_SECONDS),
        "service": source.read("service", details.service, seconds=SLOW_SECONDS),
    }


def _charts(source: PageSource, period: str, queue: str | None) -> Facts:
    """Return the facts for the charts of a period.

    `queue`: one dialer queue; None: all of them together. The period is divided into equal parts.
    Each part is 1, 30 or 180 minutes long, and the last part ends at the end of the current minute.
    So each part begins and ends at a whole minute.
    """
    length, number, seconds = PERIODS[period]

    def read(c: Connection) -> Facts:
        until = instant(c).replace(second=0, microsecond=0) + MINUTE
        since = until - length
        if queue is None and period == "hour":
            parts = details.minutes(c)
        else:
            parts = breakdown.parts(c, since=since, until=until, number=number, queue=queue)
        # A request without an answer belongs to no dialer queue.
        lost = (
            breakdown.unanswered(c, since=since, until=until, number=number)
            if queue is None
            else []
        )
        of = {"since": since, "until": until, "number": number}
        return {"chart_of": of, "parts": parts, "unanswered": lost}

    facts: Facts = source.read(("charts", period, queue), read, seconds=seconds)
    return facts


def engine() -> View:
    """Return the page "Engine room": components, processes, Celery queues, jobs and findings.

    The findings are those of the doctor: the results of its checks of the guarantees that
    docs/how-it-works.md lists. The page also shows the lanes, races and actions of operators.
    """

    def read(source: PageSource) -> Facts:
        now = source.now()
        return {
            "now": now,
            "crossings": interleavings(now.findings),
            "due": source.schedule.due(),
            "races": source.read("races", lambda c: details.races(c, limit=5)),
            "actions": source.read("actions", lambda c: details.actions(c, limit=5)),
            "service": source.read("service", details.service, seconds=SLOW_SECONDS),
        }

    return View(
        "Engine room",
        (
            "components",
            "alarms",
            "processes",
            "celery_queues",
            "sequencer",
            "levels",
            "findings",
            "races_by_kind",
            "jobs",
            "actions",
        ),
        read,
        actions=("drain", "resume_all", "repair"),
    )


def holds() -> View:
    """Return the page of the active assignments, which is called "In hand"."""

    def read(source: PageSource) -> Facts:
        return {
            "now": source.now(),
            "holds": source.read("holds", lambda c: details.holds(c, limit=HOLDS)),
        }

    return View("In hand", ("holds",), read)


def queue(name: str, period: str) -> View:
    """Return the page of a dialer queue."""

    def read(source: PageSource) -> Facts | None:
        now = source.now()
        found = next((each for each in now.queues if each.queue == name), None)
        if found is None:
            return None
        generation = found.generation or 0
        return {
            "queue": found,
            "due": source.schedule.due(),
            **_charts(source, period, name),
            "head": source.read(("head", name), lambda c: details.head(c, generation, limit=10)),
            "waiting": source.read(
                ("waiting", name), lambda c: details.waiting(c, generation, limit=10)
            ),
            "longest": source.read(
                ("longest", name),
                lambda c: details.longest(c, name, limit=10),
                seconds=SLOW_SECONDS,
            ),
            "drains": source.read(
                ("drains", name), lambda c: details.event_counts(c, name), seconds=SLOW_SECONDS
            ),
            "funnel": source.read(
                ("funnel", name),
                lambda c: details.funnel(c, source.policies(c)[name], now.at),
                seconds=SLOW_SECONDS,
            )
            if name in loaded().policies and now.crm_up
            else None,
            "generations": source.read(
                ("generations", name), lambda c: details.generations(c, name, limit=10)
            ),
        }

    return View(
        f"Dialer queue {name}",
        ("queue", "drains", "charts", "funnel", "next_users", "generations"),
        read,
        actions=("pause", "resume", "rebuild"),
        subject=name,
        key=period,
        place={"period": period, "periods": list(PERIODS), "here": f"/queues/{quote(name)}"},
    )


def rules(name: str) -> View:
    """Return the page with the number of users whom each rule of a dialer queue excludes."""

    def read(source: PageSource) -> Facts | None:
        if name not in loaded().policies:
            return None
        if not source.now().crm_up:
            return {"counted": None}
        return {
            "counted": source.read(
                ("counted", name),
                lambda c: explaining.funnel(
                    c, source.policies(c)[name], settings=source.in_force(c), now=instant(c)
                ),
                seconds=SERVICE_AT_MOST,
            )
        }

    return View(f"Rules of {name}", ("rules",), read, place={"queue_name": name})


def user(name: UserId) -> View:
    """Return the page of a user: state, eligibility, assignments and events.

    The part about eligibility shows the result of each rule.
    """

    def read(source: PageSource) -> Facts | None:
        def ask(c: Connection) -> Facts:
            number = user_ids.number_of(loaded(), c, name)
            return {
                "user": details.user(c, number),
                "explained": explain(
                    c,
                    loaded(),
                    source.read_cache.crm,
                    number,
                    policies=source.policies(c),
                    settings=source.in_force(c),
                    now=instant(c),
                )
                if crm_up
                else None,
                "suppressions": suppressions.suppressions_of(c, number),
                "places": details.user_places(c, number),
                "assignments": details.user_assignments(c, number, limit=LISTED),
                "events": details.user_events(c, number, limit=LISTED),
            }

        crm_up = source.now().crm_up
        found: Facts = source.read(("user", name), ask)
        return found if any(found.values()) else None

    def actions(found: Facts) -> Sequence[str]:
        kinds = {each.kind for each in found["suppressions"] if each.user_id == name}
        listed = "lift" if SuppressionKind.DO_NOT_CONTACT in kinds else "do_not_contact"
        return (
            *(("release_from_quarantine",) if SuppressionKind.QUARANTINE in kinds else ()),
            *(("lift_closed",) if SuppressionKind.CLOSED in kinds else ()),
            listed,
        )

    regions = ("user", "explain", "assignments", "events")
    return View(f"User {name}", regions, read, actions=actions, subject=str(name))


def quarantine() -> View:
    """Return the page of users who are in quarantine until an operator releases them."""
    return _suppressions(
        "Quarantine", "quarantine", SuppressionKind.QUARANTINE, ("release_from_quarantine",)
    )


def closed() -> View:
    """Return the page of closed users: those whom an agent has excluded from a dialer queue."""
    return _suppressions("Closed", "closed", SuppressionKind.CLOSED, ("lift_closed",))


def do_not_contact() -> View:
    """Return the page of users and phone numbers that are not to be contacted."""
    kind = SuppressionKind.DO_NOT_CONTACT
    return _suppressions("Do not contact", "do_not_contact", kind, ("do_not_contact", "lift"))


def _suppressions(title: str, region: str, kind: SuppressionKind, actions: Sequence[str]) -> View:
    def read(source: PageSource) -> Facts:
        return {
            "suppressions": source.read(
                region, lambda c: suppressions.suppressions(c, kind, limit=SUPPRESSIONS_LISTED)
            ),
            "count": source.read((region, "count"), lambda c: suppressions.count(c, kind)),
        }

    return View(title, (region,), read, actions=actions)


def agents(listed: AgentList) -> View:
    """Return the page with the list of agents.

    `listed`: the filter and the team that select the agents, the order of the list, and a page
    number. The list is divided into pages, of which only the page with this number is shown.
    """

    def read(source: PageSource) -> Facts:
        return {
            "agents": source.read("agent counts", details.agent_counts),
            "teams": source.read("teams", details.teams, seconds=SLOW_SECONDS),
            "list": source.read(("agents", listed), lambda c: details.agents(c, listed)),
        }

    return View(
        "Agents",
        ("agents", "agents_by_state"),
        read,
        key=listed,
        template="agents.html",
        place={
            "listed": listed,
            "filters": list(details.AGENT_FILTERS),
            "orders": list(details.AGENT_ORDERS),
        },
    )


def agent(number: int) -> View:
    """Return the page of an agent."""

    def read(source: PageSource) -> Facts | None:
        def ask(c: Connection) -> Facts:
            return {
                "agent": _stands(c, number),
                "assignments": details.agent_assignments(c, number, limit=LISTED),
            }

        found: Facts = source.read(("agent", number), ask)
        return found if found["agent"] else None

    return View(f"Agent {number}", ("agent", "assignments"), read)


def _stands(connection: Connection, number: int) -> Facts | None:
    """Return an agent's row and current state as one mapping; None if the agent does not exist."""
    known, stood = details.agent(connection, number), shown(connection, number)
    return known | stood.model_dump() if known and stood else None


def assignment(number: UUID) -> View:
    """Return the page of an assignment."""

    def read(source: PageSource) -> Facts | None:
        def ask(c: Connection) -> Facts:
            found = details.assignment(c, number)
            told = details.assignment_events(c, number, found["user_id"]) if found else []
            return {"assignment": found, "events": told}

        found: Facts = source.read(("assignment", number), ask)
        return found if found["assignment"] else None

    return View(
        f"Assignment {number}",
        ("assignment", "events"),
        read,
        actions=("take_back", "reassign"),
        subject=str(number),
    )


def jobs() -> View:
    """Return the page of all jobs."""

    def read(source: PageSource) -> Facts:
        return {"now": source.now(), "due": source.schedule.due()}

    return View("Jobs", ("jobs",), read)


def job(name: str) -> View:
    """Return the page of a job."""

    def read(source: PageSource) -> Facts | None:
        runs = source.read(("job", name), lambda c: details.job_runs(c, name, limit=LISTED))
        return {"runs": runs, "next": source.schedule.due().get(name)} if runs else None

    return View(f"Job {name}", ("job",), read, place={"job": name})


def races() -> View:
    """Return the page of the recorded races: conflicts of two writers that were resolved."""

    def read(source: PageSource) -> Facts:
        return {
            "now": source.now(),
            "races": source.read("all races", lambda c: details.races(c, limit=200)),
        }

    return View("Races", ("races_by_kind", "races"), read)


def event(number: int) -> View:
    """Return the page of an event."""

    def read(source: PageSource) -> Facts | None:
        found = source.read(("event", number), lambda c: details.event(c, number))
        return {"event": found} if found else None

    return View(f"Event {number}", ("event",), read)


def dead_letters() -> View:
    """Return the page of the dead letters."""

    def read(source: PageSource) -> Facts:
        return {"letters": source.read("letters", letters)}

    return View("Dead letters", ("dead_letters",), read, actions=("dismiss_all",))


def _ends_of_letter(facts: Facts) -> Sequence[str]:
    """Return the names of the possible actions on a dead letter; none if it is dismissed."""
    found: Letter = facts["letter"]
    if found.dismissed_at is not None:
        return ()
    return ("replay", "dismiss") if found.replayable else ("dismiss",)


def dead_letter(number: int) -> View:
    """Return the page of a dead letter."""

    def read(source: PageSource) -> Facts | None:
        found = source.read(("letter", number), lambda c: letter(c, number))
        return {"letter": found} if found else None

    return View(
        f"Dead letter {number}",
        ("dead_letter",),
        read,
        actions=_ends_of_letter,
        subject=str(number),
    )


def settings() -> View:
    """Return the page of the operational settings.

    These are the settings that operators change while the system runs.
    """

    def read(source: PageSource) -> Facts:
        return {
            "in_force": source.read(
                "settings", lambda c: settings_versions.shown(c, loaded(), source.settings)
            ),
            "versions": source.read(
                "settings versions", lambda c: settings_versions.history(c, most=LISTED)
            ),
        }

    return View("Settings", ("settings", "settings_history"), read, actions=("change_setting",))


def service(since: datetime, name: str) -> View:
    """Return the page of the service levels from `since` until now.

    `name`: the name of the period for people, such as `last day`.
    """

    def read(source: PageSource) -> Facts:
        def ask(c: Connection) -> Facts:
            found = report.report(c, loaded(), since=since)
            return {
                "report": found,
                "shares": breakdown.breakdown(c, since=found.since, until=found.until),
                "unanswered": breakdown.unanswered(c, since=found.since, until=found.until),
            }

        facts: Facts = source.read(("report", name), ask, seconds=SERVICE_AT_MOST)
        return facts

    return View(
        f"Service levels, {name}",
        ("report",),
        read,
        place={"period": name, "periods": list(PERIODS)},
    )
