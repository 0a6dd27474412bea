// Long lists: searched and ordered by the broker, a page at a time.

import { h } from "./dom.js";
import { count } from "./format.js";

export const PAGE = 50;

/** The field to search with; `view.search` is what is asked for. */
export function searchField(label, view, again) {
  return h(
    "p",
    { class: "search" },
    h("label", { for: "search" }, label),
    h("input", {
      id: "search",
      type: "search",
      autocomplete: "off",
      spellcheck: "false",
      maxlength: "255",
      oninput: (event) => {
        view.search = event.target.value;
        view.from = 0;
        again();
      },
    }),
  );
}

/** A heading that orders by its column. */
export function sortable(name, order, view, again, number = true) {
  const chosen = view.by === order;
  const way = order === "name" ? "ascending" : "descending";
  return h(
    "th",
    { scope: "col", key: name, class: number ? "number" : null, "aria-sort": chosen ? way : "none" },
    h(
      "button",
      {
        type: "button",
        class: "sort",
        onclick: () => {
          view.by = order;
          view.from = 0;
          again();
        },
      },
      number && chosen && h("span", { "aria-hidden": "true", class: "arrow" }, "↓"),
      name,
      !number && chosen && h("span", { "aria-hidden": "true", class: "arrow" }, "↑"),
    ),
  );
}

// A view that is one long table: its heading, the search, the rows of this page, and the way to the others.
export function listing({ what, title, search, columns, row, empty }, listed, view, again) {
  const id = `${what}-title`;
  return [
    h("h1", { id }, title),
    searchField(search, view, again),
    h(
      "div",
      { class: "card scroll", tabindex: "0", role: "region", "aria-labelledby": id },
      h(
        "table",
        { class: "list" },
        h("thead", null, h("tr", null, columns)),
        h("tbody", null, listed.shown.map(row)),
      ),
      listed.count === 0 && h("p", { class: "empty" }, empty),
    ),
    pager(what, listed, view, again),
  ];
}

/** Which part is shown, and the ways to the others. */
export function pager(what, listed, view, again) {
  const first = listed.count === 0 ? 0 : listed.from + 1;
  const last = listed.from + listed.shown.length;
  const step = (by) => () => {
    view.from = Math.max(0, view.from + by);
    again();
  };
  return h(
    "nav",
    { class: "pager", "aria-label": `Pages of ${what}` },
    h("button", { type: "button", disabled: listed.from === 0, onclick: step(-PAGE) }, "Previous"),
    h("span", { role: "status" }, `${count(first)}–${count(last)} of ${count(listed.count)}`),
    h("button", { type: "button", disabled: last >= listed.count, onclick: step(PAGE) }, "Next"),
  );
}
