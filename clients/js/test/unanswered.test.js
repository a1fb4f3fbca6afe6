// The client against a gateway whose workers are stopped: see the test that starts this one.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Client } from "../dist/index.js";

const { GATEWAY_URL = "", FRONTEND = "" } = process.env;

test("no answer in time is unavailable, not empty", async () => {
  const client = new Client(GATEWAY_URL, { token: FRONTEND });
  const answer = await client.requestNext(30, { timeoutMs: 300, requestId: "js-3" });
  assert.equal(answer.outcome, "unavailable");
  assert.ok("retry_after" in answer && answer.retry_after > 0);
  assert.equal(answer.request_id, "js-3");
});
