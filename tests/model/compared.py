"""The tables of a database, emptied and read as the model has them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from tests.model.dialer import Dialer
from tests.model.trades import Trade
from tests.support.world import World


def as_dialled(phone: str) -> str:
    """The telephony writes British numbers as they are dialled at home."""
    return f"0{phone[3:6]} {phone[6:]}" if phone.startswith("+44") else phone


TABLES = {
    "assignments": "SELECT request_id, user_id, agent_id, queue, source, rank,"
    " {lease_expires_at}, state, version, {ended_at}, outcome, {accepted_at}, ended_how,"
    " {put_off_until} FROM assignment.assignments",
    "generations": "SELECT id, state FROM assignment.generations",
    "entries": "SELECT g.queue, e.user_id, e.rank, e.state, {available_from}, e.reason"
    " FROM assignment.entries e JOIN assignment.generations g ON g.id = e.generation_id"
    " WHERE g.state = 'published'",
    "requests": "SELECT r.request_id, r.agent_id, r.outcome, a.request_id"
    " FROM assignment.requests r LEFT JOIN assignment.assignments a ON a.id = r.assignment_id",
    "scores": "SELECT user_id, current_queue_type, current_score, total_attempts,"
    " successful_calls, last_outcome, {next_call_after}, {last_call_at} FROM user_call_scores",
    "conversions": "SELECT user_id, previous_queue_type, conversion_type, episode, final_score,"
    " total_call_attempts, primary_agent_id, contributing_agents::text FROM conversions",
    "callbacks": "SELECT user_id, preferred_agent_id, queue_type, {scheduled_for}, status,"
    " retry_count, CASE status WHEN 'pending' THEN {available_from} END FROM callbacks",
    "missed calls": "SELECT twilio_call_sid, {missed_at}, user_id, status,"
    " CASE status WHEN 'pending' THEN {available_from} END FROM missed_calls",
    "agents": "SELECT agent_id, state, {since}, {session_began}, {working_since},"
    " {last_call_ended_at}, calls_in_session, offers_lapsed FROM assignment.agents_state",
    "suppressions": "SELECT kind, user_id FROM assignment.suppressions WHERE lifted_at IS NULL AND phone IS NULL",
}
"""A name in braces is an instant, in milliseconds.

When a callback or missed call is tried again is of no consequence once it has ended.
"""


def as_the_model_has(table: str) -> str:
    columns, _, rest = TABLES[table].removeprefix("SELECT ").partition(" FROM ")
    columns = re.sub(r"{(\w+)}", r"(extract(epoch FROM \1) * 1000)::bigint", columns)
    return f"'{table}', (SELECT json_agg(json_build_array({columns})) FROM {rest})"


def rows_of(dialer: Dialer) -> dict[str, list[tuple[Any, ...]]]:
    """What the tables should hold."""
    users = dialer.users.values()
    return {
        "assignments": [
            (
                each.request_id,
                each.user,
                each.agent,
                each.queue,
                each.source,
                each.rank,
                _ms(each.lease),
                each.state,
                each.version,
                _ms(each.ended_at),
                each.outcome,
                _ms(each.accepted_at),
                each.how,
                _ms(each.until),
            )
            for each in dialer.holds.values()
        ],
        "generations": [(number, each.state) for number, each in dialer.builds.items()],
        "entries": [
            (queue, user, place.rank, place.state, _ms(place.until), place.reason)
            for queue, build in dialer.published().items()
            for user, place in build.places.items()
        ],
        "requests": [
            (name, agent, said.outcome, said.hold) for name, (agent, said) in dialer.answers.items()
        ],
        "scores": [
            (
                each.id,
                each.queue,
                each.score,
                each.attempts,
                each.successes,
                each.last_outcome,
                _ms(each.next_call_after),
                _ms(each.last_call_at),
            )
            for each in users
            if each.has_score_row
        ],
        "conversions": [
            (
                each.user,
                each.queue,
                each.kind,
                each.episode,
                each.score,
                each.attempts,
                next(iter(each.agents), None),
                str(list(each.agents)),
            )
            for each in dialer.conversions
        ],
        "callbacks": [
            (
                each.user,
                each.agent,
                each.queue,
                _ms(each.at),
                each.status,
                each.retries,
                _ms(each.until) if each.status == "pending" else None,
            )
            for each in dialer.callbacks
        ],
        "missed calls": [
            (
                each.call,
                _ms(each.at),
                each.user,
                each.status,
                _ms(each.until) if each.status == "pending" else None,
            )
            for each in dialer.missed
        ],
        "suppressions": [
            *(("do_not_contact", each.id) for each in users if each.is_suppressed),
            *(("quarantine", each.id) for each in users if each.is_set_aside),
            *(("closed", each.id) for each in users for _ in each.closed),
        ],
        "agents": [
            (
                agent,
                each.state,
                _ms(each.since),
                _ms(each.session_began),
                _ms(each.working_since),
                _ms(each.last_call_ended_at),
                each.calls,
                each.offers_lapsed,
            )
            for agent, each in dialer.agents.items()
            if each.is_kept
        ],
    }


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def empty(world: World, begins: datetime, given: dict[str, Any], trade: Trade) -> None:
    """The world as it was, at this instant and with these settings."""
    for number in world.column("SELECT id FROM assignment.generations"):
        world.execute(f"DROP TABLE IF EXISTS assignment.entries_{number}")
    world.tamper(
        "TRUNCATE assignment.generations, assignment.assignments, assignment.requests,"
        " assignment.events, assignment.event_texts, assignment.job_runs, callbacks, missed_calls, conversions,"
        " user_call_scores, assignment.suppressions, assignment.agents_state,"
        f" assignment.agents_seen, {trade.tables}"
    )
    world.execute("UPDATE assignment.queues SET paused_at = NULL, paused_by = NULL")
    world.now = begins
    world.settings = world.settings.from_environment({})
    world.set(**given)
