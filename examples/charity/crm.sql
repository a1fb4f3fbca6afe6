-- A charity's donors, known by a key of letters, in a schema of their own.
-- `dialerconfig.py` says which tables and columns are read.

CREATE SCHEMA charity;

CREATE TABLE charity.donors (
    donor_key text PRIMARY KEY,
    telephone text,
    consents_to_calls boolean NOT NULL,
    joined_at timestamp(3) NOT NULL
);
CREATE INDEX ON charity.donors (joined_at, donor_key);

CREATE TABLE charity.gifts (
    id bigint PRIMARY KEY,
    donor_key text NOT NULL REFERENCES charity.donors,
    pounds integer NOT NULL,
    created_at timestamp(3) NOT NULL,
    is_thanked boolean NOT NULL
);
CREATE INDEX ON charity.gifts (donor_key);
CREATE INDEX ON charity.gifts (created_at, id);

CREATE TABLE charity.pledges (
    id bigint PRIMARY KEY,
    donor_key text NOT NULL REFERENCES charity.donors,
    pounds integer NOT NULL,
    state text NOT NULL
);
CREATE INDEX ON charity.pledges (donor_key);

CREATE TABLE charity.debits (
    id bigint PRIMARY KEY,
    donor_key text NOT NULL REFERENCES charity.donors,
    cancelled_at timestamp(3)
);
CREATE INDEX ON charity.debits (donor_key);

CREATE TABLE charity.guests (
    id bigint PRIMARY KEY,
    donor_key text NOT NULL REFERENCES charity.donors
);
CREATE INDEX ON charity.guests (donor_key);

-- Fifty donors: every 11th has pledged, every 7th is to be thanked, every 5th gave much in 2024,
-- every third cancelled a direct debit, every second was a guest. Donor 4 does not want calls.
-- The key of donor 7 is D-0007.
CREATE FUNCTION charity.key_of(number integer) RETURNS text LANGUAGE sql IMMUTABLE RETURN
    'D-' || lpad(number::text, 4, '0');
INSERT INTO charity.donors
SELECT charity.key_of(number), '+4420794601' || lpad(number::text, 2, '0'), number <> 4,
       timestamp '2023-01-01' + number * interval '1 hour'
FROM generate_series(1, 50) AS number;
INSERT INTO charity.pledges
SELECT number, charity.key_of(number), number * 10, 'open' FROM generate_series(11, 50, 11) AS number;
INSERT INTO charity.gifts
SELECT number, charity.key_of(number), 20, timestamp '2026-11-01' + number * interval '1 hour', false
FROM generate_series(7, 50, 7) AS number;
INSERT INTO charity.gifts
SELECT 100 + number, charity.key_of(number), 2000 + number, timestamp '2024-03-01', true
FROM generate_series(5, 50, 5) AS number;
INSERT INTO charity.debits
SELECT number, charity.key_of(number), timestamp '2025-06-01' + number * interval '1 day'
FROM generate_series(3, 50, 3) AS number;
INSERT INTO charity.guests
SELECT number, charity.key_of(number) FROM generate_series(2, 50, 2) AS number;

INSERT INTO public.agents (id, email, allowed_queues)
SELECT number, 'caller' || number || '@charity.example',
       '["pledges", "thanks", "major_donors", "regular_donors", "guests"]'
FROM generate_series(1, 9) AS number;
