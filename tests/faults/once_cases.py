"""A case of every command of the assignment queue: the state before it, and the message."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

from pydantic_core import to_json

from assignment_workers.assignment.suppression_lists import Named, lines_of
from assignment_workers.assignment.suppression_lists import stage as load
from assignment_workers.phones import Reader
from assignment_workers.policy.process_dialer import loaded
from assignment_workers.tasks.task_handler import App, HandledTask
from tests.support.world import OUTSTANDING, UNSIGNED, World

AGENTS = (1, 2, 3)
USERS = range(1, 31)

NOT_ITS_EFFECT = {
    "sequencer": "a sign of life",
    "sequencer_signs": "a sign of life",
    "commands": "the inbox itself",
    "events": "a race that was refused leaves one; the others are compared",
}
"""Tables that a message which changes nothing may write to."""


@dataclass
class Stage:
    """A world with dialer queues, and the tasks of an application at its line, without a broker."""

    world: World
    app: App

    def deliver(
        self, task: str, message: str, /, *, position: int | None = None, **said: Any
    ) -> Any:
        """The answer to a message of this id, as JSON."""
        run = cast("HandledTask", self.app.tasks[task])
        run.push_request(id=message, delivery_info={}, command_position=position)
        try:
            return json.loads(to_json(run(**said)))
        finally:
            run.pop_request()

    def hold(self, agent: int) -> dict[str, Any]:
        """Who the agent's new hold is named by."""
        held = self.world.held(agent)
        return {"assignment_id": str(held.id), "agent_id": agent, "version": held.version}

    def state(self) -> dict[str, list[str]]:
        """Every row of every table, but those where what changes nothing may leave a trace."""
        with self.world.engine.connect() as connection:
            tables = connection.exec_driver_sql(
                "SELECT oid::regclass::text, relname FROM pg_class WHERE relkind = 'r'"
                " AND relnamespace::regnamespace::text IN ('assignment', 'public') ORDER BY 1"
            ).all()
            found = {
                name: sorted(
                    connection.exec_driver_sql(
                        f"SELECT (to_jsonb(t) - 'asked_again_at')::text FROM {path} AS t"
                    ).scalars()
                )
                for path, name in tables
                if name not in NOT_ITS_EFFECT
            }
            found["events"] = list(
                connection.exec_driver_sql(
                    "SELECT to_jsonb(t)::text FROM assignment.events AS t"
                    " WHERE kind <> 'ASSIGNMENT_RACE_CONDITION' ORDER BY id"
                ).scalars()
            )
        return found


Said = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A state in which a command of a task has an effect, and a later one that undoes it."""

    prepare: Callable[[Stage], Said]
    """Brings the state about; what the message says."""
    answer: Said
    """Facts that the answer has, by their path."""
    effect: str
    """A query: true once the message has had its effect."""
    later: Callable[[Stage, Said], object]
    """What the line did afterwards, so that the message done again would change something."""
    says_again: frozenset[str] = field(default=frozenset())
    """What a repeated answer shows as it is now, by design: a request's hold."""


def at(answer: Any, path: str) -> Any:
    for step in path.split("."):
        answer = answer[int(step)] if isinstance(answer, list) else answer[step]
    return answer


def ended(state: str) -> str:
    return f"SELECT count(*) = 1 FROM assignment.assignments WHERE state = '{state}'"


def asks(agent: int) -> Callable[[Stage, Said], object]:
    def ask(stage: Stage, _: Said) -> object:
        return stage.deliver("assignment.request", "later", agent_id=agent, queue=UNSIGNED)

    return ask


def does(task: str, **said: Any) -> Callable[[Stage, Said], object]:
    def do(stage: Stage, _: Said) -> object:
        return stage.deliver(task, "later", **said)

    return do


def finishes(stage: Stage, said: Said) -> object:
    owner = {name: said[name] for name in ("assignment_id", "agent_id", "version")}
    return stage.deliver("assignment.complete", "later", outcome="no_answer", **owner)


