// Reads a dialer's queue table with the statements that Prisma sends for findFirst, groupBy and
// findMany, and tries the update of its assignment. Prints one line of JSON.
//   DATABASE_URL=... node read.mjs TABLE AGENT_COLUMN
import pg from "pg";

const [table, agent] = process.argv.slice(2);
if (!/^[a-z_]+$/.test(table ?? "") || !/^[a-z_]+$/.test(agent ?? "")) {
  console.error("usage: node read.mjs TABLE AGENT_COLUMN");
  process.exit(2);
}
const from = `"public"."${table}"`;
const columns = ["id", "user_id", "priority_score", "queue_position", "status", agent]
  .map((name) => `${from}."${name}"`)
  .join(", ");
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
try {
  const first = await client.query(
    `SELECT ${columns} FROM ${from} WHERE (${from}."status" = $1 AND ${from}."${agent}" IS NULL) ` +
      `ORDER BY ${from}."queue_position" ASC LIMIT $2 OFFSET $3`,
    ["pending", 1, 0],
  );
  const groups = await client.query(
    `SELECT COUNT(*), ${from}."status" FROM ${from} WHERE 1=1 GROUP BY ${from}."status" ` +
      `ORDER BY ${from}."status" ASC OFFSET $1`,
    [0],
  );
  const many = await client.query(
    `SELECT ${columns} FROM ${from} WHERE ${from}."status" IN ($1,$2) ` +
      `ORDER BY ${from}."queue_position" ASC, ${from}."created_at" DESC OFFSET $3`,
    ["pending", "assigned", 0],
  );
  const found = first.rows[0];
  let update;
  try {
    await client.query("BEGIN");
    const done = await client.query(
      `UPDATE ${from} SET "status" = $1, "${agent}" = $2, "updated_at" = $3 ` +
        `WHERE (${from}."id" = $4 AND 1=1) RETURNING ${from}."id"`,
      ["assigned", 7, new Date(), found.id],
    );
    update = done.rowCount;
  } catch (error) {
    update = error.message;
  } finally {
    await client.query("ROLLBACK");
  }
  console.log(
    JSON.stringify({
      first: Number(found.user_id),
      groups: Object.fromEntries(groups.rows.map((row) => [row.status, Number(row.count)])),
      many: many.rows.map((row) => [Number(row.user_id), row.status, row[agent]]),
      update,
    }),
  );
} finally {
  await client.end();
}
