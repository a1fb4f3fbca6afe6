import { Client, ProblemError } from "@assignment-workers/client";

/** The keys of the outcomes, in their order. */
const KEYS = "1234567890-";

/** @typedef {import("@assignment-workers/client").Held} Held */
/** @typedef {import("@assignment-workers/client").RequestAnswer} RequestAnswer */
/** @typedef {import("@assignment-workers/client").FinishAnswer} FinishAnswer */
/** @typedef {import("@assignment-workers/client").LeaseKeeper} LeaseKeeper */

/**
 * The element of that id.
 * @type {(id: string) => any}
 */
const $ = (id) => document.getElementById(id);

/** Set by signing in.
 * @type {Client} */
let client;
let agent = 0;
/** What the agent holds.
 * @type {Held | null} */
let held = null;
/** @type {LeaseKeeper | null} */
let keeper = null;
/** The call to the gateway that is under way.
 * @type {AbortController | null} */
let asking = null;
/** Where the focus was when the call began.
 * @type {Element | null} */
let focused = null;
/** Ends the countdown that runs. */
let stopCounting = () => {};

$("origin").textContent = location.origin;
$("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
// `serve.py` hands the token over behind the #, which no server is sent; it does not stay in the address.
const handed = new URLSearchParams(location.hash.slice(1)).get("token");
if (handed) {
  $("sign-in").elements.namedItem("token").value = handed;
  history.replaceState(null, "", location.pathname);
}
$("sign-in").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const said = new FormData($("sign-in"));
  const token = String(said.get("token"));
  client = new Client(String(said.get("gateway")), token ? { token } : {});
  agent = Number(said.get("agent"));
  $("sign-in").hidden = true;
  $("stated").hidden = false;
  void stand();
  void offer();
  $("desk").hidden = $("who").hidden = $("sign-out").hidden = false;
  $("who").textContent = `Agent ${agent}`;
  tell("Signing in", "");
  const found = await ask((signal) => client.activeAssignment(agent, { signal }));
  if (found === undefined) return;
  if (found === null) {
    tell("Ready", "Ask for the next user to call.");
    $("next").focus();
  } else if ("outcome" in found) {
    refuse(found);
  } else {
    hold(found, "You were on this call already.");
  }
});

$("sign-out").addEventListener("click", async () => {
  asking?.abort();
  if (held) await finish("release");
  if (held) return; // it could not be released, and the page says why
  location.reload();
});

$("next").addEventListener("click", async () => {
  const queue = $("queue").value;
  tell("Asking", "");
  const answer = await ask((signal) => client.requestNext(agent, queue ? { queue, signal } : { signal }));
  if (answer) show(answer);
});

$("cancel").addEventListener("click", () => asking?.abort());
$("skip").addEventListener("click", () => finish("skip"));
$("defer").addEventListener("click", () => finish("defer"));
$("close").addEventListener("click", () => {
  if ($("notes").value) return sure("Close", "This dialer queue does not offer the user again.", () => finish("close"));
  tell("Not closed", "write into the notes why the user is to be out of this dialer queue.", "wrong");
});
$("release").addEventListener("click", () => finish("release"));
$("keep").addEventListener("change", () => held && keep(held));

$("renew").addEventListener("click", () => lengthen("renew", "The lease runs anew."));
$("accept").addEventListener("click", () => lengthen("accept", "It is yours until you finish."));

$("state").addEventListener("change", async () => {
  const becomes = $("state").value;
  if (!becomes) return;
  const answer = await ask((signal) => client.state(agent, becomes, { signal }));
  if (!answer) return;
  if (answer.outcome === "refused" || answer.outcome === "unavailable") return refuse(answer);
  $("state").value = answer.state;
  if (answer.released === held?.id) letGo();
  tell(`You are ${words(answer.state)}`, held ? "what you accepted stays yours." : "Ask for the next user to call.");
});

/**
 * @param {"renew" | "accept"} move
 * @param {string} told
 */
async function lengthen(move, told) {
  const mine = held;
  if (!mine) return;
  const answer = await ask((signal) => client[move](mine, { signal }));
  if (!answer) return;
  if (answer.outcome === "refused" || answer.outcome === "unavailable") return failed(answer);
  hold(answer.assignment, told);
}

/** What the gateway knows of the agent's state. */
async function stand() {
  const found = await client.agent(agent).catch(() => null);
  if (found && !("outcome" in found)) $("state").value = found.state ?? "";
}

