-- A charity's donors, known by a key of letters. The product takes whole numbers as ids, so the
-- table gives each donor one, and the views in the schema `crm` show that number.

CREATE SCHEMA charity;

CREATE TABLE charity.donors (
    donor_key text PRIMARY KEY,
    number bigint NOT NULL UNIQUE,
    telephone text,
    consents_to_calls boolean NOT NULL,
    joined_at timestamp(3) NOT NULL
);
CREATE INDEX ON charity.donors (joined_at, number);

CREATE TABLE charity.gifts (
    id bigint PRIMARY KEY,
    donor_id bigint NOT NULL REFERENCES charity.donors (number),
    pounds integer NOT NULL,
    created_at timestamp(3) NOT NULL,
    is_thanked boolean NOT NULL
);
CREATE INDEX ON charity.gifts (donor_id);
CREATE INDEX ON charity.gifts (created_at, id);

CREATE TABLE charity.pledges (
    id bigint PRIMARY KEY,
    donor_id bigint NOT NULL REFERENCES charity.donors (number),
    pounds integer NOT NULL,
    state text NOT NULL
);
CREATE INDEX ON charity.pledges (donor_id);

CREATE TABLE charity.debits (
    id bigint PRIMARY KEY,
    donor_id bigint NOT NULL REFERENCES charity.donors (number),
    cancelled_at timestamp(3)
);
CREATE INDEX ON charity.debits (donor_id);

CREATE TABLE charity.guests (
    id bigint PRIMARY KEY,
    donor_id bigint NOT NULL REFERENCES charity.donors (number)
);
CREATE INDEX ON charity.guests (donor_id);

CREATE SCHEMA IF NOT EXISTS crm;
CREATE VIEW crm.users AS
    SELECT number AS id, telephone AS phone_number, joined_at AS created_at,
           consents_to_calls AS may_call
    FROM charity.donors;
CREATE VIEW crm.gifts AS TABLE charity.gifts;
CREATE VIEW crm.pledges AS TABLE charity.pledges;
CREATE VIEW crm.debits AS TABLE charity.debits;
CREATE VIEW crm.guests AS TABLE charity.guests;

-- Fifty donors: every 11th has pledged, every 7th is to be thanked, every 5th gave much in 2024,
-- every third cancelled a direct debit, every second was a guest. Donor 4 does not want calls.
INSERT INTO charity.donors
SELECT 'D-' || lpad(number::text, 4, '0'), number,
       '+4420794601' || lpad(number::text, 2, '0'), number <> 4,
       timestamp '2023-01-01' + number * interval '1 hour'
FROM generate_series(1, 50) AS number;
INSERT INTO charity.pledges
SELECT number, number, number * 10, 'open' FROM generate_series(11, 50, 11) AS number;
INSERT INTO charity.gifts
SELECT number, number, 20, timestamp '2026-11-01' + number * interval '1 hour', false
FROM generate_series(7, 50, 7) AS number;
INSERT INTO charity.gifts
SELECT 100 + number, number, 2000 + number, timestamp '2024-03-01', true
FROM generate_series(5, 50, 5) AS number;
INSERT INTO charity.debits
SELECT number, number, timestamp '2025-06-01' + number * interval '1 day'
FROM generate_series(3, 50, 3) AS number;
INSERT INTO charity.guests
SELECT number, number FROM generate_series(2, 50, 2) AS number;

INSERT INTO public.agents (id, email, allowed_queues)
SELECT number, 'caller' || number || '@charity.example',
       '["pledges", "thanks", "major_donors", "regular_donors", "guests"]'
FROM generate_series(1, 9) AS number;
