// Keeps a page up to date: regions as the gateway sends them, times counted on, charts drawn.
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

function count() {
  const now = Date.now() + ahead;
  for (const time of document.querySelectorAll("time[data-since], time[data-until]")) {
    const at = Date.parse(time.dateTime);
    time.title ||= time.dateTime;
    if ("since" in time.dataset) time.textContent = `${length((now - at) / 1000)} ago`;
    else time.textContent = at >= now ? length((at - now) / 1000) : `${length((now - at) / 1000)} overdue`;
  }
}

// --- charts ------------------------------------------------------------------------------------

const charts = [];

function columns(minutes) {
  const by = new Map(minutes.map((each) => [Number(each.minute), each]));
  const last = Math.floor((Date.now() + ahead) / 60000) * 60;
  const x = Array.from({ length: 60 }, (_, place) => last - (59 - place) * 60);
  const of = (name, scale, absent) => x.map((at) => {
    const value = by.get(at)?.[name];
    return value === undefined || value === null ? absent : value * scale;
  });
  return {
    claims: [x, of("assigned", 1, 0)],
    times: [x, of("p50", 1000, null), of("p95", 1000, null), of("p99", 1000, null)],
  };
}

function draw(minutes) {
  const data = columns(minutes);
  if (charts.length) {
    charts[0].setData(data.claims);
    charts[1].setData(data.times);
    return;
  }
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const line = (label, number, dash) =>
    ({ label, stroke: colour(`--series-${number}`), width: 2, dash, spanGaps: false, points: { show: true, size: 4 } });
  const clock = (at) => new Date(at * 1000).toISOString().slice(11, 16);
  const times = { ...axis, values: (_, at) => at.map(clock) };
  const make = (id, series, rows) => {
    const at = document.getElementById(id);
    const options = {
      width: Math.max(200, at.clientWidth), height: 200, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      series: [{ label: "Minute (UTC)", value: (_, at) => (at ? clock(at) : "") }, ...series],
      axes: [times, { ...axis, size: 55 }], scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } },
    };
    charts.push(new uPlot(options, rows, at));
  };
  make("chart-claims", [line("requests", 1)], data.claims);
  make("chart-times", [line("p50", 1), line("p95", 2, [8, 4]), line("p99", 3, [2, 3])], data.times);
}

let minutes = null;
const holder = document.querySelector("[data-minutes]");
if (holder) minutes = JSON.parse(holder.dataset.minutes);

function redraw() {
  while (charts.length) charts.pop().destroy();
  if (minutes) draw(minutes);
}

addEventListener("resize", () => {
  for (const chart of charts) chart.setSize({ width: Math.max(200, chart.root.parentElement.clientWidth), height: 200 });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

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
    } else if (name === "charts") {
      minutes = JSON.parse(html);
      draw(minutes);
    } else {
      const region = document.querySelector(`[data-region="${name}"]`);
      if (region) replace(region, html);
    }
  }
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
    say("no", `Not live since ${new Date().toLocaleTimeString()}: the gateway does not answer`);
    if (source.readyState === EventSource.CLOSED) {
      clearTimeout(wait);
      wait = setTimeout(follow, 2000);
    }
  };
}

if (live) {
  fetch("/healthz").then((answer) => {
    const told = Date.parse(answer.headers.get("date"));
    if (told) ahead = told + 500 - Date.now();
    if (Math.abs(ahead) < 2000) ahead = 0;
    count();
  }, () => {});
  redraw();
  count();
  setInterval(count, 1000);
  follow();
}
