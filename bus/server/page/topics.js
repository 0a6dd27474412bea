// Topics, and what lies on them.

import { call } from "./api.js";
import { show } from "./dialog.js";
import { h } from "./dom.js";
import { bytes, count } from "./format.js";
import { messageList } from "./messages.js";
import { pager, searchField, sortable } from "./tables.js";

export function topics(status, view, again) {
  const listed = status.topics;
  return [
    h("h1", { id: "topics-title" }, "Topics"),
    searchField("Search topics", view, again),
    h(
      "div",
      { class: "card scroll", tabindex: "0", role: "region", "aria-labelledby": "topics-title" },
      h(
        "table",
        { class: "list" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            sortable("Topic", "name", view, again, false),
            sortable("Messages", "messages", view, again),
            sortable("Bytes", "bytes", view, again),
            sortable("Last seq", "recent", view, again),
          ),
        ),
        h("tbody", null, listed.shown.map(row)),
      ),
      listed.count === 0 && h("p", { class: "empty" }, view.search ? "No topic has this in its name." : "No topic holds a message."),
    ),
    pager("topics", listed, view, again),
  ];
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
