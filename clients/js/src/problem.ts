import type { ProblemDetails } from "./answers.js";

/**
 * The gateway answered with an error that is no answer to the question: a path that it does not
 * have, a body that is too large, a failure of its own.
 *
 * What may happen to a caller who does nothing wrong is an answer instead: `refused` and
 * `unavailable`.
 */
export class ProblemError extends Error {
  override readonly name = "ProblemError";
  /** The HTTP status. */
  readonly status: number;
  /** All that the gateway said. */
  readonly problem: ProblemDetails;

  constructor(problem: ProblemDetails) {
    super(`${problem.status} ${problem.title}: ${problem.detail}`);
    this.status = problem.status;
    this.problem = problem;
  }
}
