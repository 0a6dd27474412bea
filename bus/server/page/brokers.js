// The brokers that share a store: which one leads, and how the others are.

import { h } from "./dom.js";
import { count, plural, rate, shortMoment } from "./format.js";

export function brokers({ store, brokers: list }) {
  if (!store.shared) return null;
  return h(
    "section",
    { "aria-labelledby": "brokers-title" },
    h("h2", { id: "brokers-title" }, "Brokers", h("span", { class: "tally" }, `${count(list.count)} on ${store.kind}`)),
    list.count === 0
      ? h("p", { class: "empty" }, "None has told anything yet.")
      : h(
          "div",
          { class: "card scroll", tabindex: "0", role: "region", "aria-labelledby": "brokers-title" },
          h(
            "table",
            { class: "stacked brokers" },
            h(
              "thead",
              null,
              h(
                "tr",
                null,
                ["Broker", "Is"].map((name) => h("th", { scope: "col", key: name }, name)),
                ["Behind", "Uploads", "Downloads", "Receiving", "Sending"].map((name) =>
                  h("th", { scope: "col", class: "number", key: name }, name),
                ),
              ),
            ),
            h("tbody", null, list.shown.map(row)),
          ),
        ),
  );
}

function row(broker) {
  const { away, behind } = broker;
  const number = (label, value) => h("td", { key: label, class: "number", "data-label": label }, away ? "" : value);
  return h(
    "tr",
    { key: broker.url },
    h("td", { class: "code", "data-label": "Broker" }, h("span", null, broker.url)),
    h("td", { "data-label": "Is" }, h("span", { class: `badge ${state(broker)}` }, words(broker))),
    number("Behind", behind === null ? "unknown" : behind === 0 ? "nothing" : plural(behind, "record")),
    number("Uploads", count(broker.uploads)),
    number("Downloads", count(broker.downloads)),
    number("Receiving", rate(broker.received)),
    number("Sending", rate(broker.sent)),
  );
}

function state({ away, leads }) {
  if (away) return "cancelled";
  return leads ? "done" : "ready";
}

function words({ away, leads }) {
  if (away) return `away since ${shortMoment(away)}`;
  return leads ? "leads" : "stands by";
}
