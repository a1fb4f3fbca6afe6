// The client against a running gateway, whose address and tokens the environment says.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createServer, connect } from "node:net";
import { test } from "node:test";
import { Client, ProblemError } from "../dist/index.js";

/** @typedef {import("../dist/index.js").Held} Held */
/** @typedef {import("../dist/index.js").RequestAnswer} RequestAnswer */
/** @typedef {import("../dist/index.js").FinishAnswer} FinishAnswer */

const { GATEWAY_URL = "", FRONTEND = "", OPERATOR = "", AGENT_1 = "" } = process.env;
const HOUR_MS = 3_600_000;
const ONE_ID = randomUUID();
const client = new Client(GATEWAY_URL, { token: FRONTEND });

/**
 * @template A, T
 * @typedef {A extends { outcome: infer O } ? (T extends O ? A : never) : never} With
 */

/**
 * The answer, which has this outcome.
 * @template {string} T
 * @template {{ outcome: string }} A
 * @param {A} answer
 * @param {T} outcome
 * @returns {With<A, T>}
 */
function is(answer, outcome) {
  assert.equal(answer.outcome, outcome, JSON.stringify(answer));
  return /** @type {any} */ (answer);
}

/** @param {number} agent */
async function assigned(agent) {
  return is(await client.requestNext(agent), "assigned").assignment;
}

test("a user is assigned, and the same request id gets the same", async () => {
  const first = is(await client.requestNext(10, { queue: "unsigned_users", requestId: ONE_ID }), "assigned");
  assert.equal(first.assignment.agent_id, 10);
  assert.equal(first.assignment.queue, "unsigned_users");
  assert.equal(first.request_id, ONE_ID);
  assert.equal(first.replayed, false);
  const again = is(await client.requestNext(10, { queue: "unsigned_users", requestId: ONE_ID }), "assigned");
  assert.equal(again.assignment.id, first.assignment.id);
  assert.equal(again.replayed, true);
  assert.deepEqual(await client.activeAssignment(10), first.assignment);
  is(await client.release(first.assignment), "released");
});

test("the four moves end or renew a hold, and say the same when they are said twice", async () => {
  const held = await assigned(11);
  const renewed = is(await client.renew(held), "renewed").assignment;
  assert.ok(renewed.lease_expires_at > held.lease_expires_at);
  const completed = is(await client.complete(held, "no_answer", { notes: "rang" }), "completed");
  assert.equal(completed.replayed, false);
  assert.equal(is(await client.complete(held, "no_answer"), "completed").replayed, true);
  is(await client.skip(await assigned(11)), "skipped");
  is(await client.release(await assigned(11)), "released");
  const promised = { callbackAt: new Date(Date.now() + HOUR_MS) };
  is(await client.complete(await assigned(11), "call_back", promised), "completed");
  assert.equal(await client.activeAssignment(11), null);
});

test("events come in order, those after one first, until the loop is left", async () => {
  const watching = new Client(GATEWAY_URL, { token: OPERATOR });
  const held = await assigned(28);
  is(await client.act(held, "release", {}), "released");
  /** @type {[string, number][]} */
  const found = [];
  for await (const { kind, id, assignment_id } of watching.events({ agentId: 28, after: 0 })) {
    if (assignment_id !== held.id) continue;
    found.push([kind, id]);
    if (kind === "released") break;
  }
  assert.deepEqual(found.map(([kind]) => kind), ["assigned", "released"]);
  const after = found[0]?.[1] ?? 0;
  for await (const event of watching.events({ agentId: 28, after })) {
    assert.equal(event.kind, "released");
    break;
  }
  const leaving = new AbortController();
  const left = watching.events({ agentId: 28, signal: leaving.signal }).next();
  leaving.abort(new Error("the page was left"));
  await assert.rejects(left, /the page was left/);
  await assert.rejects(new Client(GATEWAY_URL, { token: "x".repeat(40) }).events().next(), ProblemError);
});

test("an offer is accepted by a word, a renewal or the first heartbeat that names it", async () => {
  const offer = await assigned(24);
  assert.equal(offer.accepted_at, null);
  const work = is(await client.accept(offer), "accepted").assignment;
  assert.ok(work.accepted_at);
  assert.ok(work.lease_expires_at > offer.lease_expires_at);
  assert.equal(is(await client.accept(offer), "accepted").replayed, true);
  is(await client.release(work), "released");
  const second = await assigned(24);
  const noted = is(await client.heartbeat(24, { assignmentId: second.id }), "noted");
  assert.equal(noted.assignment_id, second.id);
  assert.ok(/** @type {Held} */ (await client.activeAssignment(24)).accepted_at);
  is(await client.release(second), "released");
  assert.equal(is(await client.heartbeat(24, { assignmentId: second.id }), "noted").assignment_id, null);
});

