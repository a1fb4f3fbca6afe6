// Sends the dialer's statements as Prisma does, each as a named prepared statement on one
// connection that stays open, and answers each line of standard input with one line of JSON: what
// each statement said. So a switch of the tables can come between two lines.
//   DATABASE_URL=... node across.mjs TABLE AGENT_COLUMN
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import pg from "pg";

const [table, agent] = process.argv.slice(2);
if (!/^[a-z_]+$/.test(table ?? "") || !/^[a-z_]+$/.test(agent ?? "")) {
  console.error("usage: node across.mjs TABLE AGENT_COLUMN");
  process.exit(2);
}
const from = `"public"."${table}"`;
const columns = ["id", "user_id", "priority_score", "queue_position", "status", agent]
  .map((name) => `${from}."${name}"`)
  .join(", ");
const promises = `"public"."callbacks"`;
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();

// A name for each text, as a driver with a cache of statements has it.
const names = new Map();
function send(text, values = []) {
  if (!names.has(text)) names.set(text, `s${names.size}`);
  return client.query({ name: names.get(text), text, values });
}

// The id of the first row, as a reader knows it who has just read it.
async function anId() {
  const found = await send(`SELECT "id" FROM ${from} ORDER BY "user_id" ASC LIMIT $1`, [1]);
  return found.rows[0].id;
}

