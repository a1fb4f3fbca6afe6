/// <reference types="node" />
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import process from "node:process";

import { Client } from "./client.js";

const FILE = "stack.json";

/**
 * A client of the stack that `assignment-workers up` runs on this machine, with its token.
 *
 * @param home The stack's home; `ASSIGNMENT_WORKERS_HOME`, or `.assignment-workers` here, where it
 *   is not said. Its file is readable by the user who started the stack alone.
 * @throws Error where no stack runs there.
 */
export async function ofStack(
  home: string = process.env["ASSIGNMENT_WORKERS_HOME"] || ".assignment-workers",
): Promise<Client> {
  const found = await stackOf(home);
  if (!isStack(found) || !runs(found.pid)) {
    throw new Error(`no stack runs on ${resolve(home)}: start one with \`assignment-workers up\``);
  }
  return new Client(found.gateway_url, { token: found.gateway_token });
}

interface Stack {
  gateway_url: string;
  gateway_token: string;
  pid: number;
}

async function stackOf(home: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(join(home, FILE), "utf8"));
  } catch (error) {
    const code = (error as { code?: string }).code;
    if (code === undefined || code === "ENOENT" || code === "ENOTDIR") {
      return undefined;
    }
    throw error;
  }
}

function isStack(found: unknown): found is Stack {
  const stack = found as Partial<Stack> | undefined | null;
  return (
    typeof stack?.gateway_url === "string" &&
    typeof stack.gateway_token === "string" &&
    typeof stack.pid === "number"
  );
}

/** Whether the process is there; one of another user is. */
function runs(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as { code?: string }).code === "EPERM";
  }
}
