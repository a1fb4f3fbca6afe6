import type { FinishAnswer, Held, Refused } from "./answers.js";
import type { Client } from "./client.js";

export interface LeaseEvents {
  /** The lease runs anew: the assignment with its new end. */
  onRenewed?: (held: Held) => void;
  /** The agent no longer holds the user, who may be somebody else's now. Said once, at the end. */
  onLost?: (why: Refused | Error) => void;
}

/** A renewal may fail twice before the lease lapses. */
const RENEWALS_A_LEASE = 3;
const SOONEST_MS = 500;

/**
 * Renews one assignment until it is stopped or lost. Made by `Client.keepLease`. The first renewal
 * accepts an offer.
 *
 * A renewal that gets no answer is made again, sooner the nearer the end of the lease is. A keeper
 * does not keep a Node process alive.
 */
export class LeaseKeeper {
  readonly #client: Client;
  readonly #events: LeaseEvents;
  #leaseMs: number;
  readonly #stopped = new AbortController();
  #held: Held;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(client: Client, held: Held, events: LeaseEvents) {
    this.#client = client;
    this.#events = events;
    this.#held = held;
    this.#leaseMs = Date.parse(held.lease_expires_at) - Date.parse(held.claimed_at);
    this.#wait();
  }

  /** The assignment as it was last renewed. */
  get held(): Held {
    return this.#held;
  }

  /** Renew no more. The hold itself goes on: complete, skip or release it, or it lapses. */
  stop(): void {
    this.#stopped.abort();
    clearTimeout(this.#timer);
  }

  #wait(): void {
    const left = Date.parse(this.#held.lease_expires_at) - this.#client.now();
    const pause = Math.min(left, this.#leaseMs) / RENEWALS_A_LEASE;
    this.#timer = setTimeout(() => void this.#renew(), Math.max(pause, SOONEST_MS));
    (this.#timer as { unref?: () => void }).unref?.();
  }

  async #renew(): Promise<void> {
    const { signal } = this.#stopped;
    let answer: FinishAnswer;
    try {
      answer = await this.#client.renew(this.#held, { signal });
    } catch (error) {
      return this.#lose(error as Error);
    }
    if (answer.outcome === "refused") {
      return this.#lose(answer);
    }
    if (!signal.aborted) {
      if (answer.outcome !== "unavailable") {
        this.#renewed(answer.assignment);
        this.#events.onRenewed?.(answer.assignment);
      }
      this.#wait();
    }
  }

  /** The first renewal accepts an offer: work lasts longer. */
  #renewed(held: Held): void {
    if (this.#held.accepted_at == null && held.accepted_at != null) {
      this.#leaseMs = Date.parse(held.lease_expires_at) - Date.parse(held.accepted_at);
    }
    this.#held = held;
  }

  #lose(why: Refused | Error): void {
    if (!this.#stopped.signal.aborted) {
      this.stop();
      this.#events.onLost?.(why);
    }
  }
}
