-- A small clinic's records, in a schema of their own and under the clinic's names.
-- `dialerconfig.py` says which tables and columns are read.

CREATE SCHEMA clinic;

CREATE TABLE clinic.patients (
    patient_no uuid PRIMARY KEY,
    mobile text,
    speaks text,
    died_on date,
    registered_at timestamp(3) NOT NULL
);
CREATE INDEX ON clinic.patients (registered_at, patient_no);

CREATE TABLE clinic.recalls (
    recall_no bigint PRIMARY KEY,
    patient_no uuid NOT NULL REFERENCES clinic.patients,
    due_at timestamp(3) NOT NULL,
    state text NOT NULL
);
CREATE INDEX ON clinic.recalls (patient_no);

CREATE TABLE clinic.appointments (
    appointment_no bigint PRIMARY KEY,
    patient_no uuid NOT NULL REFERENCES clinic.patients,
    starts_at timestamp(3) NOT NULL,
    state text NOT NULL
);
CREATE INDEX ON clinic.appointments (patient_no);

CREATE TABLE clinic.results (
    result_no uuid PRIMARY KEY,
    patient_no uuid NOT NULL REFERENCES clinic.patients,
    arrived_at timestamp(3) NOT NULL,
    state text NOT NULL
);
CREATE INDEX ON clinic.results (patient_no);
CREATE INDEX ON clinic.results (arrived_at, result_no);

-- Sixty patients: every third has a check-up due, every fifth a missed appointment, every seventh a
-- result; one in ten speaks a language that the desk does not, and patient 60 has died. The UUID of
-- patient 7 ends with 07.
CREATE FUNCTION clinic.uuid_of(number integer) RETURNS uuid LANGUAGE sql IMMUTABLE RETURN
    ('c11c0000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid;
INSERT INTO clinic.patients
SELECT clinic.uuid_of(number), '+4420794600' || lpad(number::text, 2, '0'),
       CASE WHEN number % 10 = 0 THEN 'cy' WHEN number % 4 = 0 THEN 'es' END,
       CASE WHEN number = 60 THEN date '2026-01-05' END,
       timestamp '2026-01-01' + number * interval '1 hour'
FROM generate_series(1, 60) AS number;
INSERT INTO clinic.recalls
SELECT number, clinic.uuid_of(number), timestamp '2026-06-01' - number * interval '1 day', 'open'
FROM generate_series(3, 60, 3) AS number;
INSERT INTO clinic.appointments
SELECT number, clinic.uuid_of(number), timestamp '2026-05-01' + number * interval '1 hour', 'missed'
FROM generate_series(5, 60, 5) AS number;
INSERT INTO clinic.results
SELECT clinic.uuid_of(1000 + number), clinic.uuid_of(number),
       timestamp '2026-05-20' + number * interval '1 minute', 'ready'
FROM generate_series(7, 60, 7) AS number;

INSERT INTO public.agents (id, email, allowed_queues)
SELECT number, 'desk' || number || '@clinic.example',
       '["results", "missed_appointments", "recalls"]'
FROM generate_series(1, 9) AS number;
