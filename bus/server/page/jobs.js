// Jobs: who is in, who is late, who declined or left; how the rounds went.

import { chart } from "./chart.js";
import { h } from "./dom.js";
import { between, bytes, count, duration, figure, percent, plural } from "./format.js";

const STATES = {
  waiting: "waiting for a first model",
  open: "open",
  closing: "making the next model",
  paused: "paused",
  cancelled: "cancelled",
  done: "done",
};
const SITES = {
  in: "in",
  sending: "sending",
  late: "late",
  waited: "awaited",
  declined: "declined",
  left: "left",
};
const FEW = 12;
const opened = new Set();

export function jobs(status, again) {
  const { count: all, shown } = status.jobs;
  const more = all - shown.length;
  return h(
    "section",
    { "aria-labelledby": "jobs-title" },
    h("h2", { id: "jobs-title" }, "Jobs"),
    shown.length === 0 &&
      h("p", { class: "empty" }, "No federated job here yet. One appears with its first message on a topic fl.JOB.model."),
    h("div", { class: "jobs" }, shown.map((job) => card(job, status.at, again))),
    more > 0 && h("p", { class: "more" }, `and ${plural(more, "older job")}; search for one by its name.`),
  );
}

function card(job, at, again) {
  const id = `job-${job.job}`;
  const state = job.overdue ? "overdue" : job.state;
  return h(
    "article",
    { key: id, class: job.sites.length > 0 ? "card job wide" : "card job", "aria-labelledby": id },
    h(
      "header",
      null,
      h("h3", { id }, job.job),
      h("span", { class: `badge ${state}` }, job.overdue ? "past its deadline" : STATES[job.state]),
      job.round !== null && h("span", { class: "round" }, `round ${count(job.round)} of ${count(job.rounds)}`),
    ),
    job.state !== "done" && job.round !== null && progress(job, at),
    h(
      "div",
      { class: "halves" },
      job.sites.length > 0 && sites(job, again),
      chart(job.job, job.history),
    ),
    facts(job),
  );
}

function progress(job, at) {
  const { counts, full, enough } = job;
  const share = (number) => `${(100 * Math.min(1, number / Math.max(1, full))).toFixed(2)}%`;
  const what = job.mode === "buffered" ? "updates" : "sites";
  const words = [
    `${count(counts.in)} of ${count(full)} ${what} in`,
    counts.sending > 0 && `${count(counts.sending)} sending`,
    enough !== null && enough < full && `quorum ${count(enough)}`,
    timing(job, at),
    job.publishing && `model ${percent(job.publishing.bytes, job.publishing.total)} published`,
  ].filter(Boolean);
  return h(
    "div",
    { class: "progress" },
    h(
      "div",
      {
        class: "track",
        role: "progressbar",
        "aria-label": `${what} that are in`,
        "aria-valuemin": "0",
        "aria-valuemax": String(full),
        "aria-valuenow": String(Math.min(counts.in, full)),
      },
      h("span", { class: "done", vars: { "--share": share(counts.in) } }),
      h("span", { class: "coming", vars: { "--share": share(counts.sending) } }),
      enough !== null && enough < full && h("i", { class: "mark", vars: { "--at": share(enough) } }),
    ),
    h("p", null, words.join(" · ")),
  );
}

function timing(job, at) {
  if (job.opened === null) return false;
  if (job.due === null) return `open for ${duration(between(job.opened, at))}`;
  const left = between(at, job.due);
  return left >= 0 ? `${duration(left)} left` : `overdue by ${duration(-left)}`;
}

function sites(job, again) {
  const all = opened.has(job.job);
  const shown = all ? job.sites : job.sites.slice(0, FEW);
  const total = Object.values(job.counts).reduce((sum, number) => sum + number, 0);
  return h(
    "div",
    { class: "who" },
    h("h4", null, `Sites (${count(total)})`),
    h("ul", { class: "sites" }, shown.map(site)),
    total > FEW &&
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-expanded": String(all),
          onclick: () => {
            if (!opened.delete(job.job)) opened.add(job.job);
            again();
          },
        },
        all ? "Show fewer" : `Show ${count(job.sites.length)}`,
      ),
  );
}

function site(one) {
  const metric = Object.entries(one.metrics).find(([name]) => /loss/i.test(name)) ?? Object.entries(one.metrics)[0];
  const detail = {
    in: metric ? `${metric[0]} ${figure(metric[1])}` : plural(one.num_examples ?? 0, "example"),
    sending: one.total ? percent(one.bytes ?? 0, one.total) : bytes(one.bytes),
    declined: one.reason,
    left: one.reason,
  }[one.state];
  return h(
    "li",
    { key: one.site, class: `site ${one.state}`, title: one.num_examples ? plural(one.num_examples, "example") : null },
    h("span", { class: "name" }, one.site),
    h("span", { class: "state" }, SITES[one.state]),
    h("span", { class: "detail" }, detail ?? ""),
  );
}

function facts(job) {
  const ratio = job.model_original_bytes > job.model_bytes ? ` (${percent(job.model_bytes, job.model_original_bytes)} of the original)` : "";
  return h(
    "p",
    { class: "facts" },
    [
      job.model_bytes !== null && `model ${bytes(job.model_bytes)}${ratio}`,
      job.round !== null && `down ${job.down}`,
      job.round !== null && `up ${job.up}`,
      job.mode === "buffered" && "buffered",
    ]
      .filter(Boolean)
      .join(" · "),
  );
}