def finishes_what_was_given(stage: Stage, _: Said) -> object:
    (row,) = stage.world.rows("SELECT id, agent_id, version FROM assignment.assignments LIMIT 1")
    return stage.deliver(
        "assignment.complete",
        "later",
        assignment_id=str(row[0]),
        agent_id=row[1],
        version=row[2],
        outcome="no_answer",
    )


def accepted(stage: Stage) -> Said:
    said = stage.hold(1)
    stage.deliver("assignment.accept", "accepted", **said)
    return said


def lapsed(stage: Stage) -> Said:
    stage.hold(1)
    lapse(stage)
    return {}


def lapse(stage: Stage, _: Said | None = None) -> None:
    stage.world.execute(
        "UPDATE assignment.assignments SET claimed_at = claimed_at - interval '1 day',"
        " lease_expires_at = lease_expires_at - interval '1 day' WHERE state = 'active'"
    )


def asks_and_lapses(stage: Stage, said: Said) -> None:
    asks(2)(stage, said)
    lapse(stage)


def untouched(stage: Stage) -> Said:
    held = stage.world.held(1)
    return {
        "assignment_id": str(held.id),
        "agent_id": 1,
        "version": held.version,
        "lease_expires_at": held.lease_expires_at.isoformat(),
    }


def two_moves(stage: Stage) -> Said:
    first, second = stage.hold(1), stage.hold(2)
    return {"requests": [{"move": "accept", **first}, {"move": "release", **second}]}


def finishes_the_first(stage: Stage, said: Said) -> object:
    (first, _) = said["requests"]
    return finishes(stage, {name: first[name] for name in ("assignment_id", "agent_id", "version")})


def silent(stage: Stage) -> Said:
    stage.deliver("agent.state", "stated", agent_id=1, state="available")
    stage.world.execute(
        "UPDATE assignment.agents_state SET since = since - interval '1 day',"
        " session_began = session_began - interval '1 day',"
        " working_since = working_since - interval '1 day'"
    )
    return {"agent_ids": [1], "silent_at": stage.world.now.isoformat()}


def is_silent_again(stage: Stage, said: Said) -> None:
    does("agent.state", agent_id=1, state="available")(stage, said)
    stage.world.execute(
        "UPDATE assignment.agents_state SET since = since - interval '1 day',"
        " session_began = session_began - interval '1 day',"
        " working_since = working_since - interval '1 day'"
    )


def built(stage: Stage) -> Said:
    return {"generation_id": stage.world.build(UNSIGNED)}


def paused(stage: Stage) -> Said:
    stage.deliver("queue.pause", "paused", queue=UNSIGNED)
    return {"queue": UNSIGNED}


def rebuilds(stage: Stage, _: Said) -> None:
    stage.world.regenerate(UNSIGNED)


def signed(stage: Stage) -> Said:
    stage.world.execute("UPDATE crm.users SET current_signature_file_id = 'file' WHERE id < 4")
    return {"queue": UNSIGNED, "user_ids": [1, 2, 3]}


def signed_again(stage: Stage, _: Said) -> None:
    """They are put back, and convert once more: the message that is late speaks of the first time."""
    stage.world.execute(
        "UPDATE public.user_call_scores SET current_queue_type = 'unsigned_users', is_active = true"
        " WHERE user_id < 4"
    )


def marked(stage: Stage, _: Said | None = None) -> Said:
    stage.world.execute(
        "UPDATE assignment.entries SET state = 'held' WHERE user_id < 4 AND state = 'ready'"
    )
    return {}


def misplaced(stage: Stage, _: Said | None = None) -> Said:
    stage.world.execute(
        "UPDATE public.user_call_scores SET current_queue_type = :other WHERE user_id < 4",
        other=OUTSTANDING,
    )
    return {"user_ids": [1, 2, 3]}


def suppressed(stage: Stage) -> Said:
    stage.deliver("user.suppress", "suppressed", user_id=7, reason="asked", by="operator")
    return {"kind": "do_not_contact", "user_id": 7, "why": "a mistake", "by": "operator"}


