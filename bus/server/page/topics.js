// Topics, and what lies on them.

import { call } from "./api.js";
import { show } from "./dialog.js";
import { h } from "./dom.js";
import { bytes, count } from "./format.js";
import { messageList } from "./messages.js";
import { listing, sortable } from "./tables.js";

export function topics(status, view, again) {
  const table = {
    what: "topics",
    title: "Topics",
    search: "Search topics",
    columns: [
      sortable("Topic", "name", view, again, false),
      sortable("Messages", "messages", view, again),
      sortable("Bytes", "bytes", view, again),
      sortable("Last seq", "recent", view, again),
    ],
    row,
    empty: view.search ? "No topic has this in its name." : "No topic holds a message.",
  };
  return listing(table, status.topics, view, again);
}

function row(topic) {
  return h(
    "tr",
    { key: topic.topic },
    h(
      "th",
      { scope: "row" },
      h("button", { type: "button", class: "link", onclick: () => inspect(topic.topic) }, topic.topic),
    ),
    h("td", { class: "number" }, count(topic.messages)),
    h("td", { class: "number" }, bytes(topic.bytes)),
    h("td", { class: "number" }, count(topic.last_seq)),
  );
}

function inspect(topic) {
  const query = new URLSearchParams({ topic, limit: "20", order: "desc" });
  return show(topic, async () => {
    const page = await call("GET", `v1/messages?${query}`);
    return [h("p", { class: "small" }, "The newest messages, at most 20."), messageList(page.messages)];
  });
}
