// What is known of messages without opening them.

import { h } from "./dom.js";
import { bytes, count, moment, shortMoment } from "./format.js";

export function messageList(messages) {
  if (messages.length === 0) return h("p", { class: "empty" }, "There is none.");
  return h("div", { class: "messages" }, messages.map(message));
}

export function message(info) {
  return h(
    "details",
    { key: info.id, class: "message", open: false },
    h(
      "summary",
      null,
      h("span", { class: "code" }, info.key ?? info.id.slice(0, 12)),
      h("span", { class: "figures" }, bytes(info.bytes)),
      h("span", { class: "figures" }, shortMoment(info.sealed ?? info.created)),
    ),
    facts(info),
  );
}

export function facts(info) {
  const codec = info.pipeline?.quantizer?.name ?? "none";
  const rows = [
    ["Id", info.id],
    ["Topic", info.topic],
    info.key !== null && ["Key", info.key],
    ["Seq", info.seq === null ? "open" : count(info.seq)],
    ["Body", `${bytes(info.bytes)} in ${count(info.frames)} frames`],
    info.original_bytes !== null && ["Values", `${bytes(info.original_bytes)}, ${codec}`],
    ["Container", info.container || "–"],
    ["Sealed", moment(info.sealed)],
    info.dead && ["Died", `${moment(info.dead.at)}, with consumer ${info.dead.consumer}, attempt ${info.dead.attempts}`],
    info.dead && ["Reason", info.dead.reason || "–"],
    info.dead && ["Came from", info.dead.topic],
    ...Object.entries(info.headers).map(([name, value]) => [`Header ${name}`, String(value)]),
  ].filter(Boolean);
  return h(
    "dl",
    { class: "details" },
    rows.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))),
  );
}
