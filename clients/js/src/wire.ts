import type { ProblemDetails } from "./answers.js";
import { type Sent, sent } from "./events.js";

/** An API token, or what gives it before each call. */
export type Token = string | (() => string | Promise<string>);

/** What came of a call: a body, a problem, or nothing. */
export type Reply = { body: unknown } | { problem: ProblemDetails } | { lost: string };

interface Call {
  timeoutMs: number;
  signal: AbortSignal | undefined;
  /** What is said when so many ms are left: made anew for each try. */
  body?: (leftMs: number) => object;
}

/** Beyond the call's own timeout, for the way there and back. */
const MARGIN_MS = 2_000;
/** Before the same is said again: doubled each time, up to the last. */
const PAUSE_MS = { first: 100, last: 1_600 };
/** A stream that is silent for longer is lost: the gateway sends something every 15 s. */
const SILENT_MS = 45_000;
/** The Date of an answer has whole seconds, and may be one old. */
const CLOCK_TOLERANCE_MS = 2_000;

/** Calls to one gateway. One that loses its connection is made again while its timeout lasts. */
export class Wire {
  readonly #base: string;
  readonly #token: Token | undefined;
  #behindMs = 0;

  /** Throws `TypeError` for what is no address of a gateway. */
  constructor(gatewayUrl: string | URL, token: Token | undefined) {
    const url = parsed(gatewayUrl);
    if (url?.protocol !== "http:" && url?.protocol !== "https:") {
      throw new TypeError(`"${gatewayUrl}" is not an address such as https://gateway.example`);
    }
    this.#base = url.origin + url.pathname.replace(/\/+$/, "");
    this.#token = token;
  }

  /** The gateway's time in ms since 1970. */
  now(): number {
    return Date.now() + this.#behindMs;
  }

  /** What came of it; throws the signal's reason when that is aborted. */
  async call(method: string, path: string, { timeoutMs, signal, body }: Call): Promise<Reply> {
    const ends = performance.now() + timeoutMs;
    for (let pause = PAUSE_MS.first; ; pause = Math.min(pause * 2, PAUSE_MS.last)) {
      const left = ends - performance.now();
      const reply = await this.#once(method, path, left + MARGIN_MS, signal, body?.(left));
      const wait = pause * (0.5 + Math.random() / 2);
      if (!("lost" in reply) || performance.now() + wait >= ends) {
        return reply;
      }
      await sleep(wait, signal);
    }
  }

  /**
   * The server-sent events of `path`, after the id `last` where there is one. It ends when the
   * connection does, or is silent for too long; throws the signal's reason when that is aborted.
   */
  async *stream(
    path: string,
    last: string | undefined,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Sent | { reply: Reply }, void> {
    const headers = { ...(await this.#headers()), Accept: "text/event-stream" };
    const until = new Until(SILENT_MS, signal);
    const { signal: ended } = until;
    try {
      const init: RequestInit = { headers, signal: ended, cache: "no-store" };
      if (last !== undefined) {
        init.headers = { ...headers, "Last-Event-ID": last };
      }
      const response = await fetch(this.#base + path, init);
      if (!response.ok || response.body === null) {
        yield { reply: read(response, await response.text()) };
        return;
      }
      yield* sent(response.body, () => until.again(SILENT_MS));
    } catch (error) {
      signal?.throwIfAborted();
      yield { reply: { lost: `no answer from ${this.#base}: ${reason(error)}` } };
    } finally {
      until.end();
    }
  }

  async #once(
    method: string,
    path: string,
    withinMs: number,
    signal: AbortSignal | undefined,
    body: object | undefined,
  ): Promise<Reply> {
    const init: RequestInit = { method, headers: await this.#headers() };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
    }
    const until = new Until(withinMs, signal);
    try {
      const asked = Date.now();
      const response = await fetch(this.#base + path, { ...init, signal: until.signal });
      this.#setClock(response.headers.get("date"), asked);
      return read(response, await response.text());
    } catch (error) {
      signal?.throwIfAborted();
      return { lost: `no answer from ${this.#base}: ${reason(error)}` };
    } finally {
      until.end();
    }
  }

  async #headers(): Promise<Record<string, string>> {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    const headers = { "Content-Type": "application/json" };
    return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
  }

  #setClock(date: string | null, asked: number): void {
    const said = Date.parse(date ?? "");
    const behind = said - (asked + Date.now()) / 2;
    if (!Number.isNaN(behind)) {
      this.#behindMs = Math.abs(behind) <= CLOCK_TOLERANCE_MS ? 0 : behind;
    }
  }
}

/** Aborts after a time, and when its caller's signal does. */
class Until {
  readonly #aborter = new AbortController();
  readonly #callers: AbortSignal | undefined;
  #timer: ReturnType<typeof setTimeout>;

  constructor(ms: number, callers: AbortSignal | undefined) {
    callers?.throwIfAborted();
    this.#timer = this.#after(ms);
    this.#callers = callers;
    callers?.addEventListener("abort", this.#abort);
  }

  get signal(): AbortSignal {
    return this.#aborter.signal;
  }

  /** So many ms from now, instead of the time that was set before. */
  again(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = this.#after(ms);
  }

  end(): void {
    clearTimeout(this.#timer);
    this.#callers?.removeEventListener("abort", this.#abort);
  }

  #after(ms: number): ReturnType<typeof setTimeout> {
    const timeout = new Error(`nothing came within ${Math.round(ms)} ms`);
    return setTimeout(() => this.#aborter.abort(timeout), ms);
  }

  readonly #abort = () => this.#aborter.abort(this.#callers?.reason);
}

export async function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  const until = new Until(ms, signal);
  await new Promise((resolve) => until.signal.addEventListener("abort", resolve));
  until.end();
  signal?.throwIfAborted();
}

/** A response as a reply. What a proxy says instead of a gateway that is away means no answer. */
function read(response: Response, text: string): Reply {
  const { status, statusText } = response;
  const body = json(text);
  if (response.headers.get("content-type")?.startsWith("application/problem+json") && body) {
    return { problem: body as ProblemDetails };
  }
  if (status >= 500 || (response.ok && body === undefined)) {
    return { lost: `it answered ${status} ${statusText}, and nothing of a gateway` };
  }
  const detail = "no gateway answered, but something before it";
  return response.ok
    ? { body }
    : { problem: { type: "about:blank", title: statusText, status, detail } };
}

function json(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function parsed(url: string | URL): URL | undefined {
  try {
    return new URL(url);
  } catch {
    return undefined;
  }
}

/** A failed fetch says little; in Node its cause says more. */
function reason(error: unknown): string {
  const cause = error instanceof Error ? (error.cause ?? error) : error;
  return cause instanceof Error ? cause.message || cause.name : String(cause);
}
