"""The numbers that the dashboard shows, as its pages have them and as SQL counts them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from redis import Redis

from assignment_workers.gateway.dashboard.render import (
    duration,
    environment,
    milliseconds,
    number,
    share,
)
from assignment_workers.gateway.dashboard.schedule import Schedule
from assignment_workers.gateway.dashboard.views import PageSource, View
from assignment_workers.gateway.read_cache import ReadCache
from assignment_workers.schema.tables import AgentStatus
from tests.support.world import OUTSTANDING, UNSIGNED, World

QUEUES = (UNSIGNED, OUTSTANDING)
SAID = {"under 100 ms", "over 99.9 %"}
LATELY = "> now() - interval '1 hour'"


class Shown(HTMLParser):
    """The figures of a page by their names, and the numbers that stand outside of one."""

    VOID = frozenset({"meter", "input", "br", "meta", "link"})
    """`meter` is closed, and has no words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: dict[str, str] = {}
        self.loose: list[str] = []
        self._open: list[tuple[str, str | None, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.VOID:
            named = given.get("data-figure")
            # A time, a name that leads somewhere, a heading, an explanation: none of them counts.
            # The numbers of a chart are those of its table (tests/unit/gateway/dashboard/test_charts.py).
            aside = tag in {"time", "a", "th", "h2", "h3", "details", "svg"} or (
                "quiet" in (given.get("class") or "") and named is None
            )
            self._open.append((tag, named, aside))
            if named is not None:
                assert named not in self.figures, named
                self.figures[named] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        named = next((each for _, each, _ in reversed(self._open) if each is not None), None)
        if named is not None:
            self.figures[named] = " ".join(f"{self.figures[named]} {data}".split())
        elif (
            re.search(r"\d", data)
            and data not in SAID
            and not any(aside for _, _, aside in self._open)
        ):
            self.loose.append(data.strip())


@contextmanager
def source_of(world: World, redis_url: str) -> Iterator[PageSource]:
    with Redis.from_url(redis_url) as redis:
        yield PageSource(ReadCache(world.engine), Schedule(redis), world.settings)


def shown(world: World, redis_url: str, view: View) -> Shown:
    """A page's regions, as they are sent."""
    with source_of(world, redis_url) as source:
        facts = view.read(source)
    assert facts is not None
    given = dict(view.place) | facts | {"sees_text": True, "health": None}
    parts = [
        environment().get_template(f"parts/{each}.html").render(given) for each in view.regions
    ]
    return Shown("".join(parts))


def agrees(page: Shown, expected: dict[str, str]) -> None:
    """Each figure says what is expected, with perhaps a word after it; none is left out."""
    assert page.figures.keys() == expected.keys()
    for name, told in expected.items():
        assert re.match(re.escape(told) + r"(?!\d|[.,]\d)", page.figures[name]), (
            name,
            told,
            page.figures[name],
        )
    assert page.loose == []


def counted(world: World, sql: str, **given: Any) -> str:
    return number(world.value(f"SELECT count(*) FROM {sql}", **given))


def of_queues(world: World) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for queue in QUEUES:
        entries = (
            "assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
            " WHERE g.state = 'published' AND g.queue = :q AND e.state = :state"
        )
        lately = f"assignment.events WHERE kind = 'assigned' AND queue = :q AND at {LATELY}"
        claimable, claimed = (
            world.value(f"SELECT count(*) FROM {sql}", q=queue, **given)
            for sql, given in ((entries, {"state": "ready"}), (lately, {}))
        )
        found[queue] = {
            "claimable": number(claimable),
            "waiting": counted(world, entries, q=queue, state="waiting"),
            "held": counted(
                world, "assignment.assignments WHERE state = 'active' AND queue = :q", q=queue
            ),
            "skipped": counted(
                world,
                f"assignment.assignments WHERE state = 'skipped' AND queue = :q AND ended_at {LATELY}",
                q=queue,
            ),
            "quarantined": counted(
                world,
                "assignment.suppressions b JOIN user_call_scores s USING (user_id) WHERE b.kind = 'quarantine'"
                " AND b.lifted_at IS NULL AND s.current_queue_type = :q",
                q=queue,
            ),
            "runway": duration(claimable * 3600 / claimed),
            "claimed": number(claimed),
        }
    return found


def times(world: World, since: str) -> tuple[str, str]:
    """The average and the quantiles of the seconds to assign."""
    row = world.rows(
        "SELECT avg(s), percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY s) FROM"
        " (SELECT extract(epoch FROM answered_at - received_at)::float8 AS s FROM assignment.requests"
        f" WHERE outcome = 'assigned' AND answered_at > now() - interval '{since}') x"
    )[0]
    return milliseconds(row[0]), ", ".join(map(milliseconds, row[1]))


USEFUL = "outcome IN ('assigned', 'empty', 'paused')"


def levels(world: World) -> dict[str, str]:
    """The share of requests answered usefully, and of minutes in which most were."""
    useful = int(counted(world, f"assignment.requests WHERE {USEFUL}"))
    failed = int(counted(world, "assignment.dead_letters WHERE task LIKE 'assignment.request%'"))
    assert failed > 0
    minutes = (
        "(SELECT date_trunc('minute', at) AS minute, avg(ok) AS share FROM"
        f" (SELECT answered_at, ({USEFUL})::int FROM assignment.requests UNION ALL SELECT at, 0"
        " FROM assignment.dead_letters WHERE task LIKE 'assignment.request%') AS r (at, ok)"
        " GROUP BY 1) AS m"
    )
    available = int(counted(world, f"{minutes} WHERE share >= 0.5"))
    return {
        "success": share(useful / (useful + failed)),
        "availability": share(available / int(counted(world, minutes))),
        "requests": f"{useful} of {useful + failed} answered usefully, failed {failed}",
        "mistakes": "0",
    }


def of_agents(world: World) -> dict[str, str]:
    agents = (
        "agents g LEFT JOIN assignment.assignments a ON a.agent_id = g.id AND a.state = 'active'"
    )
    return {
        "agents holding": counted(world, f"{agents} WHERE a.id IS NOT NULL"),
        "agents offered": counted(
            world, f"{agents} WHERE a.accepted_at IS NULL AND a.id IS NOT NULL"
        ),
        **{
            f"agents {state}": counted(
                world, "assignment.agents_state WHERE state = :state", state=state
            )
            for state in AgentStatus
        },
        "agents idle": counted(world, f"{agents} WHERE g.is_active AND a.id IS NULL"),
        "agents not active": counted(world, "agents WHERE NOT is_active"),
    }


def of_centre(world: World) -> dict[str, str]:
    """The numbers that a call centre runs on."""
    return {
        "waiting to be called": counted(
            world,
            "assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
            " WHERE g.state = 'published' AND e.state = 'ready'",
        ),
        "holds": counted(world, "assignment.assignments WHERE state = 'active'"),
        "oldest promise": "none",
        "calls": counted(world, "assignment.assignments WHERE state = 'completed'"),
        "conversions": counted(world, "conversions"),
        "success": levels(world)["success"],
    }


def by_minute(world: World, queue: str | None = None) -> dict[str, str]:
    """The rows of the charts' table, of one dialer queue or of all."""
    found = {}
    for at, count, *seconds in world.rows(
        "SELECT date_trunc('minute', answered_at), count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY s),"
        " percentile_cont(0.95) WITHIN GROUP (ORDER BY s), percentile_cont(0.99) WITHIN GROUP (ORDER BY s)"
        " FROM (SELECT r.answered_at, extract(epoch FROM r.answered_at - r.received_at)::float8 AS s"
        " FROM assignment.requests r JOIN assignment.assignments a ON a.request_id = r.request_id"
        " WHERE cast(:q AS text) IS NULL OR a.queue = :q) x GROUP BY 1",
        q=queue,
    ):
        told = " ".join([f"{at:%H:%M:%SZ}", number(count), *map(milliseconds, seconds)])
        found[f"from {at.timestamp():.0f}"] = told
    return found


def of_jobs(world: World) -> dict[str, str]:
    expected: dict[str, str] = {}
    for job, queue, seconds, failed, overlapping, missed in world.rows(
        "SELECT job, queue, extract(epoch FROM (array_agg(ended_at - started_at ORDER BY id DESC))[1])::float8,"
        " count(*) FILTER (WHERE status = 'failed'), count(*) FILTER (WHERE error = 'locked'),"
        " CASE WHEN count(slot) > 0 THEN (SELECT count(*) FROM generate_series(min(slot), max(slot),"
        " interval '1 hour') AS due WHERE NOT EXISTS (SELECT 1 FROM assignment.job_runs d"
        " WHERE d.job = r.job AND d.queue = r.queue AND d.slot = due AND d.status = 'succeeded')) END"
        " FROM assignment.job_runs r GROUP BY job, queue"
    ):
        expected |= {
            f"seconds {job} {queue}": duration(seconds),
            f"failed {job} {queue}": str(failed),
            f"overlapping {job} {queue}": str(overlapping),
            f"missed {job} {queue}": "unknown" if missed is None else str(missed),
        }
    return expected
