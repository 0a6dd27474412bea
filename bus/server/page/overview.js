// The first view: figures, jobs, transfers, what codecs save, and how full the disk is.

import { brokers } from "./brokers.js";
import { h } from "./dom.js";
import { bytes, count, isLimited, percent, plural, rate } from "./format.js";
import { jobs } from "./jobs.js";
import { transfers } from "./transfers.js";

export function overview(status, again) {
  return [
    h("h1", { class: "hidden" }, "Overview"),
    tiles(status),
    jobs(status, again),
    transfers(status),
    brokers(status),
    h("div", { class: "pair" }, codecs(status.codecs), storage(status)),
  ];
}

function tiles({ totals, rates, disk }) {
  const used = disk.size - disk.free;
  return h(
    "section",
    { class: "tiles", "aria-label": "Figures" },
    tile("Stored", bytes(totals.bytes), plural(totals.messages, "message")),
    tile("Receiving", rate(rates.received), `${bytes(totals.received_bytes)} since the start`),
    tile("Sending", rate(rates.sent), `${bytes(totals.sent_bytes)} since the start`),
    tile("Not settled", count(totals.ack_pending), plural(totals.redeliveries, "redelivery", "redeliveries")),
    isLimited(disk.size)
      ? tile("Disk", percent(used, disk.size), `${bytes(disk.free)} free`, [used, disk.size])
      : tile("Disk", "no limit", "is set at the store"),
  );
}

function tile(name, value, detail, share) {
  return h(
    "div",
    { class: "card tile" },
    h("p", { class: "name" }, name),
    h("p", { class: "value" }, value),
    share && gauge(`${name} in use`, ...share),
    h("p", { class: "detail" }, detail),
  );
}

function gauge(label, part, whole) {
  const share = whole ? Math.min(1, part / whole) : 0;
  return h(
    "div",
    {
      class: share > 0.9 ? "gauge full" : "gauge",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": (100 * share).toFixed(0),
    },
    h("span", { vars: { "--share": `${(100 * share).toFixed(2)}%` } }),
  );
}

function codecs(list) {
  const rows = list.flatMap(({ codec, received, sent }) => [
    received && { codec, way: "received", ...received },
    sent && { codec, way: "sent", ...sent },
  ]).filter(Boolean);
  return h(
    "section",
    { "aria-labelledby": "codecs-title" },
    h("h2", { id: "codecs-title" }, "Saved by codecs"),
    rows.length === 0
      ? h("p", { class: "empty" }, "Nothing has gone by since the broker started.")
      : h(
          "div",
          { class: "card scroll", tabindex: "0", role: "region", "aria-labelledby": "codecs-title" },
          h(
            "table",
            null,
            h(
              "thead",
              null,
              h(
                "tr",
                null,
                ["Codec", "Way"].map((name) => h("th", { scope: "col", key: name }, name)),
                ["Messages", "Values", "On the wire", "Saved"].map((name) =>
                  h("th", { scope: "col", class: "number", key: name }, name),
                ),
              ),
            ),
            h("tbody", null, rows.map(saving)),
          ),
        ),
  );
}

function saving({ codec, way, messages, original_bytes: values, wire_bytes: wire }) {
  const saved = values - wire;
  return h(
    "tr",
    { key: `${codec} ${way}` },
    h("th", { scope: "row", class: "code" }, codec),
    h("td", null, way),
    h("td", { class: "number" }, count(messages)),
    h("td", { class: "number" }, bytes(values)),
    h("td", { class: "number" }, bytes(wire)),
    h("td", { class: "number" }, saved > 0 ? `${bytes(saved)} (${percent(saved, values)})` : "nothing"),
  );
}

function storage({ disk, totals, quotas, you, at, broker }) {
  const limited = quotas.shown.filter((quota) => quota.max_bytes !== null || quota.max_messages !== null);
  return h(
    "section",
    { "aria-labelledby": "storage-title" },
    h("h2", { id: "storage-title" }, "Disk and quotas"),
    h(
      "div",
      { class: "card storage" },
      h(
        "dl",
        { class: "facts-list" },
        fact("Messages", bytes(totals.bytes)),
        fact("Free", isLimited(disk.size) ? `${bytes(disk.free)} of ${bytes(disk.size)}` : "no limit is set"),
        totals.damaged > 0 && fact("Damaged", plural(totals.damaged, "message")),
        !broker.writable && fact("Writing", "has failed: read only"),
        you?.max_bytes != null && fact("Your quota", `${bytes(you.used_bytes ?? 0)} of ${bytes(you.max_bytes)}`),
      ),
      limited.length === 0
        ? h("p", { class: "small" }, "No policy or token has a quota.")
        : h("ul", { class: "quotas" }, limited.map(quotaOf)),
    ),
  );
}

function fact(name, value) {
  return h("div", { key: name }, h("dt", null, name), h("dd", null, value));
}

function quotaOf(quota) {
  const label = quota.kind === "policy" ? `policy ${quota.name} (${quota.filter})` : `token ${quota.name}`;
  // Limits of a policy are those of each of its topics.
  const topics = quota.kind === "policy" ? Math.max(1, quota.topics) : 1;
  const most = quota.max_bytes !== null ? quota.max_bytes * topics : quota.max_messages * topics;
  const used = quota.max_bytes !== null ? quota.bytes : quota.messages;
  const words = quota.max_bytes !== null ? `${bytes(used)} of ${bytes(most)}` : `${count(used)} of ${count(most)} messages`;
  return h(
    "li",
    { key: `${quota.kind} ${quota.name}` },
    h("p", null, h("span", null, label), h("span", { class: "figures" }, words)),
    gauge(`${label} in use`, used, most),
  );
}