def signs(stage: Stage) -> Said:
    """As a leader does when its term begins."""
    stage.world.execute(
        "INSERT INTO assignment.sequencer_signs (lane, last_turn_at)"
        " SELECT lane, clock_timestamp() FROM assignment.sequencer WHERE term = :term",
        term=stage.world.value("SELECT max(term) FROM assignment.sequencer"),
    )
    return {"sent_at": stage.world.now.isoformat()}


def loaded_list(stage: Stage, _: Said | None = None) -> Said:
    named = Named("tps", replaces=True, reason="registered", by="operator")
    with stage.world.engine.begin() as connection:
        made = load(
            connection,
            lines_of(["01614960007\n", "01614960008\n"]),
            named,
            Reader("GB"),
            queues=loaded().policies,
        )
    return {"list_id": made.list_id, "by": "operator", "why": "the monthly list"}


def stands(stage: Stage, _: Said | None = None) -> Said:
    stage.deliver("user.flip_suppression_list", f"flip-{uuid4()}", **loaded_list(stage))
    return {"name": "tps", "by": "operator", "why": "no longer ours"}


SETTINGS: Said = {"by": "operator", "why": "summer"}
LISTS = "SELECT count(*) = {} FROM assignment.suppression_lists WHERE state = 'standing'"
STANDS = "SELECT count(*) = {} FROM assignment.suppressions WHERE user_id = 7 AND lifted_at IS NULL"
PAUSED = "SELECT paused_at IS {} NULL FROM assignment.queues WHERE name = 'unsigned_users'"
READY = (
    "SELECT count(*) = {} FROM assignment.entries e JOIN assignment.generations g"
    " ON g.id = e.generation_id AND g.state = 'published' WHERE e.state = 'ready'"
)

