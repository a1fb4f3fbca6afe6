import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";

import { ofStack } from "../dist/node.js";

const AGENT = 42;

/** @param {Record<string, unknown> | string} said @param {(home: string) => Promise<void>} use */
async function withHome(said, use) {
  const home = await mkdtemp(join(tmpdir(), "stack-"));
  try {
    await writeFile(join(home, "stack.json"), typeof said === "string" ? said : JSON.stringify(said));
    await use(home);
  } finally {
    await rm(home, { recursive: true });
  }
}

const STACK = {
  gateway_url: process.env["GATEWAY_URL"],
  gateway_token: process.env["FRONTEND"],
  pid: process.pid,
};

test("a running stack is found by its home, with its token", async () => {
  await withHome(STACK, async (home) => {
    const client = await ofStack(home);
    const answer = await client.requestNext(AGENT);
    assert.equal(answer.outcome, "assigned");
    if (answer.outcome === "assigned") await client.release(answer.assignment);
    process.env["ASSIGNMENT_WORKERS_HOME"] = home;
    assert.equal(await (await ofStack()).activeAssignment(AGENT), null);
  });
});

test("no stack is said in one line", async () => {
  const none = { message: /^no stack runs on .*: start one with `assignment-workers up`$/ };
  await assert.rejects(ofStack("/nowhere"), none);
  await withHome({ ...STACK, pid: 2 ** 22 + 1 }, (home) => assert.rejects(ofStack(home), none));
  await withHome({ pid: process.pid }, (home) => assert.rejects(ofStack(home), none));
  await withHome("{", (home) => assert.rejects(ofStack(home), none));
});
