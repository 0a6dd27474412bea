// The page: one view at a time, drawn anew whenever the broker tells something.

import { keepToken, token } from "./api.js";
import { consumers } from "./consumers.js";
import { DeadLetters } from "./dead.js";
import { askToken } from "./dialog.js";
import { h, patch } from "./dom.js";
import { count, moment } from "./format.js";
import { overview } from "./overview.js";
import { PAGE } from "./tables.js";
import { topics } from "./topics.js";
import { Watch } from "./watch.js";

const VIEWS = { overview: "Overview", topics: "Topics", consumers: "Consumers", dead: "Dead letters" };
const CALM = 200; // milliseconds of typing

const by = (id) => document.getElementById(id);
const lists = {
  topics: { search: "", from: 0, by: "name" },
  consumers: { search: "", from: 0, by: "name" },
};
let view = "overview";
let status = null;
let connection = "connecting";
let timer = 0;
const letters = new DeadLetters(draw, alerted);
const watch = new Watch(
  (news) => {
    status = news;
    draw();
  },
  (state, problem) => {
    connection = state;
    if (problem?.status === 401) ask("The broker asks for a token.");
    draw();
  },
);

function query() {
  const wanted = new URLSearchParams({ jobs: "0", transfers: "0", topics: "0", consumers: "0" });
  if (view === "overview") {
    wanted.set("jobs", "20");
    wanted.set("transfers", "50");
  }
  const list = lists[view];
  if (list) {
    wanted.set(view, String(PAGE));
    wanted.set(`${view}_from`, String(list.from));
    wanted.set(`${view}_by`, list.by);
    if (list.search.trim()) wanted.set("search", list.search.trim());
  }
  return wanted.toString();
}

/** Another part of a list is wanted; typing is waited for. */
function asked() {
  draw();
  clearTimeout(timer);
  timer = setTimeout(() => watch.open(query()), CALM);
}

function draw() {
  patch(by("views"), Object.entries(VIEWS).map(link));
  patch(by("connection"), connectionText());
  by("connection").className = `connection ${connection}`;
  by("token-button").hidden = !(status?.broker.asks_for_tokens ?? needsToken());
  if (status === null) {
    patch(by("main"), h("p", { class: "empty" }, connection === "refused" ? "A token is needed to see anything." : "Loading…"));
    return;
  }
  if (view === "dead") letters.refresh(status);
  patch(by("main"), h("div", { key: view, class: `view ${view}` }, content()));
  const who = status.you ? ` · token ${status.you.name}` : "";
  patch(by("foot"), `Tensorbus ${status.broker.version}, running since ${moment(status.broker.started)}${who}`);
}

function content() {
  if (view === "topics") return topics(status, lists.topics, asked);
  if (view === "consumers") return consumers(status, lists.consumers, asked);
  if (view === "dead") return letters.view();
  return overview(status, draw);
}

function link([name, text]) {
  const { topics: all, consumers: workers, dead_letters: dead } = status?.totals ?? {};
  const number = { topics: all, consumers: workers, dead: dead || undefined }[name];
  return h(
    "a",
    { key: name, href: `#${name}`, "aria-current": name === view ? "page" : null },
    text,
    number !== undefined && h("span", { class: name === "dead" ? "tally bad" : "tally" }, count(number)),
  );
}

function connectionText() {
  if (connection === "live") return "live";
  if (connection === "refused") return "not allowed";
  return status === null ? "connecting…" : "broker away, trying again…";
}

function needsToken() {
  return document.documentElement.dataset.token === "needed";
}

function ask(why) {
  askToken(why, token() !== null, (text) => {
    keepToken(text);
    status = null;
    letters.letters = null;
    letters.seen = "";
    if (!text && needsToken()) {
      watch.close();
      connection = "refused";
      draw();
    } else watch.open(query());
  });
}

/** Tell something at the top of the page for a while. */
function alerted(error, kind = "error") {
  if (error.status === 401) ask("The broker asks for a token.");
  const item = h("p", { key: String(Date.now()), class: kind }, error.message);
  patch(by("alerts"), item);
  setTimeout(() => patch(by("alerts"), []), 8000);
}

function route() {
  const name = location.hash.slice(1);
  if (name === "main") return;
  const wanted = name in VIEWS ? name : "overview";
  const changed = wanted !== view;
  view = wanted;
  document.title = view === "overview" ? "Tensorbus" : `${VIEWS[view]} · Tensorbus`;
  if (changed && lists[view]) Object.assign(lists[view], { search: "", from: 0, by: "name" });
  if (changed) {
    letters.seen = "";
    if (status !== null && lists[view]) status = { ...status, [view]: { count: 0, from: 0, shown: [] } };
    by("main").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
  if (token() === null && needsToken()) {
    connection = "refused";
    draw();
    ask("This broker asks for a token.");
    return;
  }
  draw();
  watch.open(query());
}

by("token-button").onclick = () => ask("What you see and may do depends on the token.");
window.addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  by("main").focus();
});
window.addEventListener("pagehide", () => watch.close());
window.addEventListener("pageshow", (event) => event.persisted && route());
route();