CASES: dict[str, Case] = {
    "assignment.request": Case(
        lambda _: {"agent_id": 1, "queue": UNSIGNED, "request_id": "one"},
        {"outcome": "assigned"},
        ended("active"),
        finishes_what_was_given,
        frozenset({"assignment", "replayed"}),
    ),
    "assignment.request_many": Case(
        lambda _: {
            "requests": [
                {"agent_id": 1, "request_id": "one"},
                {"agent_id": 9, "request_id": "nine"},
            ]
        },
        {"0.outcome": "assigned", "1.code": "unknown_agent"},
        ended("active"),
        finishes_what_was_given,
        frozenset({"assignment", "replayed"}),
    ),
    "assignment.finish_many": Case(
        two_moves,
        {"0.outcome": "accepted", "1.outcome": "released"},
        ended("released"),
        finishes_the_first,
    ),
    "assignment.complete": Case(
        lambda stage: {**stage.hold(1), "outcome": "no_answer"},
        {"outcome": "completed", "replayed": False},
        ended("completed"),
        asks(1),
    ),
    "assignment.skip": Case(
        lambda stage: stage.hold(1),
        {"outcome": "skipped", "replayed": False},
        ended("skipped"),
        asks(1),
    ),
    "assignment.defer": Case(
        lambda stage: {**stage.hold(1), "seconds": 60},
        {"outcome": "deferred", "replayed": False},
        ended("skipped"),
        asks(1),
    ),
    "assignment.close": Case(
        lambda stage: {**stage.hold(1), "why": "moved abroad"},
        {"outcome": "closed", "replayed": False},
        ended("skipped"),
        asks(1),
    ),
    "assignment.accept": Case(
        lambda stage: stage.hold(1),
        {"outcome": "accepted", "replayed": False},
        "SELECT accepted_at IS NOT NULL FROM assignment.assignments",
        finishes,
    ),
    "assignment.release": Case(
        lambda stage: stage.hold(1),
        {"outcome": "released", "replayed": False},
        ended("released"),
        asks(2),
    ),
    "assignment.release_unclaimed": Case(
        untouched, {"counts.released": 1}, ended("released"), asks(1)
    ),
    "assignment.renew": Case(
        accepted,
        {"outcome": "renewed", "replayed": False},
        "SELECT count(*) = 1 FROM assignment.events WHERE kind = 'renewed'",
        finishes,
    ),
    "assignment.take_back": Case(
        lambda stage: {
            "assignment_id": stage.hold(1)["assignment_id"],
            "by": "operator",
            "why": "went home",
        },
        {"outcome": "released", "replayed": False},
        ended("released"),
        asks(2),
    ),
    "assignment.reassign": Case(
        lambda stage: {
            "assignment_id": stage.hold(1)["assignment_id"],
            "agent_id": 2,
            "by": "operator",
            "why": "went home",
        },
        {"outcome": "assigned", "replayed": False},
        "SELECT count(*) = 1 FROM assignment.assignments WHERE state = 'active' AND agent_id = 2",
        asks(1),
    ),
    "assignment.expire": Case(lapsed, {"counts.expired": 1}, ended("expired"), asks_and_lapses),
    "assignment.probe": Case(
        signs,
        {"outcome": "done"},
        "SELECT last_probe_at IS NOT NULL FROM assignment.sequencer_signs",
        asks(1),
    ),
    "agent.state": Case(
        lambda _: {"agent_id": 1, "state": "break"},
        {"outcome": "stated", "state": "break", "replayed": False},
        "SELECT state = 'break' FROM assignment.agents_state WHERE agent_id = 1",
        does("agent.state", agent_id=1, state="available"),
    ),
    "agent.end_sessions": Case(
        silent,
        {"counts.ended": 1},
        "SELECT state = 'offline' FROM assignment.agents_state WHERE agent_id = 1",
        is_silent_again,
    ),
    "generation.publish": Case(
        built,
        {"outcome": "done", "replayed": False},
        "SELECT state = 'published' FROM assignment.generations ORDER BY id DESC LIMIT 1",
        rebuilds,
    ),
    "queue.pause": Case(
        lambda _: {"queue": UNSIGNED, "by": "operator"},
        {"outcome": "done", "replayed": False},
        PAUSED.format("NOT"),
        does("queue.resume", queue=UNSIGNED),
    ),
    "queue.resume": Case(
        paused,
        {"outcome": "done", "replayed": False},
        PAUSED.format(""),
        does("queue.pause", queue=UNSIGNED),
    ),
    "queue.drain": Case(
        lambda _: {"queue": UNSIGNED, "by": "operator"},
        {"counts.drained": len(USERS)},
        READY.format(0),
        rebuilds,
    ),
    "assignment.change_settings": Case(
        lambda _: SETTINGS | {"changes": [{"name": "calling_hours", "value": "mon 09:00-10:00"}]},
        {"outcome": "done", "replayed": False, "counts.version": 2},
        "SELECT count(*) = 2 FROM assignment.settings",
        does(
            "assignment.change_settings",
            **SETTINGS,
            changes=[{"name": "calling_hours", "value": None}],
        ),
    ),
    "queue.remove_converted": Case(
        signed,
        {"counts.converted": 3},
        "SELECT count(*) = 3 FROM public.conversions",
        signed_again,
    ),
    "queue.repair": Case(
        marked, {"counts.given_back": 3}, READY.format(len(USERS)), lambda s, _: marked(s)
    ),
    "user.place": Case(
        misplaced,
        {"counts.moved": 3},
        "SELECT count(*) = 0 FROM public.user_call_scores WHERE current_queue_type <> 'unsigned_users'",
        lambda s, _: misplaced(s),
    ),
    "user.suppress": Case(
        lambda _: {"user_id": 7, "reason": "asked", "by": "operator"},
        {"outcome": "done", "replayed": False},
        STANDS.format(1),
        does("user.lift_suppression", kind="do_not_contact", user_id=7, by="operator", why="why"),
    ),
    "user.lift_suppression": Case(
        suppressed,
        {"outcome": "done", "replayed": False},
        STANDS.format(0),
        does("user.suppress", user_id=7, reason="asked again", by="operator"),
    ),
    "user.flip_suppression_list": Case(
        loaded_list,
        {"outcome": "done", "replayed": False, "counts.numbers": 2},
        LISTS.format(1),
        lambda stage, _: stands(stage),
    ),
    "user.drop_suppression_list": Case(
        stands,
        {"outcome": "done", "counts.replaced": 1},
        LISTS.format(0),
        lambda stage, _: stands(stage),
    ),
}
