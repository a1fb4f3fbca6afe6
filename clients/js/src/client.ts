import type {
  AgentState,
  AgentShown,
  Code,
  Dialer,
  FinishAnswer,
  Held,
  HeartbeatAnswer,
  LiveEvent,
  Refused,
  RequestAnswer,
  StateAnswer,
  Unavailable,
} from "./answers.js";
import { type LeaseEvents, LeaseKeeper } from "./lease.js";
import type { paths } from "./openapi.js";
import { ProblemError } from "./problem.js";
import { type Reply, sleep, type Token, Wire } from "./wire.js";

export interface ClientOptions {
  /** The API token, or what gives it before each call. Absent: a gateway that needs none. */
  token?: Token;
}

export interface CallOptions {
  /** How long to wait at the most, 100 to 30,000 ms. 10,000 where it is not said. */
  timeoutMs?: number;
  /** Aborted: the call throws the signal's reason, and the gateway takes the request back. */
  signal?: AbortSignal;
}

export interface RequestOptions extends CallOptions {
  /** Only from this dialer queue. */
  queue?: string;
  /** The same id gets the same answer; made where it is not said. */
  requestId?: string;
}

export interface CompleteOptions extends CallOptions {
  notes?: string;
  /** When the user wants to be called: a Date, or ISO 8601 with a zone. */
  callbackAt?: Date | string;
}

/** Until when nobody is offered the user: a time, or so many seconds from now. One of the two. */
export type DeferOptions = CallOptions & { why?: string } & (
    | { until: Date | string; seconds?: never }
    | { seconds: number; until?: never }
  );

export interface StateOptions extends CallOptions {
  /** For the records. */
  why?: string;
}

export interface EventOptions {
  /** Only what this agent does. */
  agentId?: number;
  /** The `id` of an event: what came later comes first, and nothing twice. */
  after?: number;
  signal?: AbortSignal;
}

export interface HeartbeatOptions extends CallOptions {
  /** What the agent works on: the first heartbeat that names an offer accepts it. */
  assignmentId?: string;
}

/** Whose assignment it is; a `Held` says it. Without `version`: whichever it has. */
export interface Owned {
  id: string;
  agent_id: number;
  version?: number;
}

type VerbPath<Name extends string> = `/v1/assignments/{assignment}/${Name}`;
type NameOf<Path> = Path extends VerbPath<infer Name> ? Name : never;

/** The name of a command about an assignment, as the gateway's OpenAPI document has it. */
export type Verb = NameOf<keyof paths>;

/** The arguments of a verb, as the document has them, without the owner of the assignment. */
export type VerbArguments<Name extends Verb> = Omit<
  paths[VerbPath<Name>]["post"]["requestBody"]["content"]["application/json"],
  "agent_id" | "version"
>;

const EVENTS = "/v1/events";
/** Before a stream is asked for again: doubled each time, up to the last. */
const AGAIN_MS = { first: 500, last: 15_000 };
const TIMEOUT_MS = { least: 100, unsaid: 10_000, most: 30_000 };

/**
 * An agent's moves, over HTTP. One client serves any number of agents and calls at a time.
 *
 * A call that loses its connection is made again, with the same request id, for as long as its
 * timeout lasts: every move may be said twice. It throws `ProblemError` for what is no answer, and
 * `RangeError` or `TypeError` for arguments that cannot be meant.
 */
export class Client {
  readonly #wire: Wire;

  /** @param gatewayUrl Where the gateway is: `https://gateway.example`. */
  constructor(gatewayUrl: string | URL, options: ClientOptions = {}) {
    this.#wire = new Wire(gatewayUrl, options.token);
  }

