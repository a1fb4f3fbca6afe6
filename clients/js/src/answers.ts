/** What a caller can get: closed unions to `switch` over by `outcome`. */

import type { components } from "./openapi.js";

type Schemas = components["schemas"];

/** An assignment as its agent sees it. Times are UTC in ISO 8601. */
export type Held = Schemas["Held"];

/** What went wrong, as the gateway says it (RFC 9457). */
export type ProblemDetails = Partial<Schemas["ProblemDetails"]> &
  Pick<Schemas["ProblemDetails"], "type" | "title" | "status" | "detail">;

/** Why something was refused, for programs. */
export type Code = NonNullable<ProblemDetails["code"]>;

/** The user is this agent's. `replayed`: this was said before; nothing new was handed out. */
export type Assigned = Schemas["AssignedAnswer"];

/** Nothing was claimable. `retry_after`: seconds; `why`: the reason for each dialer queue. */
export type Empty = Schemas["EmptyAnswer"];

/** An operator paused every dialer queue that the request may take from. */
export type Paused = Schemas["PausedAnswer"];

/** The deadline had passed; nobody was assigned. */
export type TooLate = Schemas["TooLateAnswer"];

/** Asking again unchanged gets the same, but where `retry_after` says when time will mend it. */
export interface Refused {
  outcome: "refused";
  code: Code;
  /** For a person: what was wrong and what is accepted. */
  reason: string;
  /** Seconds. */
  retry_after?: number;
  request_id?: string;
}

/**
 * No answer, for now: the database, the CRM or the gateway cannot be reached. It is not `empty`.
 *
 * A request may have been met in the last instant: asking again with the same request id tells.
 */
export interface Unavailable {
  outcome: "unavailable";
  /** Seconds until it may be worth a try. */
  retry_after: number;
  reason: string;
  request_id?: string;
}

/** The assignment is in this state by this call, or by an earlier one like it (`replayed`). */
export type Finished = Schemas["Finished"];

/** The answer to `requestNext`. */
export type RequestAnswer = Assigned | Empty | Paused | TooLate | Refused | Unavailable;

/** The answer to a move on a hold: `complete`, `skip`, `renew` and the like. */
export type FinishAnswer = Finished | Refused | Unavailable;

/** The dialer queues, outcomes and actions as configured, each in its order. */
export type Dialer = Schemas["DialerDescription"];

/** What an agent is about. */
export type AgentState = Schemas["AgentStatus"];

/** The agent's state is this. Who says `available` while they hold work is `on_call`. */
export type Stated = Schemas["Stated"];

/** The answer to `state`. */
export type StateAnswer = Stated | Refused | Unavailable;

/** A heartbeat was kept, and how the agent stands. */
export type Noted = Schemas["Noted"];

/** The answer to `heartbeat`. */
export type HeartbeatAnswer = Noted | Refused | Unavailable;

/** How an agent stands. */
export type AgentShown = Schemas["AgentShown"];

/** What happened: an assignment, its end, a generation, a pause. */
export type LiveEvent = Schemas["LiveEvent"];
