"""The demo CRM: invented agents and users, distributed like those of a real call centre.

The users belong to two dialer queues. Each user has a call score and claims for money against
lenders (the table `crm.claims`). The function `seed` writes the data. One of its arguments, also
named `seed`, is a number. Every value that looks random comes from a hash of this seed, the user's
id and the purpose of the value. So with the same seed a user always gets the same values, however
many other users there are. All times in the data are computed from the argument `now` of the
function.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, exists, select, text

from assignment_workers.schema.base import CrmBase
from assignment_workers.schema.crm import CrmUser
from assignment_workers.schema.dialer import Agent

AGENTS = 100
INCIDENT_USER = 2064
"""The id of a user whom the replaced dialer once lost.

That dialer built the dialer queue again, and so deleted the user's row while an agent was getting
the user. Nobody called the user (docs/original-dialer.md, section 0). In the demo data this user
has not signed, was never called and is claimable.
"""
INCIDENT_QUEUE = "unsigned_users"
"""The dialer queue of the user `INCIDENT_USER`.

The user was in this queue when the replaced dialer lost the user, and is in it in the demo data.
"""
ALLOWED = (INCIDENT_QUEUE, "outstanding_requests")
"""The dialer queues from which the demo agents may get users."""


def is_seeded(connection: Connection) -> bool:
    """Return True if the database already has a CRM with users, invented or real.

    Demo data must not be written to such a database.
    """
    there = connection.execute(text("SELECT to_regclass('crm.users') IS NOT NULL")).scalar_one()
    return bool(there) and bool(
        connection.execute(select(exists(select(1).select_from(CrmUser)))).scalar_one()
    )


def seed(connection: Connection, *, users: int, seed: int, now: datetime) -> None:
    """Fill a new database with agents 1 to 100, and `users` users in each dialer queue.

    Users with even ids are in `unsigned_users`, because their signature is missing. Users with odd
    ids are in `outstanding_requests`, because documents are missing. About one user in twelve is
    not eligible: disabled, all claims against lenders cancelled, nothing missing any more, opted
    out, or called too recently. The same `seed` gives the same data.
    """
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS crm"))
    CrmBase.metadata.create_all(connection)
    parameters = {"seed": seed, "users": users * 2, "now": now, "incident": INCIDENT_USER}
    connection.execute(text(_SHARE))
    for statement in (_USERS, _CLAIMS, _REQUIREMENTS, _SCORES):
        connection.execute(text(statement), parameters)
    connection.execute(
        Agent.__table__.insert(),  # type: ignore[attr-defined]
        [
            {
                "id": number,
                "email": f"agent{number}@example.com",
                "first_name": "Agent",
                "last_name": str(number),
                "allowed_queues": list(ALLOWED),
                "created_at": now,
                "updated_at": now,
            }
            for number in range(1, AGENTS + 1)
        ],
    )
    connection.execute(text("DROP FUNCTION pg_temp.share"))
    for table in ("crm.users", "crm.claims"):  # a row that somebody adds has an id of its own
        connection.execute(text(_NEXT_ID.format(table=table)))
    for table in ("crm.users", "crm.claims", "crm.claim_requirements", "public.user_call_scores"):
        connection.execute(text(f"ANALYZE {table}"))


# A uniform number from 0 to 1 for each (seed, user, purpose), the same every time. STABLE, because
# PostgreSQL writes the text of an IMMUTABLE function into a statement only if all that it calls is
# immutable, and `||` of a number and a text is not: with calls of the
# function the statements took three times as long.
_SHARE = """
CREATE FUNCTION pg_temp.share(seed bigint, id bigint, what text) RETURNS double precision
LANGUAGE sql STABLE AS $$
  SELECT ('x0' || substr(md5(seed || ':' || id || ':' || what), 1, 7))::bit(32)::int / 268435456.0
$$
"""

_NEXT_ID = "SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"

_USERS = """
INSERT INTO crm.users (id, is_enabled, status, first_name, last_name, phone_number, email_address,
                       current_signature_file_id, created_at)
SELECT id,
       id = :incident OR pg_temp.share(:seed, id, 'enabled') > 0.02,
       'active',
       (ARRAY['Amira', 'Ben', 'Chloe', 'Dev', 'Ewa', 'Femi', 'Grace', 'Hugo'])
         [1 + floor(pg_temp.share(:seed, id, 'first') * 8)],
       (ARRAY['Adams', 'Baker', 'Clarke', 'Diaz', 'Evans', 'Foster', 'Green', 'Hughes'])
         [1 + floor(pg_temp.share(:seed, id, 'last') * 8)],
       -- As people type them: most in one form, the others in the forms of a real pool.
       CASE WHEN id = :incident OR pg_temp.share(:seed, id, 'form') < 0.7
            THEN '+447700900' || lpad((id % 1000)::text, 3, '0')
            ELSE replace(replace(
              (ARRAY['07700 900###', '+44 (0)7700 900###', '0044 7700 900###', '(07700) 900###',
                     'tel:+447700900###;ext=@', '07700 900### x@', '07700-900-###',
                     '07700 900### / 020 7946 0###', '+61 (0)8 9400 0###', NULL])
                [1 + floor(pg_temp.share(:seed, id, 'typed') * 10)],
              '###', lpad((id % 1000)::text, 3, '0')), '@', (id % 10)::text) END,
       'user' || id || '@example.com',
       CASE WHEN id % 2 = 1 AND pg_temp.share(:seed, id, 'signature') > 0.01
              OR id % 2 = 0 AND id <> :incident AND pg_temp.share(:seed, id, 'signature') < 0.015
            THEN 'file-' || id END,
       timezone('UTC', :now) - pg_temp.share(:seed, id, 'joined') * interval '200 days'