  /** The next user for this agent. While the agent holds somebody, that assignment again. */
  async requestNext(agentId: number, options: RequestOptions = {}): Promise<RequestAnswer> {
    const requestId = options.requestId ?? newRequestId();
    const said = { agent_id: agentId, queue: options.queue ?? null, request_id: requestId };
    const reply = await this.#post("/v1/requests", options, (left) => ({
      ...said,
      timeout_ms: Math.round(Math.max(left, TIMEOUT_MS.least)),
    }));
    return answer<RequestAnswer>(reply, requestId);
  }

  /** The call was made and `outcome` came of it. */
  async complete(
    held: Owned,
    outcome: string,
    options: CompleteOptions = {},
  ): Promise<FinishAnswer> {
    const { notes = null, callbackAt } = options;
    const callback_at = callbackAt === undefined ? null : instant(callbackAt);
    return this.act(held, "complete", { outcome, notes, callback_at }, options);
  }

  /** Accept the offer; its lease starts anew. Renewing the lease does the same. */
  async accept(held: Owned, options: CallOptions = {}): Promise<FinishAnswer> {
    return this.act(held, "accept", {}, options);
  }

  /** Skip this user: they are offered later, to other agents first. */
  async skip(held: Owned, options: CallOptions = {}): Promise<FinishAnswer> {
    return this.act(held, "skip", {}, options);
  }

  /** Defer this user: nobody is offered them before the time. */
  async defer(held: Owned, options: DeferOptions): Promise<FinishAnswer> {
    const { seconds = null, why = null } = options;
    const until = options.until === undefined ? null : instant(options.until);
    return this.act(held, "defer", { until, seconds, why }, options);
  }

  /** The user is out of this dialer queue, until an operator lifts it. */
  async close(held: Owned, why: string, options: CallOptions = {}): Promise<FinishAnswer> {
    return this.act(held, "close", { why }, options);
  }

  /** Give the user back untouched. */
  async release(held: Owned, options: CallOptions = {}): Promise<FinishAnswer> {
    return this.act(held, "release", {}, options);
  }

  /** Still at it: the lease runs anew. */
  async renew(held: Owned, options: CallOptions = {}): Promise<FinishAnswer> {
    return this.act(held, "renew", {}, options);
  }

  /** Any verb that the gateway has, with its arguments as the OpenAPI document has them. */
  async act<Name extends Verb>(
    held: Owned,
    verb: Name,
    said: VerbArguments<Name>,
    options: CallOptions = {},
  ): Promise<FinishAnswer> {
    const path = `/v1/assignments/${encodeURIComponent(held.id)}/${verb}`;
    const owner = { agent_id: held.agent_id, version: held.version ?? null };
    return answer<FinishAnswer>(await this.#post(path, options, () => ({ ...owner, ...said })));
  }

  /**
   * The agent is about this from now on. On break or offline they are handed nobody, and an offer
   * that is not accepted is released; accepted work is kept.
   */
  async state(
    agentId: number,
    becomes: AgentState,
    options: StateOptions = {},
  ): Promise<StateAnswer> {
    const said = { state: becomes, why: options.why ?? null };
    return answer<StateAnswer>(await this.#post(agent(agentId, "/state"), options, () => said));
  }

  /** The agent is there: what they have accepted lives by it. It changes no state. */
  async heartbeat(agentId: number, options: HeartbeatOptions = {}): Promise<HeartbeatAnswer> {
    const said = { assignment_id: options.assignmentId ?? null };
    return answer<HeartbeatAnswer>(
      await this.#post(agent(agentId, "/heartbeat"), options, () => said),
    );
  }

  /** How the agent stands: their state, session, last sign of life, and what they hold. */
  async agent(
    agentId: number,
    options: CallOptions = {},
  ): Promise<AgentShown | Refused | Unavailable> {
    return answer<AgentShown>(await this.#wire.call("GET", agent(agentId), bounds(options)));
  }

  /** What the agent holds now; null: nobody. */
  async activeAssignment(
    agentId: number,
    options: CallOptions = {},
  ): Promise<Held | null | Refused | Unavailable> {
    const reply = await this.#wire.call("GET", agent(agentId, "/assignment"), bounds(options));
    return "problem" in reply && reply.problem.status === 404 ? null : answer<Held>(reply);
  }

  /** The dialer queues, outcomes and actions as configured: what an agent can choose from. */
  async dialer(options: CallOptions = {}): Promise<Dialer | Refused | Unavailable> {
    return answer<Dialer>(await this.#wire.call("GET", "/v1/dialer", bounds(options)));
  }

  /**
   * Events as they are committed, without end: `for await (const event of client.events())`.
   *
   * A connection that is lost is made again, and goes on where it was: no event is left out or comes
   * twice. Kind `reset`: missed events cannot be sent any more; read the present state again. It
   * throws `ProblemError` for a token that may not read, and the signal's reason when it is aborted;
   * leaving the loop closes the connection.
   */
  async *events(options: EventOptions = {}): AsyncGenerator<LiveEvent, void> {
    const { agentId, signal } = options;
    const path = agentId === undefined ? EVENTS : `${EVENTS}?agent_id=${agentId}`;
    let last = options.after?.toString();
    for (let pause = AGAIN_MS.first; ; pause = Math.min(pause * 2, AGAIN_MS.last)) {
      for await (const each of this.#wire.stream(path, last, signal)) {
        if ("reply" in each) {
          stopAt(each.reply);
          continue;
        }
        pause = AGAIN_MS.first;
        last = each.id === "" ? last : each.id;
        if (each.data !== "") {
          yield JSON.parse(each.data) as LiveEvent;
        }
      }
      await sleep(pause * (0.5 + Math.random() / 2), signal);
    }
  }

  /** Renew the lease for as long as the keeper is not stopped. */
  keepLease(held: Held, events: LeaseEvents = {}): LeaseKeeper {
    return new LeaseKeeper(this, held, events);
  }

  /**
   * The gateway's time in ms since 1970, for counting a lease down: the local clock, set right by
   * the gateway's answers where it is more than two seconds wrong.
   */
  now(): number {
    return this.#wire.now();
  }

  #post(path: string, options: CallOptions, body: (leftMs: number) => object) {
    return this.#wire.call("POST", path, { ...bounds(options), body });
  }
}

/** Throws `ProblemError` for a stream that is refused for good; others are asked for again. */
function stopAt(reply: Reply): void {
  if ("problem" in reply && reply.problem.status < 500 && reply.problem.status !== 429) {
    throw new ProblemError(reply.problem);
  }
}

function agent(agentId: number, what = ""): string {
  return `/v1/agents/${encodeURIComponent(agentId)}${what}`;
}

function bounds({ timeoutMs = TIMEOUT_MS.unsaid, signal }: CallOptions) {
  if (!(timeoutMs >= TIMEOUT_MS.least && timeoutMs <= TIMEOUT_MS.most)) {
    const { least, most } = TIMEOUT_MS;
    throw new RangeError(`timeoutMs is ${timeoutMs}; accepted: ${least} to ${most}`);
  }
  return { timeoutMs, signal };
}

/** Where a proxy refused, which knows no codes of ours. */
const CODES: Record<number, Code> = { 401: "unauthenticated", 403: "forbidden", 422: "malformed" };

/** The answer that a reply stands for; throws `ProblemError` for what is none. */
function answer<T>(reply: Reply, requestId?: string): T | Refused | Unavailable {
  const asked = requestId === undefined ? {} : { request_id: requestId };
  if ("body" in reply) {
    return reply.body as T;
  }
  if ("lost" in reply) {
    return { outcome: "unavailable", retry_after: 1, reason: reply.lost, ...asked };
  }
  const { status, detail: reason, code, retry_after } = reply.problem;
  if (status === 429 || status === 503) {
    return { outcome: "unavailable", retry_after: retry_after ?? 2, reason, ...asked };
  }
  const refusal = code ?? CODES[status];
  if (refusal === undefined) {
    throw new ProblemError(reply.problem);
  }
  const soon = retry_after == null ? {} : { retry_after };
  return { outcome: "refused", code: refusal, reason, ...soon, ...asked };
}

function instant(time: Date | string): string {
  return typeof time === "string" ? time : time.toISOString();
}

/** 128 bits by chance. `crypto.randomUUID` is only there for pages that came over TLS. */
function newRequestId(): string {
  const bytes = new Uint8Array(16);
  if (globalThis.crypto === undefined) {
    bytes.forEach((_, place) => (bytes[place] = Math.random() * 256)); // Node 18
  } else {
    globalThis.crypto.getRandomValues(bytes);
  }
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
