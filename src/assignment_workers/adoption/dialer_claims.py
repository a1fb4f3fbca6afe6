"""Triggers that create an assignment when the dialer's own code hands out a user to an agent.

After a takeover, the dialer's own code may still hand out a callback or a missed call to an agent,
by an UPDATE of its status. As a part of this UPDATE, a trigger inserts an assignment. So the unique
indexes on active assignments apply: a user has one agent at most, and an agent one user. If the
user or the agent already has an assignment, the trigger skips the row: the UPDATE changes no row,
and the dialer's code continues as if another agent had been quicker. If another transaction about
the same user or agent has a lock, the trigger waits for this lock at most 200 ms (`WAITS_AT_MOST`).
If the lock is not free by then, the trigger skips the row, too.

Every other operation that changes which users may be assigned is carried out for a message of the
assignment queue. These triggers are the one exception.
"""

from __future__ import annotations

from collections.abc import Mapping

from assignment_workers.assignment.active_assignments import MADE_BY_DIALER

WAITS_AT_MOST = "200ms"
"""Maximum time that the dialer's UPDATE waits for a lock when it hands out a user to an agent.

Another transaction about the same user or agent may have the lock. The time is shorter than
PostgreSQL's deadlock timeout, so no transaction of a sequencer ends by a deadlock with the UPDATE.
"""
HELD_AT_LEAST = "30 minutes"
"""The shortest lease of an assignment whose user the dialer's own code handed out.

It is long, because the dialer's agents send no heartbeats that would extend the lease.
"""

_UUID7 = """encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
    substring(int8send((extract(epoch FROM now_is) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
    52, 1), 53, 1), 'hex')::uuid"""

_HOLD = f"""
CREATE OR REPLACE FUNCTION assignment.hold_for_dialer(
    claim_source text, claim_id uuid, claim_user bigint, claim_agent bigint, claim_queue text,
    claim_lease timestamptz) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '{WAITS_AT_MOST}'
    SET timezone = 'UTC' AS $hold$
DECLARE
    now_is timestamptz := clock_timestamp(); hold_until timestamptz;
    hold_id uuid := {_UUID7};
    hold_request text := '{MADE_BY_DIALER}' || gen_random_uuid();
    hold_queue text; hold_score integer;
BEGIN
    IF EXISTS (SELECT FROM assignment.assignments WHERE state = 'active'
               AND (user_id = claim_user OR agent_id = claim_agent)) THEN
        RETURN false;
    END IF;
    SELECT current_queue_type, current_score INTO hold_queue, hold_score
    FROM public.user_call_scores WHERE user_id = claim_user;
    SELECT name INTO hold_queue FROM assignment.queues
    WHERE name IN (claim_queue, hold_queue, 'outstanding_requests')
    ORDER BY name = claim_queue DESC, name = hold_queue DESC LIMIT 1;
    hold_until := date_trunc('milliseconds', greatest(
        least(coalesce(claim_lease, now_is), now_is + interval '1 day'),
        now_is + interval '{HELD_AT_LEAST}'));
    INSERT INTO assignment.assignments (id, request_id, user_id, agent_id, queue, source, source_id,
        rank, score, reason, term, claimed_at, lease_expires_at, accepted_at)
    VALUES (hold_id, hold_request, claim_user, claim_agent, hold_queue, claim_source, claim_id,
        0, coalesce(hold_score, 0), claim_source, 0, now_is, hold_until, now_is)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- The insert may have waited for the end of another hold: this one begins after it.
    now_is := clock_timestamp();
    UPDATE assignment.assignments SET claimed_at = now_is, accepted_at = now_is WHERE id = hold_id;
    UPDATE assignment.entries SET state = 'held', available_from = NULL
    WHERE user_id = claim_user AND state IN ('ready', 'waiting') AND generation_id IN (
        SELECT id FROM assignment.generations WHERE state = 'published');
    INSERT INTO assignment.events (at, kind, queue, user_id, agent_id, assignment_id, request_id,
        details)
    VALUES (now_is, 'assigned', hold_queue, claim_user, claim_agent, hold_id, hold_request,
        jsonb_build_object('rank', 0, 'source', claim_source, 'source_id', claim_id,
            'lease_expires_at', hold_until, 'by', 'dialer'));
    RETURN true;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN false;
END $hold$
"""

_CLAIMED = """
CREATE OR REPLACE FUNCTION assignment.dialer_claims() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $claims$
DECLARE
    asked jsonb := to_jsonb(NEW);
BEGIN
    IF assignment.hold_for_dialer(TG_ARGV[0], NEW.id, NEW.user_id, NEW.assigned_to_agent_id,
            asked ->> 'queue_type', (asked ->> 'lease_expires_at')::timestamptz) THEN
        RETURN NEW;
    END IF;
    RETURN NULL;
END $claims$
"""

_ENDED = f"""
CREATE OR REPLACE FUNCTION assignment.dialer_ends() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ends$
DECLARE
    now_is timestamptz := clock_timestamp();
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.status IN ('assigned', 'accepted') THEN
        RETURN NULL;
    END IF;
    WITH ended AS (
        UPDATE assignment.assignments SET state = 'released', version = version + 1,
            ended_at = now_is, ended_xid = pg_current_xact_id()::text::bigint
        WHERE state = 'active' AND user_id = OLD.user_id AND source_id = OLD.id
        AND starts_with(request_id, '{MADE_BY_DIALER}')
        RETURNING id, user_id, agent_id, queue, request_id
    ), back AS (
        UPDATE assignment.entries e SET state = 'ready' FROM ended
        WHERE e.user_id = ended.user_id AND e.state = 'held' AND e.generation_id IN (
            SELECT id FROM assignment.generations WHERE state = 'published')
    )
    INSERT INTO assignment.events (at, kind, queue, user_id, agent_id, assignment_id, request_id,
        details)
    SELECT now_is, 'released', queue, user_id, agent_id, id, request_id,
           jsonb_build_object('by', 'dialer')
    FROM ended;
    RETURN NULL;
END $ends$
"""

_REVOKE = """
REVOKE ALL ON FUNCTION assignment.hold_for_dialer(text, uuid, bigint, bigint, text, timestamptz)
    FROM PUBLIC
"""
FUNCTIONS = (_HOLD, _REVOKE, _CLAIMED, _ENDED)

_TAKEN = "status IN ('assigned', 'accepted')"
_CLAIMS = f"""
BEFORE UPDATE OF status ON public.{{table}} FOR EACH ROW
    WHEN (NEW.{_TAKEN} AND NOT OLD.{_TAKEN}
          AND NEW.user_id IS NOT NULL AND NEW.assigned_to_agent_id IS NOT NULL)
    EXECUTE FUNCTION assignment.dialer_claims('{{source}}')
"""
_ENDS = f"""
AFTER UPDATE OF status OR DELETE ON public.{{table}} FOR EACH ROW
    WHEN (OLD.{_TAKEN}) EXECUTE FUNCTION assignment.dialer_ends()
"""
TRIGGERS: Mapping[tuple[str, str], str] = {
    (table, name): words.format(table=table, source=source)
    for table, source in (("callbacks", "callback"), ("missed_calls", "missed_call"))
    for name, words in (("dialer_claims", _CLAIMS), ("dialer_ends", _ENDS))
}
"""Maps a table and the name of a trigger to the SQL that follows the name in `CREATE TRIGGER`.

The tables are those of callbacks and missed calls. One trigger creates an assignment when the
dialer's own code hands out a callback or missed call to an agent. The other trigger ends the
assignment when that code ends the callback or missed call.
"""