test("defer and close are not skip, and need what they need", async () => {
  const held = await assigned(25);
  is(await client.defer(held, { seconds: 3_600, why: "at work" }), "deferred");
  const next = await assigned(25);
  assert.notEqual(next.user_id, held.user_id);
  const far = { until: new Date(Date.now() + 90 * 24 * HOUR_MS) };
  assert.equal(is(await client.defer(next, far), "refused").code, "malformed");
  assert.equal(is(await client.close(next, ""), "refused").code, "malformed");
  is(await client.close(next, "moved abroad"), "closed");
  assert.equal(is(await client.close(next, "moved abroad"), "closed").replayed, true);
});

test("an agent on break is handed nobody, and the offer that they had not accepted is released", async () => {
  is(await client.state(26, "available"), "stated");
  const offer = await assigned(26);
  assert.equal(is(await client.state(26, "break", { why: "lunch" }), "stated").released, offer.id);
  const refused = is(await client.requestNext(26), "refused");
  assert.equal(refused.code, "on_break");
  assert.match(refused.reason, /agent 26 is on break/);
  assert.doesNotMatch(refused.reason, /lunch/);
  const shown = await client.agent(26);
  assert.ok("session_began" in shown);
  assert.equal(shown.state, "break");
  is(await client.state(26, "offline"), "stated");
  // @ts-expect-error: TypeScript knows the states
  assert.equal(is(await client.state(26, "asleep"), "refused").code, "malformed");
});

test("what cannot be is refused, with its code and a reason", async () => {
  const held = await assigned(12);
  const elsewhere = { ...held, id: "00000000-0000-7000-8000-000000000000" };
  const refusals = [
    [client.requestNext(999_999), "unknown_agent"],
    [client.requestNext(12, { queue: "nowhere" }), "unknown_queue"],
    [client.requestNext(13, { requestId: ONE_ID }), "request_id_taken"],
    [client.requestNext(0), "malformed"],
    [client.release(elsewhere), "unknown_assignment"],
    [client.release({ ...held, agent_id: 13 }), "not_owner"],
    [client.release({ ...held, version: 9 }), "stale_version"],
    [client.complete(held, "odd"), "unknown_outcome"],
    [new Client(GATEWAY_URL).requestNext(12), "unauthenticated"],
    [new Client(GATEWAY_URL, { token: () => AGENT_1 }).requestNext(2), "forbidden"],
  ];
  for (const [asked, code] of /** @type {[Promise<RequestAnswer | FinishAnswer>, string][]} */ (refusals)) {
    const refused = is(await asked, "refused");
    assert.equal(refused.code, code, refused.reason);
    assert.ok(refused.reason);
  }
  is(await client.release(held), "released");
  assert.equal(is(await client.complete(held, "no_answer"), "refused").code, "not_active");
});

test("paused and empty are different answers", async () => {
  const queue = "outstanding_requests"; // nobody is in it: see the test that starts this one
  const empty = is(await client.requestNext(14, { queue }), "empty");
  assert.deepEqual(empty.why, { [queue]: "none_eligible" });
  assert.ok(empty.retry_after > 0);
  const operator = { method: "POST", headers: { Authorization: `Bearer ${OPERATOR}` } };
  assert.ok((await fetch(`${GATEWAY_URL}/v1/queues/${queue}/pause`, operator)).ok);
  try {
    assert.equal(is(await client.requestNext(14, { queue }), "paused").queue, queue);
  } finally {
    assert.ok((await fetch(`${GATEWAY_URL}/v1/queues/${queue}/resume`, operator)).ok);
  }
});

/**
 * The gateway behind something that fails for a while: `fail` says for each connection how.
 * @param {(count: number, request: string) => "cut" | "hide" | string | null} fail
 * @param {(address: string, asked: string[]) => Promise<void>} use
 */