FROM generate_series(1, :users) AS id
"""

_CLAIMS = """
INSERT INTO crm.claims (id, user_id, type, status, lender)
SELECT id * 10 + number, id, 'irl',
       CASE WHEN id <> :incident AND pg_temp.share(:seed, id, 'cancelled') < 0.02 THEN 'cancelled'
            WHEN pg_temp.share(:seed, id * 10 + number, 'claim') < 0.1 THEN 'cancelled'
            WHEN pg_temp.share(:seed, id * 10 + number, 'claim') < 0.2 THEN 'complete'
            ELSE 'open' END,
       (ARRAY['North Bank', 'South Bank', 'East Bank'])
         [1 + floor(pg_temp.share(:seed, id * 10 + number, 'lender') * 3)]
FROM generate_series(1, :users) AS id,
     generate_series(1, (pg_temp.share(:seed, id, 'claims') * 3)::int) AS number
UNION ALL
SELECT id * 10, id, 'irl',
       CASE WHEN id <> :incident AND pg_temp.share(:seed, id, 'cancelled') < 0.02 THEN 'cancelled'
            ELSE 'open' END,
       'West Bank'
FROM generate_series(1, :users) AS id
"""

_REQUIREMENTS = """
INSERT INTO crm.claim_requirements (id, claim_id, type, status, claim_requirement_reason,
                                    created_at)
SELECT 'req-' || id || '-' || number, id * 10,
       (ARRAY['payslip', 'bank_statement', 'id_document', 'proof_of_address', 'signature'])
         [CASE WHEN number = 1 THEN 1 + floor(pg_temp.share(:seed, id, 'kind') * 2)
               ELSE 1 + floor(pg_temp.share(:seed, id * 10 + number, 'kind') * 5) END],
       CASE WHEN pg_temp.share(:seed, id, 'completed') < 0.02 THEN 'COMPLETED' ELSE 'PENDING' END,
       CASE WHEN number = 2 THEN 'base requirement for claim.' ELSE 'asked by the lender' END,
       timezone('UTC', :now) - pg_temp.share(:seed, id, 'asked') * interval '60 days'
FROM generate_series(1, :users, 2) AS id, generate_series(1, 3) AS number
WHERE number = 1 OR pg_temp.share(:seed, id * 10 + number, 'needed') < 0.4
"""

_SCORES = """
WITH drawn AS (
  SELECT id, pg_temp.share(:seed, id, 'band') AS band, pg_temp.share(:seed, id, 'score') AS share
  FROM generate_series(1, :users) AS id
), scored AS (
  SELECT id, CASE WHEN id = :incident OR band < 0.15 THEN 0
                  WHEN band < 0.50 THEN 1 + floor(share * 10)
                  WHEN band < 0.85 THEN 11 + floor(share * 40)
                  WHEN band < 0.95 THEN 51 + floor(share * 50)
                  ELSE 101 + floor(share * 99) END::int AS score
  FROM drawn
)
INSERT INTO public.user_call_scores
  (id, user_id, current_score, next_call_after, last_call_at, total_attempts, successful_calls,
   last_outcome, is_active, current_queue_type, created_at, updated_at)
SELECT md5(:seed || ':' || id)::uuid, id, score,
       CASE WHEN score > 0 AND pg_temp.share(:seed, id, 'rest') < 0.04
            THEN timezone('UTC', :now) + pg_temp.share(:seed, id, 'until') * interval '24 hours'
            WHEN score > 0 AND pg_temp.share(:seed, id, 'rest') < 0.5
            THEN timezone('UTC', :now) - pg_temp.share(:seed, id, 'until') * interval '14 days' END,
       CASE WHEN score > 0
            THEN timezone('UTC', :now) - (1 + pg_temp.share(:seed, id, 'until') * 20)
                 * interval '1 day' END,
       CASE WHEN score > 0 THEN 1 + floor(pg_temp.share(:seed, id, 'attempts') * 8)::int ELSE 0 END,
       CASE WHEN score > 0 THEN floor(pg_temp.share(:seed, id, 'successes') * 2)::int ELSE 0 END,
       CASE WHEN id <> :incident AND pg_temp.share(:seed, id, 'opted') < 0.005 THEN 'do_not_contact'
            WHEN score > 0 THEN (ARRAY['no_answer', 'hung_up', 'might_complete'])
                 [1 + floor(pg_temp.share(:seed, id, 'outcome') * 3)] END,
       true,
       CASE WHEN id % 2 = 0 THEN 'unsigned_users' ELSE 'outstanding_requests' END,
       timezone('UTC', :now) - CASE WHEN score = 0 THEN interval '10 minutes'
            ELSE interval '3 hours' END
         - pg_temp.share(:seed, id, 'created') * interval '180 days',
       timezone('UTC', :now)
FROM scored
"""
