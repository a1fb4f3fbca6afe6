// Asks for the next user as a Celery task, without the gateway:
//
//     eval "$(assignment-workers env)" && node enqueue.mjs 26 unsigned_users
//
// Prints the answer as JSON. Asked again with the same request id, the answer is the same; the task
// has an id of its own each time, so that no earlier result is taken for its.
import { randomUUID } from "node:crypto";
import celery from "celery-node";

const TIMEOUT_MS = 10_000;
const [agent, queue = null, requestId = randomUUID()] = process.argv.slice(2);
const { BROKER_URL, REDIS_URL } = process.env;
if (!REDIS_URL || !/^[1-9]\d*$/.test(agent ?? "")) {
  console.error("usage: REDIS_URL=redis://... node enqueue.mjs AGENT [QUEUE [REQUEST_ID]]");
  process.exit(2);
}

// The third argument is the Celery queue. Anything else than "assignment" and nobody answers.
const client = celery.createClient(BROKER_URL ?? REDIS_URL, REDIS_URL, "assignment");
const result = client.createTask("assignment.request").applyAsync([], {
  agent_id: Number(agent),
  queue,
  request_id: requestId,
  deadline: new Date(Date.now() + TIMEOUT_MS).toISOString(),
});
try {
  // It looks for the result every 50 ms; the default is every 500.
  console.log(JSON.stringify(await result.get(TIMEOUT_MS, 50)));
} catch (error) {
  console.error(`no answer: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.disconnect();
}