async function behind(fail, use) {
  const { hostname, port } = new URL(GATEWAY_URL);
  /** @type {string[]} */
  const asked = [];
  const server = createServer((near) => {
    const far = connect(Number(port), hostname);
    near.on("error", () => {}).on("close", () => far.destroy());
    far.on("error", () => {}).on("close", () => near.destroy());
    near.once("data", (data) => {
      asked.push(data.toString());
      const how = fail(asked.length, data.toString());
      if (how === "cut") {
        near.destroy(); // nothing reaches the gateway
      } else if (how === "hide") {
        far.write(data); // the gateway answers, and nobody hears it
        far.once("data", () => near.destroy());
      } else if (how) {
        near.end(how);
      } else {
        far.write(data);
        near.pipe(far).pipe(near);
      }
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", () => done(null)));
  const address = /** @type {import("node:net").AddressInfo} */ (server.address());
  try {
    await use(`http://127.0.0.1:${address.port}`, asked);
  } finally {
    server.close();
  }
}

test("a lost connection is asked again with the same request id, and one user is assigned", async () => {
  const proxyError = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlost";
  const failures = ["cut", "hide", proxyError];
  await behind(
    (count) => failures[count - 1] ?? null,
    async (address, asked) => {
      const there = new Client(address, { token: FRONTEND });
      const answer = is(await there.requestNext(15), "assigned");
      assert.equal(answer.replayed, true, "the second try was met, and its answer lost");
      assert.equal(asked.length, 4);
      const ids = asked.map((each) => /"request_id":"(\w+)"/.exec(each)?.[1]);
      assert.deepEqual(new Set(ids), new Set([answer.request_id]));
      assert.deepEqual(await client.activeAssignment(15), answer.assignment);
      is(await client.release(answer.assignment), "released");
    },
  );
});

test("a move whose answer was lost is said again", async () => {
  const held = await assigned(16);
  await behind(
    (count) => (count === 1 ? "hide" : null),
    async (address) => {
      const answer = await new Client(address, { token: FRONTEND }).complete(held, "no_answer");
      assert.equal(is(answer, "completed").replayed, true);
    },
  );
});

test("where no gateway is, the answer is unavailable after the timeout, with the request id", async () => {
  const began = performance.now();
  const answer = await new Client("http://127.0.0.1:1").requestNext(17, { timeoutMs: 700, requestId: "js-2" });
  const { reason, request_id } = is(answer, "unavailable");
  assert.match(reason, /127\.0\.0\.1:1/);
  assert.equal(request_id, "js-2");
  const took = performance.now() - began;
  assert.ok(took >= 300 && took < 5_000, `${took} ms`);
});

test("an aborted call throws the signal's reason, while it asks and while it waits to ask again", async () => {
  const reason = new Error("the agent went home");
  await assert.rejects(client.requestNext(18, { signal: AbortSignal.abort(reason) }), reason);
  for (const address of [GATEWAY_URL, "http://127.0.0.1:1"]) {
    const aborter = new AbortController();
    const asked = new Client(address, { token: FRONTEND }).requestNext(18, { signal: aborter.signal });
    setTimeout(() => aborter.abort(reason), address === GATEWAY_URL ? 0 : 150);
    await assert.rejects(asked, reason);
  }
});

/**
 * What is said to happen. A keeper alone would not keep this process alive.
 * @template T
 * @param {(done: (value: T) => void, fail: (why: unknown) => void) => void} start
 * @returns {Promise<T>}
 */
async function happens(start) {
  const alive = setInterval(() => {}, 1_000);
  try {
    return await new Promise(start);
  } finally {
    clearInterval(alive);
  }
}

test("a keeper renews for as long as it is not stopped", { timeout: 30_000 }, async () => {
  const held = await assigned(19);
  /** @type {Held[]} */
  const renewed = [];
  await happens((done, fail) => {
    const keeper = client.keepLease(held, {
      onRenewed: (now) => {
        renewed.push(now);
        assert.equal(keeper.held, now);
        if (renewed.length === 2) {
          keeper.stop();
          done(null);
        }
      },
      onLost: fail,
    });
  });
  const ends = [held, ...renewed].map((each) => each.lease_expires_at);
  assert.deepEqual(ends, [...new Set(ends)].sort());
  is(await client.release(held), "released");
});

test("a keeper tells that the hold was lost", { timeout: 30_000 }, async () => {
  const held = await assigned(20);
  is(await client.release(held), "released");
  const lost = await happens((done) => client.keepLease(held, { onLost: done }));
  assert.ok("code" in lost && lost.code === "not_active", String(lost));
});

test("what is no answer is thrown as a problem", async () => {
  const elsewhere = new Client(`${GATEWAY_URL}/elsewhere`, { token: FRONTEND });
  await assert.rejects(elsewhere.requestNext(21), (/** @type {unknown} */ error) => {
    assert.ok(error instanceof ProblemError);
    assert.equal(error.status, 404);
    assert.equal(error.problem.title, "Not Found");
    return true;
  });
  const long = "x".repeat(70_000);
  await assert.rejects(client.requestNext(21, { requestId: long }), { name: "ProblemError", status: 413 });
});

test("arguments that cannot be meant are told at once", async () => {
  for (const address of ["127.0.0.1:8000", "", "ftp://127.0.0.1"]) {
    assert.throws(() => new Client(address), { name: "TypeError", message: /is not an address/ });
  }
  for (const timeoutMs of [0, 99, 30_001, NaN]) {
    await assert.rejects(client.requestNext(1, { timeoutMs }), { name: "RangeError", message: /100 to 30000/ });
  }
});

test("the gateway's clock is taken where the local one is wrong", async (context) => {
  const right = Date.now;
  context.mock.method(Date, "now", () => right() + HOUR_MS);
  const wrong = new Client(GATEWAY_URL, { token: FRONTEND });
  assert.equal(wrong.now() - right() > HOUR_MS / 2, true);
  await wrong.activeAssignment(22);
  assert.ok(Math.abs(wrong.now() - right()) < 5_000, `${wrong.now() - right()} ms`);
});
