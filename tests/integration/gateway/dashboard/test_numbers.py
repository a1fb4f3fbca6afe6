"""Every number that the dashboard counts is the same by SQL, and no number is left out of that."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from assignment_workers.assignment.dead_letters import store_dead_letter
from assignment_workers.assignment.lifecycle import agent_status as standing
from assignment_workers.assignment.lifecycle.moves import Accept, Close, Release
from assignment_workers.assignment.reports import doctor
from assignment_workers.assignment.reports.details import AgentList
from assignment_workers.assignment.suppressions import do_not_contact, lift
from assignment_workers.gateway.dashboard import views
from assignment_workers.gateway.dashboard.render import (
    number,
)
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.schema.tables import AgentStatus, SuppressionKind
from tests.integration.gateway.dashboard.counted import (
    LATELY,
    QUEUES,
    agrees,
    by_minute,
    counted,
    levels,
    of_agents,
    of_centre,
    of_jobs,
    of_queues,
    shown,
    times,
)
from tests.support.world import OUTSTANDING, UNSIGNED, User, World, outstanding, owner


@pytest.fixture
def busy(world: World) -> World:
    """Something of everything that is counted."""
    world.add_agents(*range(1, 9))
    world.add_agents(9, is_active=False)
    world.add_users([User(user) for user in range(1, 31)])
    world.add_users([User(31, is_enabled=False), *(outstanding(user) for user in range(40, 45))])
    world.regenerate()
    holds = {agent: world.held(agent) for agent in range(1, 7)}
    world.held(7, OUTSTANDING)
    world.move(Accept(owner(holds[5]), world.settings.lease))
    for agent, state in enumerate(AgentStatus, 5):
        world.run(standing.state, agent, state)
    world.complete(holds[1])
    world.skip(holds[2])
    world.skip(holds[3])
    world.release(holds[4])
    world.move(Release(owner(holds[4], agent=5)))
    world.build()
    world.execute(
        "UPDATE assignment.requests SET received_at = answered_at - agent_id * interval '10 ms'"
    )
    world.execute(
        "INSERT INTO assignment.suppressions (kind, user_id, reason, since, by) SELECT 'quarantine', n,"
        " 'unclear', now(), 'the claim' FROM generate_series(1, 30) n WHERE NOT EXISTS"
        " (SELECT 1 FROM assignment.assignments WHERE user_id = n) ORDER BY n DESC LIMIT 2"
    )
    for slot, status, error in (
        (3, "succeeded", None),
        (2, "failed", "it broke"),
        (1, "skipped", "locked"),
        (0, "succeeded", None),
    ):
        world.execute(
            "INSERT INTO assignment.job_runs (job, queue, trigger, slot, status, started_at,"
            " ended_at, error) VALUES ('queue.regenerate', :queue, 'hourly',"
            " date_trunc('hour', now()) - :slot * interval '1 h', :status,"
            " now() - :slot * interval '1 h', now() - :slot * interval '1 h' + interval '2.5 s', :error)",
            queue=UNSIGNED,
            slot=slot,
            status=status,
            error=error,
        )
    for task in ("assignment.request", "assignment.expire"):
        store_dead_letter(
            world.engine, celery_queue="assignment", task=task, task_id=task, body="", error="no"
        )
    world.execute(
        "UPDATE assignment.entries SET state = 'held' WHERE user_id = (SELECT min(n)"
        " FROM generate_series(1, 30) n WHERE NOT EXISTS"
        " (SELECT 1 FROM assignment.assignments WHERE user_id = n))"
    )
    with world.engine.connect() as connection:
        findings = doctor.examine(connection, loaded())
    with world.engine.begin() as connection:
        doctor.store(connection, findings)
    return world


def test_the_overview(busy: World, redis_url: str) -> None:
    expected = of_centre(busy) | of_agents(busy) | by_minute(busy)
    for queue, figures in of_queues(busy).items():
        expected |= {f"{name} {queue}": told for name, told in figures.items() if name != "claimed"}
    agrees(shown(busy, redis_url, views.overview("hour")), expected)


def test_the_wall(busy: World, redis_url: str) -> None:
    busy.execute("UPDATE agents SET team = 'north' WHERE id <= 3")
    expected = of_centre(busy)
    for queue, figures in of_queues(busy).items():
        names = ("claimable", "held", "claimed")
        expected |= {f"{name} {queue}": figures[name] for name in names}
    agents = (
        "agents g LEFT JOIN assignment.assignments a ON a.agent_id = g.id AND a.state = 'active'"
        " LEFT JOIN assignment.agents_state s ON s.agent_id = g.id WHERE (g.team = 'north') = :north"
    )
    ended = (
        "assignment.assignments c JOIN agents g ON g.id = c.agent_id"
        " WHERE (coalesce(g.team, '') = 'north') = :north AND c.state = 'completed'"
    )
    busy.execute("UPDATE agents SET team = '' WHERE id > 3")
    for team, north in (("north", True), ("-", False)):
        expected |= {
            f"calls of {team}": counted(busy, ended, north=north),
            f"on_call of {team}": counted(busy, f"{agents} AND s.state = 'on_call'", north=north),
            f"holding of {team}": counted(busy, f"{agents} AND a.id IS NOT NULL", north=north),
            f"available of {team}": counted(
                busy,
                f"{agents} AND g.is_active AND a.id IS NULL AND s.state = 'available'",
                north=north,
            ),
            f"on_break of {team}": counted(busy, f"{agents} AND s.state = 'break'", north=north),
            f"agents of {team}": counted(busy, f"{agents} AND g.is_active", north=north),
        }
    agrees(shown(busy, redis_url, views.wall()), expected)


def test_users_in_hand(busy: World, redis_url: str) -> None:
    held = counted(busy, "assignment.assignments WHERE state = 'active'")
    told = f"The first to lapse first, {held} of {held}"
    agrees(shown(busy, redis_url, views.holds()), {"holds listed": told})


def test_the_engine_room(busy: World, redis_url: str) -> None:
    average, quantiles = times(busy, "5 minutes")
    good, checks = busy.rows(
        "SELECT count(*) FILTER (WHERE ok), count(*) FROM assignment.findings"
    )[0]
    assert good == checks - 1
    answers = busy.rows(
        "SELECT outcome, count(*) FROM assignment.requests GROUP BY 1 ORDER BY 2 DESC"
    )
    expected = {
        **levels(busy),
        "dead letters": f"Dead letters {counted(busy, 'assignment.dead_letters')} to see to",
        "holds": counted(busy, "assignment.assignments WHERE state = 'active'"),
        "broken": "Guarantees 1 broken",
        "unpublished": counted(
            busy, "assignment.generations WHERE state = 'building' AND built_at IS NOT NULL"
        ),
        "average": average,
        "quantiles": quantiles,
        "interleavings": busy.value(
            "SELECT sum(count)::text FROM assignment.findings WHERE NOT ok AND guarantee IN (2, 9)"
        ),
        "lost": counted(
            busy,
            "assignment.events e WHERE kind = 'assigned' AND NOT EXISTS (SELECT 1"
            " FROM assignment.assignments WHERE id = e.assignment_id)",
        ),
        "consistency": f"{good} of {checks} checks hold",
        "checks": f"{good} of {checks} checks hold",
        "broken checks": "broken guarantee 2: nobody is marked held without an active assignment: 1 (",
        "answers": ", ".join(f"{name} {count}" for name, count in answers),
        "term": counted(busy, "generate_series(1, (SELECT term FROM assignment.sequencer))"),
        "standbys": "0",
        "race not_owner": counted(
            busy,
            "assignment.events WHERE kind = 'ASSIGNMENT_RACE_CONDITION'"
            " AND details->>'kind' = 'not_owner'",
        ),
    }
    agrees(shown(busy, redis_url, views.engine()), expected | of_jobs(busy))


def test_the_jobs(busy: World, redis_url: str) -> None:
    expected = of_jobs(busy)
    assert expected[f"missed queue.regenerate {UNSIGNED}"] == "2"
    agrees(shown(busy, redis_url, views.jobs()), expected)


def test_a_dialer_queue(busy: World, redis_url: str) -> None:
    figures = of_queues(busy)[UNSIGNED]
    generation, size = busy.rows(
        "SELECT id, (SELECT count(*) FROM assignment.entries WHERE generation_id = g.id)"
        " FROM assignment.generations g WHERE queue = :q AND state = 'published'",
        q=UNSIGNED,
    )[0]
    expected = {name: told for name, told in figures.items() if name != "claimed"}
    expected["runway"] = f"{figures['runway']} at {figures['claimed']} an hour"
    expected["generation"] = f"{generation}, {number(size)} users"
    for name, count in busy.rows(
        "SELECT kind || ' ' || coalesce(details->>'reason', details->>'outcome', ''), count(*)"
        f" FROM assignment.events WHERE queue = :q AND at {LATELY} AND kind IN"
        " ('assigned', 'completed', 'skipped', 'released', 'expired', 'taken_out') GROUP BY 1",
        q=UNSIGNED,
    ):
        expected[f"drain {name}"] = number(count)
    for number_of, built in busy.rows(
        "SELECT id, (SELECT count(*) FROM assignment.entries WHERE generation_id = g.id)"
        " FROM assignment.generations g WHERE queue = :q",
        q=UNSIGNED,
    ):
        expected[f"size {number_of}"] = number(built)
    pool = "user_call_scores s JOIN crm.users u ON u.id = s.user_id WHERE s.current_queue_type = :q"
    expected |= dict.fromkeys(
        (f"rule {each.name}" for each in busy.policies[UNSIGNED].rules), number(0)
    )
    expected["rule disabled"] = counted(busy, f"{pool} AND NOT u.is_enabled", q=UNSIGNED)
    expected["rule quarantined"] = figures["quarantined"]
    expected["rule cooling_down"] = counted(busy, f"{pool} AND next_call_after > now()", q=UNSIGNED)
    kept_back = sum(int(told) for name, told in expected.items() if name.startswith("rule "))
    whole = busy.value(f"SELECT count(*) FROM {pool}", q=UNSIGNED)
    expected |= {"rule eligible": number(whole - kept_back), "pool": number(whole)}
    expected |= by_minute(busy, UNSIGNED)
    page = shown(busy, redis_url, views.queue(UNSIGNED, "hour"))
    # Ranks, scores and numbers of generations are what the rows say, and count nothing.
    page.loose = [each for each in page.loose if not each.isdigit()]
    agrees(page, expected)


def test_which_rules_hold_users_back(busy: World, redis_url: str) -> None:
    page = shown(busy, redis_url, views.rules(UNSIGNED))
    pool = "user_call_scores s JOIN crm.users u ON u.id = s.user_id WHERE s.current_queue_type = :q"
    whole = busy.value(f"SELECT count(*) FROM {pool}", q=UNSIGNED)
    left, expected = whole, {"pool": number(whole)}
    held = "EXISTS (SELECT 1 FROM assignment.assignments a WHERE a.user_id = s.user_id AND a.state = 'active')"
    suppressed = "EXISTS (SELECT 1 FROM assignment.suppressions b WHERE b.user_id = s.user_id)"
    waiting = (
        "EXISTS (SELECT 1 FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
        " WHERE g.state = 'published' AND e.user_id = s.user_id AND e.state = 'waiting')"
    )
    for why, condition in (
        ("disabled", "NOT u.is_enabled"),
        ("quarantined", suppressed),
        ("cooling_down", "next_call_after > now()"),
        ("held", held),
        ("waiting", waiting),
    ):
        count = busy.value(f"SELECT count(*) FROM {pool} AND {condition}", q=UNSIGNED)
        assert count > 0, why
        left -= count
        expected |= {f"step {why}": number(count), f"left {why}": number(left)}
    expected["counted claimable"] = number(left)
    agrees(page, expected)


def test_the_service_levels(busy: World, redis_url: str) -> None:
    page = shown(
        busy, redis_url, views.service(datetime.now(UTC) - timedelta(hours=1), "last hour")
    )
    average, quantiles = times(busy, "1 hour")
    checks = len(doctor.CHECKS)
    expected = {
        "assignments": counted(busy, "assignment.assignments"),
        "average": average,
        "quantiles": quantiles,
        **levels(busy),
        "lost": "0",
        "interleavings": "1",
        "consistency": f"{checks - 1} of {checks} checks hold",
    }
    for name, sql in (
        ("Answers", "SELECT outcome, count(*) FROM assignment.requests GROUP BY 1"),
        (
            "Holds ended",
            "SELECT state, count(*) FROM assignment.assignments WHERE state <> 'active' GROUP BY 1",
        ),
        (
            "Races met and resolved",
            (
                "SELECT details->>'kind', count(*) FROM assignment.events"
                " WHERE kind = 'ASSIGNMENT_RACE_CONDITION' GROUP BY 1"
            ),
        ),
    ):
        expected |= {f"{name}: {each}": number(count) for each, count in busy.rows(sql)}
    divided = {each: page.figures.pop(each) for each in list(page.figures) if " of " in each}
    agrees(page, expected)
    for queue in QUEUES:
        for state in ("completed", "skipped", "released", "expired"):
            assert divided[f"{state} of {queue}"] == counted(
                busy, "assignment.assignments WHERE queue = :q AND state = :s", q=queue, s=state
            )
    assert divided["assignments of no team"] == expected["assignments"]


def test_all_agents(busy: World, redis_url: str) -> None:
    page = shown(busy, redis_url, views.agents(AgentList()))
    everybody = counted(busy, "agents")
    assert page.figures["agents listed"] == f"{everybody} of {everybody}"
    assert page.loose == []


def test_who_is_set_aside_and_who_is_not_to_be_contacted(busy: World, redis_url: str) -> None:
    for phone in ("07700 900123", "07700 900124"):
        busy.run(do_not_contact, reader=Reader(), phone=phone, reason="asked", by="ann")
    busy.run(do_not_contact, reader=Reader(), user=1, reason="asked", by="ann")
    for _ in range(2):
        busy.move(Close(owner(busy.held(3)), "moved abroad"))
    busy.run(
        lift,
        SuppressionKind.DO_NOT_CONTACT,
        reader=Reader(),
        phone="07700 900124",
        by="ann",
        why="another's",
    )
    for view, kind in (
        (views.quarantine(), SuppressionKind.QUARANTINE),
        (views.do_not_contact(), SuppressionKind.DO_NOT_CONTACT),
        (views.closed(), SuppressionKind.CLOSED),
    ):
        stand = counted(
            busy, "assignment.suppressions WHERE lifted_at IS NULL AND kind = :k", k=kind
        )
        assert stand == "2"
        page = shown(busy, redis_url, view)
        page.loose = [each for each in page.loose if not re.fullmatch(r"(agent )?\d+", each)]
        agrees(page, {"listed": f"The newest first, {stand} of {stand}."})
