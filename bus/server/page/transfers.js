// Uploads and downloads that are under way, with how far and how fast.

import { h } from "./dom.js";
import { bytes, count, duration, percent, plural, rate } from "./format.js";

export function transfers(status) {
  const { count: all, shown } = status.transfers;
  return h(
    "section",
    { "aria-labelledby": "transfers-title" },
    h("h2", { id: "transfers-title" }, "Transfers in flight", all > 0 && h("span", { class: "tally" }, count(all))),
    shown.length === 0
      ? h("p", { class: "empty" }, "Nothing is on its way.")
      : h("ul", { class: "card transfers" }, shown.map(row)),
    all > shown.length && h("p", { class: "more" }, `and ${plural(all - shown.length, "more", "more")}`),
  );
}

function row(transfer) {
  const { direction, bytes: moved, total, rate: speed, idle } = transfer;
  const up = direction === "upload";
  const left = !idle && speed > 0 && total !== null ? duration((total - (moved ?? 0)) / speed) : null;
  const share = total ? Math.min(1, (moved ?? 0) / total) : null;
  const name = transfer.site ? `${transfer.site}, round ${count(transfer.round)}` : "";
  return h(
    "li",
    { key: transfer.id, class: `transfer ${direction}${idle ? " idle" : ""}` },
    h("span", { class: "way", "aria-hidden": "true" }, up ? "↑" : "↓"),
    h(
      "span",
      { class: "what" },
      h("span", { class: "hidden" }, up ? "upload to " : "download from "),
      h("b", null, transfer.topic),
      name && h("span", { class: "by" }, name),
    ),
    h(
      "span",
      {
        class: share === null ? "track unknown" : "track",
        role: "progressbar",
        "aria-label": `${direction} ${transfer.topic} ${name}`.trim(),
        "aria-valuemin": "0",
        "aria-valuemax": "100",
        "aria-valuenow": share === null ? null : (100 * share).toFixed(0),
      },
      h("span", { class: "done", vars: { "--share": `${(100 * (share ?? 0)).toFixed(2)}%` } }),
    ),
    h("span", { class: "figures" }, share === null ? bytes(moved) : `${percent(moved ?? 0, total)} of ${bytes(total)}`),
    h("span", { class: "figures" }, idle ? "resting" : rate(speed)),
    h("span", { class: "figures left" }, left === null ? "" : `${left} left`),
  );
}