const queries = {
  findFirst: async () => {
    const found = await send(
      `SELECT ${columns} FROM ${from} WHERE (${from}."status" = $1 AND ${from}."${agent}" IS NULL) ` +
        `ORDER BY ${from}."queue_position" ASC LIMIT $2 OFFSET $3`,
      ["pending", 1, 0],
    );
    return found.rows.map((row) => Number(row.user_id));
  },
  findMany: async () => {
    const found = await send(
      `SELECT ${columns} FROM ${from} WHERE ${from}."status" IN ($1,$2) ` +
        `ORDER BY ${from}."queue_position" ASC, ${from}."created_at" DESC OFFSET $3`,
      ["pending", "assigned", 0],
    );
    return found.rows.map((row) => [Number(row.user_id), row.status, row[agent]]);
  },
  everyColumn: async () => (await send(`SELECT * FROM ${from}`)).rowCount,
  findUnique: async () => {
    const found = await send(
      `SELECT ${columns} FROM ${from} WHERE (${from}."id" = $1 AND 1=1) LIMIT $2 OFFSET $3`,
      [await anId(), 1, 0],
    );
    return found.rowCount;
  },
  count: async () => {
    const found = await send(
      `SELECT COUNT(*) FROM (SELECT ${from}."id" FROM ${from} WHERE ${from}."status" = $1 OFFSET $2) AS "sub"`,
      ["pending", 0],
    );
    return Number(found.rows[0].count);
  },
  groupBy: async () => {
    const found = await send(
      `SELECT COUNT(*), ${from}."status" FROM ${from} WHERE 1=1 GROUP BY ${from}."status" ` +
        `ORDER BY ${from}."status" ASC OFFSET $1`,
      [0],
    );
    return Object.fromEntries(found.rows.map((row) => [row.status, Number(row.count)]));
  },
  aggregate: async () => {
    const found = await send(
      `SELECT MAX("queue_position") FROM (SELECT ${from}."queue_position" FROM ${from} ` +
        `WHERE 1=1 OFFSET $1) AS "sub"`,
      [0],
    );
    return Number(found.rows[0].max);
  },
  update: async () =>
    (
      await send(
        `UPDATE ${from} SET "status" = $1, "${agent}" = $2, "updated_at" = $3 ` +
          `WHERE (${from}."status" = $4 AND 1=1) RETURNING ${from}."id"`,
        ["assigned", 7, new Date(), "pending"],
      )
    ).rowCount,
  updateMany: async () =>
    (
      await send(`UPDATE ${from} SET "status" = $1 WHERE ${from}."status" = $2`, [
        "skipped",
        "pending",
      ])
    ).rowCount,
  create: async () =>
    (
      await send(
        `INSERT INTO ${from} ("id","user_id","queue_position","status","created_at","updated_at") ` +
          `VALUES ($1,$2,$3,$4,$5,$6) RETURNING ${from}."id"`,
        [randomUUID(), 4, 99, "pending", new Date(), new Date()],
      )
    ).rowCount,
  createMany: async () =>
    (
      await send(
        `INSERT INTO ${from} ("id","user_id","queue_position","status","created_at","updated_at") ` +
          `VALUES ($1,$2,$3,$4,$5,$6), ($7,$8,$9,$10,$11,$12) ON CONFLICT DO NOTHING`,
        [4, 1].flatMap((user) => [randomUUID(), user, 97, "pending", new Date(), new Date()]),
      )
    ).rowCount,
  // What Prisma sends where the database cannot do it in one statement: look, and then write.
  upsertByTwo: async () => {
    const found = await send(
      `SELECT ${from}."id" FROM ${from} WHERE (${from}."id" = $1 AND 1=1)`,
      [await anId()],
    );
    return (
      await send(`UPDATE ${from} SET "status" = $1 WHERE (${from}."id" = $2 AND 1=1)`, [
        "pending",
        found.rows[0].id,
      ])
    ).rowCount;
  },
  upsert: async () =>
    (
      await send(
        `INSERT INTO ${from} ("id","user_id","queue_position","status","created_at","updated_at") ` +
          `VALUES ($1,$2,$3,$4,$5,$6) ON CONFLICT ("id") DO UPDATE SET "status" = $7 ` +
          `RETURNING ${from}."id"`,
        [randomUUID(), 4, 98, "pending", new Date(), new Date(), "pending"],
      )
    ).rowCount,
  delete: async () =>
    (
      await send(
        `DELETE FROM ${from} WHERE (${from}."id" = $1 AND 1=1) RETURNING ${from}."id"`,
        [await anId()],
      )
    ).rowCount,
  deleteMany: async () => (await send(`DELETE FROM ${from} WHERE 1=1`)).rowCount,
  forUpdateSkipLocked: async () =>
    (
      await send(
        `SELECT "id" FROM ${from} WHERE "status" = $1 ORDER BY "queue_position" LIMIT 1 ` +
          `FOR UPDATE SKIP LOCKED`,
        ["pending"],
      )
    ).rowCount,
  // Another table's row and one of the queue's together: both or none.
  transaction: async () => {
    await send(
      `INSERT INTO ${promises} ("id","user_id","scheduled_for","original_call_session_id") ` +
        `VALUES ($1,$2,$3,$4)`,
      [randomUUID(), 1, new Date(), randomUUID()],
    );
    return (
      await send(`UPDATE ${from} SET "status" = $1 WHERE ${from}."user_id" = $2`, ["completed", 1])
    ).rowCount;
  },
  // The original's claim of a callback: found, then taken by a guarded update, in one transaction.
  claimCallback: async () => {
    await send(
      `INSERT INTO ${promises} ("id","user_id","scheduled_for","original_call_session_id") ` +
        `VALUES ($1,$2,$3,$4)`,
      [randomUUID(), 2, new Date(), randomUUID()],
    );
    const found = await send(
      `SELECT "id" FROM ${promises} WHERE ("status" = $1 AND "user_id" = $2) ` +
        `ORDER BY "scheduled_for" ASC LIMIT $3 OFFSET $4`,
      ["pending", 2, 1, 0],
    );
    return (
      await send(
        `UPDATE ${promises} SET "status" = $1, "assigned_to_agent_id" = $2 ` +
          `WHERE ("id" = $3 AND "status" = $4)`,
        ["assigned", 9, found.rows[0].id, "pending"],
      )
    ).rowCount;
  },
  createCallback: async () =>
    (
      await send(
        `INSERT INTO ${promises} ("id","user_id","scheduled_for","original_call_session_id") ` +
          `VALUES ($1,$2,$3,$4) RETURNING "id"`,
        [randomUUID(), 1, new Date(), randomUUID()],
      )
    ).rowCount,
};

// Each in a transaction that is rolled back, so that every line of input finds the same.
async function everything() {
  const said = {};
  for (const [name, query] of Object.entries(queries)) {
    await client.query("BEGIN");
    try {
      said[name] = await query();
    } catch (error) {
      said[name] = error.message;
    } finally {
      await client.query("ROLLBACK");
    }
  }
  return said;
}

for await (const _ of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await everything()));
}
await client.end();