/** A button for each outcome of the dialer, in its order. */
async function offer() {
  const found = await client.dialer().catch(() => null);
  if (!found || "outcome" in found) return tell("No outcomes", "The gateway does not tell them: sign in again.", "wrong");
  const buttons = found.outcomes.map(({ name, title, meaning, terminal }, place) => {
    const key = KEYS.charAt(place);
    const button = document.createElement("button");
    button.type = "button";
    button.id = name;
    button.title = meaning;
    if (key) button.setAttribute("aria-keyshortcuts", key);
    button.append(`${title} `, ...(key ? [Object.assign(document.createElement("kbd"), { textContent: key })] : []));
    const done = () => finish("complete", name);
    button.addEventListener("click", () => (terminal ? sure(title, "Nobody is offered the user again.", done) : done()));
    return button;
  });
  $("outcomes").replaceChildren(...buttons);
}

/**
 * Ask before what cannot be undone; no single key does it.
 * @param {string} label
 * @param {string} means
 * @param {() => void} then
 */
function sure(label, means, then) {
  if (!held) return;
  const user = held.user_id;
  $("sure-title").textContent = `${label}: user ${user}?`;
  $("sure-means").textContent = means;
  $("sure-yes").textContent = label;
  const dialog = $("sure");
  dialog.returnValue = "";
  dialog.onclose = () => dialog.returnValue === "yes" && held?.user_id === user && then();
  dialog.showModal(); // the focus is on Cancel
}

