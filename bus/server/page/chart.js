// A small line of one metric over the rounds, and the same as a table for whoever cannot see it.

import { h } from "./dom.js";
import { figure } from "./format.js";

const WIDTH = 360;
const HEIGHT = 120;
const LEFT = 4;
const RIGHT = 54;
const TOP = 12;
const BOTTOM = 20;

/** The metric to show: a loss if there is one. */
export function mainMetric(history) {
  const names = [...new Set(history.flatMap((round) => Object.keys(round.metrics)))];
  return names.find((name) => name === "loss") ?? names.find((name) => /loss/i.test(name)) ?? names[0] ?? null;
}

export function chart(job, history) {
  const metric = mainMetric(history);
  const points = history
    .map((round) => ({ round: round.round, value: round.metrics[metric] }))
    .filter((point) => typeof point.value === "number");
  if (metric === null || points.length === 0) {
    return h("p", { class: "empty small" }, "No metrics of a finished round yet.");
  }
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", null, `${metric} per round`),
    line(metric, points),
    table(job, history),
  );
}

function line(metric, points) {
  const values = points.map((point) => point.value);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const first = points[0].round;
  const last = points.at(-1).round;
  const x = (round) => LEFT + ((WIDTH - LEFT - RIGHT) * (round - first)) / Math.max(1, last - first);
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low || 1);
  const path = points.map(({ round, value }, at) => `${at ? "L" : "M"}${x(round).toFixed(1)} ${y(value).toFixed(1)}`);
  const newest = points.at(-1);
  const floor = HEIGHT - BOTTOM;
  const label = `${metric}: ${figure(values[0])} in round ${first}, ${figure(newest.value)} in round ${last}`;
  return h(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "xMinYMin meet", role: "img", "aria-label": label },
    h("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: floor, y2: floor }),
    points.length > 1 &&
      h("path", { class: "area", d: `${path.join("")}L${x(last).toFixed(1)} ${floor}L${x(first).toFixed(1)} ${floor}Z` }),
    h("path", { class: "line", d: path.join("") }),
    points.length <= 40 &&
      points.map(({ round, value }) =>
        h(
          "circle",
          { key: `at-${round}`, class: round === last ? "dot last" : "dot", cx: x(round), cy: y(value), r: 3 },
          h("title", null, `round ${round}: ${figure(value)}`),
        ),
      ),
    h("text", { class: "value", x: x(last) + 8, y: y(newest.value) + 4 }, figure(newest.value)),
    h("text", { class: "tick", x: LEFT, y: HEIGHT - 5 }, String(first)),
    last > first && h("text", { class: "tick end", x: WIDTH - RIGHT, y: HEIGHT - 5 }, String(last)),
  );
}

function table(job, history) {
  const names = [...new Set(history.flatMap((round) => Object.keys(round.metrics)))];
  return h(
    "details",
    { class: "rounds" },
    h("summary", null, "Rounds as a table"),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": `Rounds of ${job}` },
      h(
        "table",
        null,
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            h("th", { scope: "col", class: "number" }, "Round"),
            h("th", { scope: "col", class: "number" }, "Updates"),
            names.map((name) => h("th", { scope: "col", class: "number", key: name }, name)),
          ),
        ),
        h(
          "tbody",
          null,
          [...history].reverse().map((round) =>
            h(
              "tr",
              { key: `round-${round.round}` },
              h("td", { class: "number" }, String(round.round)),
              h("td", { class: "number" }, String(round.updates)),
              names.map((name) => h("td", { class: "number", key: name }, figure(round.metrics[name]))),
            ),
          ),
        ),
      ),
    ),
  );
}
