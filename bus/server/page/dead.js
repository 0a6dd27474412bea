// Dead letters: inspected, replayed, removed.

import { call } from "./api.js";
import { confirm, show } from "./dialog.js";
import { h } from "./dom.js";
import { bytes, count, moment, plural, shortMoment } from "./format.js";
import { facts } from "./messages.js";

const PAGE = 50;

/** A page of letters, loaded again when something has moved. */
export class DeadLetters {
  constructor(again, alerted) {
    this.again = again;
    this.alerted = alerted;
    this.letters = null;
    this.next = null;
    this.before = []; // where the pages before began
    this.after = null;
    this.seen = "";
    this.error = null;
    this.loading = false;
  }

  /** Load if the broker's figures say that something may be different. */
  refresh(status) {
    const { messages, dead } = status.totals;
    const seen = `${messages} ${dead} ${status.broker.started}`;
    if (seen === this.seen || this.loading) return;
    this.seen = seen;
    this.load();
  }

  async load() {
    this.loading = true;
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (this.after !== null) query.set("after", String(this.after));
    try {
      const page = await call("GET", `v1/dead-letters?${query}`);
      this.letters = page.messages;
      this.next = page.next;
      this.error = null;
    } catch (error) {
      this.error = error.message;
    }
    this.loading = false;
    this.again();
  }

  turn(after, back) {
    if (back) this.before.pop();
    else this.before.push(this.after);
    this.after = after;
    this.load();
  }

  view() {
    return [
      h("h1", { id: "dead-title" }, "Dead letters"),
      h(
        "p",
        { class: "lead" },
        "Messages that a consumer refused, or was handed as often as it may be. To replay one gives it to that consumer again.",
      ),
      this.error && h("p", { class: "error", role: "alert" }, this.error),
      this.letters === null && !this.error && h("p", { class: "empty" }, "Loading…"),
      this.letters?.length === 0 && h("p", { class: "empty" }, "There is none."),
      this.letters?.length > 0 && [this.table(), this.foot()],
    ];
  }

  table() {
    return h(
      "div",
      { class: "card scroll", tabindex: "0", role: "region", "aria-labelledby": "dead-title" },
      h(
        "table",
        { class: "list stacked" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            ["Died", "Consumer", "Topic", "Reason"].map((name) => h("th", { scope: "col", key: name }, name)),
            ["Attempts", "Bytes"].map((name) => h("th", { scope: "col", class: "number", key: name }, name)),
            h("th", { scope: "col" }, h("span", { class: "hidden" }, "Actions")),
          ),
        ),
        h("tbody", null, this.letters.map((letter) => this.row(letter))),
      ),
    );
  }

  row(letter) {
    const { dead } = letter;
    const name = `${dead.topic} seq ${dead.seq}`;
    const button = (text, act, danger) =>
      h(
        "button",
        { key: text, type: "button", class: danger ? "danger" : null, "aria-label": `${text} ${name}`, onclick: act },
        text,
      );
    return h(
      "tr",
      { key: letter.id },
      h("td", { class: "time", "data-label": "Died", title: moment(dead.at) }, shortMoment(dead.at)),
      h("td", { "data-label": "Consumer" }, dead.consumer),
      h("td", { class: "code", "data-label": "Topic" }, dead.topic),
      h("td", { class: "reason", "data-label": "Reason" }, dead.reason || "–"),
      h("td", { class: "number", "data-label": "Attempts" }, count(dead.attempts)),
      h("td", { class: "number", "data-label": "Bytes" }, bytes(letter.bytes)),
      h(
        "td",
        { class: "actions" },
        button("Inspect", () => show("Dead letter", async () => facts(await call("GET", `v1/messages/${letter.id}`)))),
        button("Replay", () => this.act(() => call("POST", `v1/messages/${letter.id}/replay`, {}))),
        button("Delete", () => this.remove(letter, name), true),
      ),
    );
  }

  foot() {
    return h(
      "div",
      { class: "foot" },
      h(
        "nav",
        { class: "pager", "aria-label": "Pages of dead letters" },
        h(
          "button",
          {
            type: "button",
            disabled: this.before.length === 0,
            onclick: () => this.turn(this.before.at(-1), true),
          },
          "Previous",
        ),
        h("button", { type: "button", disabled: this.next === null, onclick: () => this.turn(this.next) }, "Next"),
      ),
      h("button", { type: "button", class: "danger", onclick: () => this.purge() }, "Purge…"),
    );
  }

  async act(work) {
    try {
      await work();
    } catch (error) {
      this.alerted(error);
    }
    await this.load();
  }

  remove(letter, name) {
    const content = h("p", null, `${name} is removed for good: ${bytes(letter.bytes)}, ${letter.dead.reason || "no reason given"}.`);
    confirm("Delete this dead letter?", content, "Delete", async () => {
      await call("DELETE", `v1/messages/${letter.id}`);
      await this.load();
    });
  }

  purge() {
    const topics = [...new Set(this.letters.map((letter) => letter.topic))];
    const content = [
      h("p", null, "All dead letters on these topics are removed for good."),
      h("label", { for: "purge-filter" }, "Topics (a filter: * is one token, > the rest)"),
      h("input", { id: "purge-filter", type: "text", value: topics.length === 1 ? topics[0] : "dead.>", spellcheck: "false" }),
    ];
    confirm("Purge dead letters?", content, "Purge", async () => {
      const topic = document.getElementById("purge-filter").value.trim();
      const { removed } = await call("DELETE", `v1/dead-letters?${new URLSearchParams({ topic })}`);
      this.after = null;
      this.before = [];
      await this.load();
      this.alerted(new Error(`${plural(removed, "dead letter")} removed.`), "done");
    });
  }
}