document.addEventListener("keydown", (event) => {
  if ($("sure").open) return;
  const writes = event.target instanceof Element && event.target.closest("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && !held) asking?.abort();
  if (writes || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const button = document.querySelector(`#desk [aria-keyshortcuts="${CSS.escape(event.key.toLowerCase())}"]`);
  if (button instanceof HTMLButtonElement && button.checkVisibility()) {
    event.preventDefault();
    button.click();
  }
});

/**
 * What came of a request.
 * @param {RequestAnswer} answer
 */
function show(answer) {
  switch (answer.outcome) {
    case "assigned":
      if (answer.assignment.state !== "active") {
        tell("Ask again", "The first answer was lost, and the user is no longer yours.");
        break;
      }
      hold(answer.assignment, answer.replayed ? "You had this user already." : "");
      break;
    case "empty":
      tell("Nobody to call", Object.entries(answer.why).map(([queue, why]) => `${queue}: ${words(why)}`).join(", ") + ".");
      wait(answer.retry_after);
      break;
    case "paused":
      tell("Paused", `An operator paused ${answer.queue ?? "every dialer queue"}.`);
      break;
    case "too_late":
      tell("Too late", "The workers came to it after its time; nobody was assigned. Ask again.");
      break;
    case "refused":
    case "unavailable":
      refuse(answer);
  }
}

/**
 * @param {"complete" | "skip" | "defer" | "close" | "release"} move
 * @param {string} [outcome]
 */
async function finish(move, outcome = "") {
  const mine = held;
  if (!mine) return;
  const answer = await ask((signal) => {
    const callbackAt = $("callback").value;
    if (move === "defer") {
      const when = callbackAt ? { until: new Date(callbackAt) } : { seconds: 3_600 };
      return client.defer(mine, { signal, ...when, ...($("notes").value && { why: $("notes").value }) });
    }
    if (move === "close") return client.close(mine, $("notes").value, { signal });
    if (move !== "complete") return client[move](mine, { signal });
    return client.complete(mine, outcome, {
      signal,
      ...($("notes").value && { notes: $("notes").value }),
      ...(callbackAt && { callbackAt: new Date(callbackAt) }),
    });
  });
  if (!answer) return;
  if (answer.outcome === "refused" || answer.outcome === "unavailable") return failed(answer);
  letGo();
  const what = words(outcome || answer.outcome);
  tell(`User ${mine.user_id}: ${what}`, "Ask for the next user to call.");
  note(`user ${mine.user_id}`, what);
  void stand();
}

/**
 * A move on a hold was not made.
 * @param {Extract<FinishAnswer, { reason: string }>} answer
 */
function failed(answer) {
  if (answer.outcome === "refused" && ["not_active", "not_owner", "stale_version"].includes(answer.code)) {
    lost(answer.reason);
  } else {
    refuse(answer);
  }
}

/**
 * @param {{ outcome: string, reason: string, retry_after?: number }} answer
 */
function refuse(answer) {
  if (answer.outcome === "refused") {
    tell("Refused", sentence(answer.reason), "wrong");
  } else {
    tell("No answer for now", sentence(answer.reason), "wrong");
    wait(answer.retry_after ?? 1);
  }
}

/**
 * The agent no longer holds the user.
 * @param {string} why
 */
function lost(why) {
  const user = held?.user_id;
  letGo();
  tell("No longer yours", `Do not call user ${user}, who may be somebody else's now: ${why}.`, "wrong");
  note(`user ${user}`, "lost");
}

/**
 * @param {Held} assignment
 * @param {string} detail
 */
function hold(assignment, detail) {
  const anew = held?.id !== assignment.id;
  held = assignment;
  const { queue, reason, rank } = assignment;
  tell("", `${detail} ${queue}, ${reason}, rank ${rank}.`.trim());
  $("call").hidden = false;
  $("ask").hidden = true;
  if (anew) {
    $("notes").value = $("callback").value = "";
    $("title").focus(); // not a button: Enter said twice must not end the call
  }
  keep(assignment);
}

/**
 * Count the lease down, and renew it if the agent wants that.
 * @param {Held} assignment
 */
function keep(assignment) {
  keeper?.stop();
  keeper = null;
  count(assignment);
  if ($("keep").checked) {
    keeper = client.keepLease(assignment, {
      onRenewed: (renewed) => count((held = renewed)),
      onLost: (why) => lost("reason" in why ? why.reason : why.message),
    });
  }
}

/** @param {Held} assignment */
function count(assignment) {
  const ends = Date.parse(assignment.lease_expires_at);
  $("what").textContent = assignment.accepted_at ? "left of the lease" : "left to accept the offer";
  $("accept").hidden = Boolean(assignment.accepted_at);
  $("renew").hidden = !assignment.accepted_at; // of an offer, accepting is what keeps it
  const whole = ends - client.now();
  const soon = Math.min(30_000, (ends - Date.parse(assignment.claimed_at)) / 4);
  countdown(ends, (left) => {
    $("left").textContent = clock(left);
    $("gone").value = Math.min(1, left / whole);
    $("lease").classList.toggle("soon", left < soon);
    if (left === 0) lost("nobody renewed it");
  });
}

function letGo() {
  held = null;
  keeper?.stop();
  keeper = null;
  stopCounting();
  $("call").hidden = true;
  $("ask").hidden = false;
  $("next").focus();
}

/**
 * Say when it may be worth to ask again.
 * @param {number} seconds
 */
function wait(seconds) {
  if (held) return;
  const told = $("detail").textContent;
  countdown(client.now() + seconds * 1000, (left) => {
    $("detail").textContent = left ? `${told} Ask again in ${clock(left)}.` : `${told} Ask again.`;
  });
}

/**
 * Tell how many ms are left, until none is.
 * @param {number} ends
 * @param {(left: number) => void} tick
 */
function countdown(ends, tick) {
  stopCounting();
  const again = () => {
    const left = Math.max(0, ends - client.now());
    if (left === 0) stopCounting();
    tick(left);
  };
  const timer = setInterval(again, 250);
  stopCounting = () => clearInterval(timer);
  again();
}

/**
 * What a call to the gateway gave; undefined where it was cancelled or failed, which is told.
 * @template T
 * @param {(signal: AbortSignal) => Promise<T>} call
 * @returns {Promise<T | undefined>}
 */
async function ask(call) {
  const mine = (asking = new AbortController());
  if (!held) stopCounting();
  busy(true);
  try {
    return await call(mine.signal);
  } catch (error) {
    if (mine.signal.aborted) {
      tell("Cancelled", "Ask for the next user to call.");
    } else if (error instanceof ProblemError) {
      tell("The gateway failed", error.message, "wrong");
    } else {
      tell("This page failed", String(error), "wrong");
      throw error;
    }
  } finally {
    asking = null;
    busy(false);
  }
}

/** @param {boolean} is */
function busy(is) {
  if (is) focused = document.activeElement;
  $("desk").setAttribute("aria-busy", String(is));
  $("cancel").hidden = !is || held !== null;
  $("desk").querySelectorAll("button:not(#cancel)").forEach((/** @type {HTMLButtonElement} */ each) => {
    each.disabled = is;
  });
  if (!is && focused instanceof HTMLElement) focused.focus(); // a disabled button had lost it
}

/**
 * While the agent holds somebody, whom to call stays in sight.
 * @param {string} title
 * @param {string} detail
 * @param {string} [kind]
 */
function tell(title, detail, kind = "") {
  $("title").textContent = held ? `Call user ${held.user_id}` : title;
  $("detail").textContent = held && title ? `${title}: ${detail}` : detail;
  $("told").className = kind;
}

/**
 * @param {string} who
 * @param {string} what
 */
function note(who, what) {
  const line = document.createElement("li");
  const time = Object.assign(document.createElement("time"), { textContent: new Date().toLocaleTimeString("sv-SE", { timeZoneName: "short" }) });
  line.append(time, ` ${who}: `, what);
  $("done").prepend(line);
  $("log").hidden = false;
}

/** @param {string} word */
function words(word) {
  return word.replaceAll("_", " ");
}

/** @param {string} text */
function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

/** @param {number} ms */
function clock(ms) {
  const seconds = Math.ceil(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
