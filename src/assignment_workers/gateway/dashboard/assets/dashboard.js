// Keeps a page up to date: regions as the gateway sends them, times in the viewer's zone, counted on.
"use strict";

const live = document.getElementById("live");
const trouble = document.getElementById("trouble");

// --- times -------------------------------------------------------------------------------------

function length(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

// The gateway's clock, not this device's: by the Date of what it sent.
let ahead = 0;

// Swedish writes times as ISO 8601 does: year first, 24 hours, for a viewer of any language.
const day = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short" });
const clock = new Intl.DateTimeFormat("sv-SE", { timeStyle: "medium" });
const minute = new Intl.DateTimeFormat("sv-SE", { timeStyle: "short" });

// Times in this browser's zone, which the title bar names; without a script they are in UTC.
function localise() {
  const today = day.format(new Date(Date.now() + ahead));
  for (const time of document.querySelectorAll("time[data-at]")) {
    const at = new Date(time.dateTime);
    time.title ||= time.dateTime;
    time.textContent = day.format(at) === today ? clock.format(at) : `${day.format(at)} ${minute.format(at)}`;
  }
  for (const mark of document.querySelectorAll("text[data-at]")) {
    const at = new Date(mark.dataset.at);
    const dated = mark.textContent.trim().length > 6;
    mark.textContent = dated ? `${day.format(at).slice(5)} ${minute.format(at)}` : minute.format(at);
    delete mark.dataset.at;
  }
  for (const title of document.querySelectorAll("title[data-at]")) {
    const at = new Date(title.dataset.at);
    title.textContent = title.textContent.replace(/^.*?Z/, `${day.format(at)} ${minute.format(at)}`);
    delete title.dataset.at;
  }
}

function zone() {
  const said = document.getElementById("zone");
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const short = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(new Date())
    .find((part) => part.type === "timeZoneName").value;
  if (said) said.textContent = name === short ? `Times in ${name}` : `Times in ${name} (${short})`;
}

function count() {
  const now = Date.now() + ahead;
  for (const time of document.querySelectorAll("time[data-since], time[data-until]")) {
    const at = Date.parse(time.dateTime);
    time.title ||= time.dateTime;
    if ("since" in time.dataset) time.textContent = `${length((now - at) / 1000)} ago`;
    else time.textContent = at >= now ? length((at - now) / 1000) : `${length((now - at) / 1000)} overdue`;
  }
}

// --- regions -----------------------------------------------------------------------------------

function replace(region, html) {
  const open = [...region.querySelectorAll("details")].map((each) => each.open);
  const within = region.contains(document.activeElement) ? document.activeElement : null;
  const scrolled = [...region.querySelectorAll(".wide")].map((each) => each.scrollLeft);
  const place = within && [...region.querySelectorAll("a, summary, [tabindex]")].indexOf(within);
  const href = within?.getAttribute("href");
  region.innerHTML = html; // the gateway's own templates, in which everything is escaped
  region.querySelectorAll("details").forEach((each, at) => { each.open = open[at] ?? false; });
  region.querySelectorAll(".wide").forEach((each, at) => { each.scrollLeft = scrolled[at] ?? 0; });
  if (within) {
    const all = [...region.querySelectorAll("a, summary, [tabindex]")];
    (all.find((each) => href && each.getAttribute("href") === href) ?? all[place])?.focus({ preventScroll: true });
  }
}

function show(said) {
  for (const [name, html] of Object.entries(said)) {
    if (name === "trouble") {
      trouble.hidden = !html;
      trouble.textContent = html && `Not known now: ${html}. What stands here is older.`;
    } else {
      const region = document.querySelector(`[data-region="${name}"]`);
      if (region) replace(region, html);
    }
  }
  localise();
  count();
}

function say(how, text) {
  if (live.dataset.live === how) return;
  live.dataset.live = how;
  live.textContent = text;
}

let wait = null;

function follow() {
  const source = new EventSource(location.href.split("#")[0]);
  source.addEventListener("regions", (event) => {
    say("yes", "Live");
    show(JSON.parse(event.data));
  });
  source.onerror = () => {
    say("no", `Not live since ${clock.format(new Date(Date.now() + ahead))}: the gateway does not answer`);
    if (source.readyState === EventSource.CLOSED) {
      clearTimeout(wait);
      wait = setTimeout(follow, 2000);
    }
  };
}

zone();
localise();
count();
setInterval(count, 1000);
if (live) {
  fetch("/healthz").then((answer) => {
    const told = Date.parse(answer.headers.get("date"));
    if (told) ahead = told + 500 - Date.now();
    if (Math.abs(ahead) < 2000) ahead = 0;
    count();
  }, () => {});
  follow();
}
