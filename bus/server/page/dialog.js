// The one dialog: to look at something, to be sure, to ask for a token.

import { h, patch } from "./dom.js";

const box = () => document.getElementById("dialog");

function frame(title, content, buttons) {
  patch(box(), [
    h("form", { key: title, method: "dialog", onsubmit: (event) => event.preventDefault() }, [
      h("h2", { id: "dialog-title" }, title),
      h("div", { class: "content" }, content),
      h("div", { class: "buttons" }, buttons),
    ]),
  ]);
}

function open() {
  if (!box().open) box().showModal();
}

export function close() {
  if (box().open) box().close();
}

const closing = (text = "Close") => h("button", { key: "close", type: "button", onclick: close }, text);

/** Shows what `load` finds, or why it does not. */
export async function show(title, load, buttons = () => []) {
  box().onclose = null;
  frame(title, h("p", { class: "empty" }, "Loading…"), [closing()]);
  open();
  try {
    const content = await load();
    frame(title, content, [...buttons(), closing()]);
  } catch (error) {
    frame(title, h("p", { class: "error" }, error.message), [closing()]);
  }
}

/** Asks whether to do something; `act` does it, and what it throws is shown. */
export function confirm(title, content, verb, act) {
  box().onclose = null;
  let refused = null;
  const draw = () =>
    frame(title, [content, refused && h("p", { class: "error", role: "alert" }, refused)], [
      h(
        "button",
        {
          key: "act",
          type: "button",
          class: "danger",
          onclick: async (event) => {
            event.target.disabled = true;
            try {
              await act();
              close();
            } catch (error) {
              refused = error.message;
              draw();
            } finally {
              event.target.disabled = false;
            }
          },
        },
        verb,
      ),
      closing("Cancel"),
    ]);
  draw();
  open();
}

/** Asks for a token; `taken` gets it, or an empty text to forget the one that is kept. */
export function askToken(why, has, taken) {
  box().onclose = null;
  const done = () => {
    const text = document.getElementById("token").value.trim();
    if (!text) return;
    close();
    taken(text);
  };
  frame(
    "Token",
    [
      h("p", null, why),
      h("label", { for: "token" }, "Token (tb_…)"),
      h("input", {
        id: "token",
        type: "password",
        autocomplete: "off",
        spellcheck: "false",
        onkeydown: (event) => {
          if (event.key === "Enter") done();
        },
      }),
      h("p", { class: "small" }, "It is kept for this tab only, and forgotten when the tab is closed."),
    ],
    [
      h("button", { key: "act", type: "button", class: "primary", onclick: done }, "Use it"),
      has &&
        h(
          "button",
          {
            key: "forget",
            type: "button",
            onclick: () => {
              close();
              taken("");
            },
          },
          "Forget it",
        ),
      closing("Cancel"),
    ],
  );
  open();
  document.getElementById("token").value = "";
  document.getElementById("token").focus();
}
