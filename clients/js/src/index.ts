export type {
  Assigned,
  Code,
  Empty,
  FinishAnswer,
  Finished,
  Held,
  Paused,
  ProblemDetails,
  Refused,
  RequestAnswer,
  TooLate,
  Unavailable,
} from "./answers.js";
export { Client } from "./client.js";
export type {
  CallOptions,
  ClientOptions,
  CompleteOptions,
  Owned,
  RequestOptions,
} from "./client.js";
export { LeaseKeeper } from "./lease.js";
export type { LeaseEvents } from "./lease.js";
export { ProblemError } from "./problem.js";
