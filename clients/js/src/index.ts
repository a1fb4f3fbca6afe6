export type {
  AgentShown,
  AgentState,
  Assigned,
  Code,
  Dialer,
  Empty,
  FinishAnswer,
  Finished,
  Held,
  HeartbeatAnswer,
  LiveEvent,
  Noted,
  Paused,
  ProblemDetails,
  Refused,
  RequestAnswer,
  StateAnswer,
  Stated,
  TooLate,
  Unavailable,
} from "./answers.js";
export { Client } from "./client.js";
export type {
  CallOptions,
  ClientOptions,
  CompleteOptions,
  DeferOptions,
  EventOptions,
  HeartbeatOptions,
  Owned,
  RequestOptions,
  StateOptions,
  Verb,
  VerbArguments,
} from "./client.js";
export { LeaseKeeper } from "./lease.js";
export type { LeaseEvents } from "./lease.js";
export { ProblemError } from "./problem.js";
