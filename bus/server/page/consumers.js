// Consumers, how far behind they are, and what they have difficulties with.

import { call } from "./api.js";
import { show } from "./dialog.js";
import { h } from "./dom.js";
import { count, duration } from "./format.js";
import { facts } from "./messages.js";
import { listing, sortable } from "./tables.js";

export function consumers(status, view, again) {
  const table = {
    what: "consumers",
    title: "Consumers",
    search: "Search consumers",
    columns: [
      sortable("Consumer", "name", view, again, false),
      h("th", { scope: "col" }, "Filter"),
      sortable("Lag", "lag", view, again),
      sortable("Not settled", "pending", view, again),
      sortable("Redelivered", "redelivering", view, again),
      sortable("Dead", "dead", view, again),
    ],
    row,
    empty: view.search ? "No consumer has this in its name." : "There is no consumer.",
  };
  return listing(table, status.consumers, view, again);
}

function row(consumer) {
  const bad = (number) => (number > 0 ? "number bad" : "number");
  return h(
    "tr",
    { key: consumer.name },
    h(
      "th",
      { scope: "row" },
      h("button", { type: "button", class: "link", onclick: () => inspect(consumer) }, consumer.name),
    ),
    h("td", { class: "code" }, consumer.filter),
    h("td", { class: "number" }, count(consumer.backlog)),
    h("td", { class: "number" }, count(consumer.ack_pending)),
    h("td", { class: bad(consumer.redelivering) }, count(consumer.redelivering)),
    h("td", { class: bad(consumer.dead) }, count(consumer.dead)),
  );
}

function inspect(consumer) {
  return show(consumer.name, async () => {
    const found = await Promise.all(
      consumer.redelivered.map(async (each) => ({
        ...each,
        info: await call("GET", `v1/messages/${each.message}`).catch(() => null),
      })),
    );
    return [
      h(
        "dl",
        { class: "details" },
        [
          ["Filter", consumer.filter],
          ["Position", `seq ${count(consumer.position)}`],
          ["Lag", count(consumer.backlog)],
          ["Time to settle", duration(consumer.ack_wait)],
          ["Attempts", consumer.max_deliver === null ? "as many as it takes" : count(consumer.max_deliver)],
          ["Dead letters", `${consumer.dead_letter}, ${count(consumer.dead)}`],
        ].map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))),
      ),
      h("h3", null, `Redelivered and not settled (${count(consumer.redelivering)})`),
      found.length === 0 && h("p", { class: "empty" }, "None."),
      found.map(({ message, attempt, due, held, info }) =>
        h(
          "details",
          { key: message, class: "message" },
          h(
            "summary",
            null,
            h("span", { class: "code" }, info?.key ?? message.slice(0, 12)),
            h("span", { class: "figures" }, `attempt ${count(attempt)}`),
            h("span", { class: "figures" }, held ? `with a worker, ${duration(due)} left` : `again in ${duration(due)}`),
          ),
          info === null ? h("p", { class: "empty" }, "It is gone.") : facts(info),
        ),
      ),
    ];
  });
}
